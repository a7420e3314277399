"""``dataflare check``: whether a plugin has the properties of a right one."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dataflare._backend import PluginRecord, RecordBatch
from dataflare.cli import show
from dataflare.cli.specs import load_source
from dataflare.errors import PluginConfigurationError, PluginError

if TYPE_CHECKING:
    from dataflare.testing import PropertyResult, Report

__all__ = ["Options", "check"]

CLAIMS = ("stateful", "whole_batch", "distributed")
HINTS = {
    "deterministic": "; if it is meant to: --stateful, or --not-deterministic",
    "some_records_work": ": give records that the plugin is made for, by --records FILE",
}
TIMEOUT = 60.0  # seconds, unless told otherwise
PASSED, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130  # exit statuses


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    plugin: str
    examples: int
    only: list[str]
    skip: list[str]
    deterministic: bool
    stateful: bool
    whole_batch: bool
    distributed: bool
    records: str | None
    config: str | None
    timeout: float
    as_json: bool

    def again(self, name: str) -> str:
        """The command that checks one property in the same way."""
        words = ["dataflare", "check", self.plugin, "--only", name, "--examples", self.examples]
        if not self.deterministic:
            words.append("--not-deterministic")
        if self.timeout != TIMEOUT:
            words += ["--timeout", f"{self.timeout:g}"]
        words += [f"--{claim.replace('_', '-')}" for claim in CLAIMS if getattr(self, claim)]
        for name in ("records", "config"):
            if (given := getattr(self, name)) is not None:
                words += [f"--{name}", given]
        return shlex.join(map(str, words))


def check(options: Options) -> int:
    """Run the command; returns its exit status."""
    if find_spec("hypothesis") is None:
        show.problem("checking needs an extra: pip install 'dataflare[testing]'")
        return UNUSABLE
    if options.only and not set(options.only) - set(options.skip):
        show.problem("nothing is left to check: every property of --only is also in --skip")
        return UNUSABLE
    try:
        # What the plugin prints, at each of some thousand records, would hide the verdict.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            report = _examine(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (PluginError, TypeError, ValueError, SystemExit) as error:
        show.problem(str(error) if isinstance(error, ValueError) else show.sentence(error))
        return UNUSABLE
    if options.as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    return PASSED if report.passed else FAILED


def _examine(options: Options) -> Report:
    from dataflare.testing import examine_plugin

    records = None if options.records is None else _records(options.records)
    config = None if options.config is None else _config(options.config)
    report = examine_plugin(
        load_source(options.plugin),
        records,
        config=config,
        examples=options.examples,
        only=options.only or None,
        skip=options.skip,
        deterministic=options.deterministic,
        stateful=options.stateful,
        whole_batch=options.whole_batch,
        distributed=options.distributed or None,
        isolated=True,
        timeout=options.timeout,
    )
    results = {
        name: replace(
            result,
            sentence=_sentence(result),
            reproduce=result.reproduce and options.again(name),
        )
        for name, result in report.results.items()
    }
    return replace(report, plugin=options.plugin, results=results)


def _sentence(result: PropertyResult) -> str:
    """What was found, with the options of the command instead of the arguments in Python."""
    from dataflare.testing import PROPERTIES

    hint = PROPERTIES[result.name].hint
    if not hint or not result.sentence.endswith(hint):
        return result.sentence
    return result.sentence.removesuffix(hint) + HINTS[result.name]


def _records(path: str) -> list[PluginRecord]:
    try:
        lines = Path(path).read_bytes()
    except OSError as error:
        raise PluginConfigurationError(f"{path}: {error.strerror}") from error
    if not lines:
        raise PluginConfigurationError(f"{path} has no records: one stands in a line")
    return list(RecordBatch.from_lines(lines))


def _config(text: str) -> dict[str, object]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise PluginConfigurationError(f"--config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PluginConfigurationError("--config is a JSON object, such as '{\"size\": 3}'")
    return config


def _print(report: Report) -> None:
    show.table(
        ("property", "verdict", ""),
        [(name, result.status, result.sentence) for name, result in report.results.items()],
    )
    for result in report.failures:
        print(f"\n{result}")
    print(f"\n{report.headline}")
    if report.counts is not None:
        print(report.counts)
