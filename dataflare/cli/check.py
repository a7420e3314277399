"""``dataflare check``: whether a plugin has the properties of a right one."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dataflare.cli import show
from dataflare.cli.specs import load_source
from dataflare.errors import PluginError

if TYPE_CHECKING:
    from dataflare.testing import Report

__all__ = ["Options", "check"]

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
    distributed: bool
    timeout: float
    as_json: bool

    def again(self, name: str) -> str:
        """The command that checks one property in the same way."""
        words = ["dataflare", "check", self.plugin, "--only", name, "--examples", self.examples]
        if not self.deterministic:
            words.append("--not-deterministic")
        if self.timeout != TIMEOUT:
            words += ["--timeout", f"{self.timeout:g}"]
        words += [f"--{claim}" for claim in ("stateful", "distributed") if getattr(self, claim)]
        return shlex.join(map(str, words))


def check(options: Options) -> int:
    """Run the command; returns its exit status."""
    if find_spec("hypothesis") is None:
        show.problem("checking needs the extra: pip install 'dataflare[testing]'")
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

    report = examine_plugin(
        load_source(options.plugin),
        examples=options.examples,
        only=options.only or None,
        skip=options.skip,
        deterministic=options.deterministic,
        stateful=options.stateful,
        distributed=options.distributed or None,
        isolated=True,
        timeout=options.timeout,
    )
    results = {
        name: replace(result, reproduce=result.reproduce and options.again(name))
        for name, result in report.results.items()
    }
    return replace(report, plugin=options.plugin, results=results)


def _print(report: Report) -> None:
    show.table(
        ("property", "verdict", ""),
        [(name, result.status, result.sentence) for name, result in report.results.items()],
    )
    for result in report.failures:
        print(f"\n{result}")
    print(f"\n{report.headline}")
