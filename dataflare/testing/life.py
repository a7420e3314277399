"""How a plugin begins and ends, moves, and answers for itself."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from dataflare._backend import DataFlarePlugin, PluginRecord
from dataflare.errors import sentence_of
from dataflare.testing.properties import BrokenError, at_home, compare, prop
from dataflare.testing.strategies import AWKWARD
from dataflare.testing.subject import NotReadyError, Subject, run_all
from dataflare.types import API_VERSION, PluginInfo, PluginType

__all__ = ["PROPERTIES"]


class _UnreadableError(Exception):
    pass


class _Unreadable(Mapping[str, object]):
    """A configuration that fails at the n-th time that it is asked something."""

    def __init__(self, config: Mapping[str, object], reads: int) -> None:
        self._config = config
        self._left = reads

    def _read(self) -> None:
        if self._left == 0:
            raise _UnreadableError("the configuration cannot be read")
        self._left -= 1

    def __getitem__(self, name: str) -> object:
        self._read()
        return self._config[name]

    def __contains__(self, name: object) -> bool:
        self._read()
        return name in self._config

    def __iter__(self) -> Iterator[str]:
        self._read()
        return iter(self._config)

    def __len__(self) -> int:
        self._read()
        return len(self._config)


@prop("initialize and cleanup work in pairs, and again.", with_records=False)
def starts_and_stops(subject: Subject, records: Sequence[PluginRecord]) -> None:
    plugin = subject.make()
    subject.rest()
    for _ in range(2):
        _step(plugin, "initialize", subject.config)
        run_all(plugin, subject.batch(AWKWARD[:4]))
        _step(plugin, "cleanup")
    _step(plugin, "initialize", subject.config)
    _step(plugin, "cleanup", when="without a record before")
    for reads in range(3):
        try:
            plugin.initialize(_Unreadable(subject.config, reads))
            when = "after initialize"
        except (Exception, SystemExit):
            when = "after an initialize that failed"
        _step(plugin, "cleanup", when=when)
    _step(plugin, "initialize", subject.config, when="after one that failed")
    run_all(plugin, subject.batch(AWKWARD[:4]))
    _step(plugin, "cleanup")


def _step(plugin: DataFlarePlugin, name: str, *arguments: object, when: str = "") -> None:
    try:
        getattr(plugin, name)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenError(f"{name}() fails{when and ' '}{when}: {sentence_of(error)}") from None


@prop("Initialised again, it works as at first.", compares=True)
def starts_afresh(subject: Subject, records: Sequence[PluginRecord]) -> None:
    plugin = subject.make()
    with subject.ready(plugin):
        first = run_all(plugin, subject.batch(records))
    with subject.ready(plugin):
        second = run_all(plugin, subject.batch(records))
    compare(first, second, "at first", "initialised again")


@prop("A pickled twin gives the same results.", unless=at_home)
def pickles(subject: Subject, records: Sequence[PluginRecord]) -> None:
    try:
        twin = pickle.loads(pickle.dumps(subject.make()))
    except Exception as error:
        raise BrokenError(f"it cannot be pickled: {sentence_of(error)}") from None
    if not isinstance(twin, DataFlarePlugin):
        raise BrokenError(f"pickled it becomes {type(twin).__name__}, which is not a plugin")
    mine = subject.run(records)
    try:
        with subject.ready(twin):
            other = run_all(twin, subject.batch(records))
    except NotReadyError as error:
        raise BrokenError(f"the twin cannot be used: {error}") from None
    if subject.claims.deterministic:
        compare(mine, other, "here", "pickled")


@prop(
    "The health check of a plugin that is ready says so, in time.",
    runs=False,
    with_records=False,
)
def health_check_answers(subject: Subject, records: Sequence[PluginRecord]) -> None:
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(plugin.health_check())
        except BaseException as error:
            answers.append(error)

    limit = subject.claims.health_timeout
    with subject.ready() as plugin:
        asking = threading.Thread(target=ask, name="dataflare-check-health", daemon=True)
        asking.start()
        asking.join(limit)
        if not answers:
            raise BrokenError(f"health_check() has not answered within {limit:g} s")
    answer = answers[0]
    if isinstance(answer, BaseException):
        raise BrokenError(f"health_check() raises {sentence_of(answer)}")
    if not isinstance(answer, bool):
        raise BrokenError(f"health_check() returns {type(answer).__name__}, not bool")
    if not answer:
        raise BrokenError("health_check() says that it is not fit for work, just initialised")


@prop("info() says who it is, completely.", with_records=False, runs=False)
def info_is_complete(subject: Subject, records: Sequence[PluginRecord]) -> None:
    try:
        info = subject.first.info()
        again = subject.first.info()
    except Exception as error:
        raise BrokenError(f"info() raises {sentence_of(error)}") from None
    if not isinstance(info, PluginInfo):
        raise BrokenError(f"info() returns {type(info).__name__}, not PluginInfo")
    for each in fields(PluginInfo):
        value = getattr(info, each.name)
        kind: type = {"plugin_type": PluginType, "api_version": int}.get(each.name, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BrokenError(f"{each.name} is {type(value).__name__}, not {kind.__name__}")
        if isinstance(value, str) and len(value.splitlines()) > 1:
            raise BrokenError(f"{each.name} has several lines")
    for name in ("name", "version", "description"):
        if not getattr(info, name).strip():
            raise BrokenError(f"the {name} is empty{_hint(subject, name)}")
    if info.api_version != API_VERSION:
        raise BrokenError(
            f"it is written for API version {info.api_version}, this DataFlare has {API_VERSION}"
        )
    if info != again:
        raise BrokenError("info() says something else the second time")


def _hint(subject: Subject, name: str) -> str:
    if name != "description":
        return ""
    # One of a C function has no class of its own, and the function no docstring.
    in_c = type(subject.first).__name__ == "CPlugin"
    alternative = ", or pass description= to from_function" if in_c else ""
    return f": give its class or function a docstring{alternative}"


PROPERTIES = (starts_and_stops, starts_afresh, pickles, health_check_answers, info_is_complete)
