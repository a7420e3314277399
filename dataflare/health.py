"""Health: asks every plugin, the pool, the workers and the circuit breakers."""

from __future__ import annotations

import enum
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataflare._backend import DataFlarePlugin, MemoryPool
from dataflare.errors import UnhealthyError, sentence_of
from dataflare.service import PluginService
from dataflare.types import CircuitState, PluginState, PoolStats
from dataflare.workers import Workers

__all__ = [
    "LEAK_CHECKS",
    "HealthReport",
    "PartHealth",
    "Probes",
    "Verdict",
    "check_pool",
    "check_workers",
]

LEAK_CHECKS = 10
"""Checks over which the buffers that are out must have grown each time to count as a leak."""


class Verdict(enum.Enum):
    """How well a part is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class PartHealth:
    """A verdict, and the reason for it.

    Attributes
    ----------
    verdict : Verdict
    reason : str
        One sentence.
    """

    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class HealthReport:
    """What a health check found.

    Attributes
    ----------
    plugins : Mapping of str to PartHealth
        By name.
    pool, workers : PartHealth
    checked_at : float
        Seconds since the epoch.
    """

    plugins: Mapping[str, PartHealth]
    pool: PartHealth
    workers: PartHealth
    checked_at: float

    @property
    def verdict(self) -> Verdict:
        """Verdict: That of the part that is worst."""
        parts = [*self.plugins.values(), self.pool, self.workers]
        found = {part.verdict for part in parts}
        for verdict in (Verdict.UNHEALTHY, Verdict.DEGRADED):
            if verdict in found:
                return verdict
        return Verdict.HEALTHY

    @property
    def is_healthy(self) -> bool:
        """bool: Whether every part is healthy."""
        return self.verdict is Verdict.HEALTHY

    def raise_for_status(self) -> None:
        """Raise `UnhealthyError` if a part is unhealthy; the message has all reasons.

        Raises
        ------
        UnhealthyError
            A part is unhealthy. One that is degraded raises nothing.
        """
        if self.verdict is Verdict.UNHEALTHY:
            raise UnhealthyError(
                "; ".join(
                    f"{name}: {part.reason}"
                    for name, part in self.parts().items()
                    if part.verdict is Verdict.UNHEALTHY
                )
            )

    def parts(self) -> dict[str, PartHealth]:
        """Every part by name: ``plugin NAME``, ``memory pool``, ``workers``.

        Returns
        -------
        dict of str to PartHealth
        """
        parts = {f"plugin {name}": part for name, part in self.plugins.items()}
        return {**parts, "memory pool": self.pool, "workers": self.workers}


class Probes:
    """Asks plugins how they are, each in a thread of its own, so that none can hold the check up.

    A plugin that has not answered an earlier question is not asked again: checks at the same time
    share the answer.
    """

    # Invariant: `_open` has the questions of which nobody took note yet that they are answered.

    def __init__(self) -> None:
        self._open: dict[int, _Question] = {}
        self._answered = threading.Condition()
        self._closed = False

    def check(self, services: Mapping[str, PluginService], timeout: float) -> dict[str, PartHealth]:
        """Ask the plugins of these services, and their fallbacks and plugins for dead letters.

        Parameters
        ----------
        services : Mapping of str to PluginService
        timeout : float
            Seconds that all of them have together.

        Returns
        -------
        dict of str to PartHealth
        """
        with self._answered:
            self._open = {key: each for key, each in self._open.items() if not each.is_answered}
            asked = {
                name: (
                    [self._ask(plugin) for plugin in service.instances],
                    [self._ask(plugin) for plugin in service.helpers],
                )
                for name, service in services.items()
            }
            questions = [question for pair in asked.values() for part in pair for question in part]
            self._answered.wait_for(
                lambda: self._closed or all(question.is_answered for question in questions),
                min(timeout, threading.TIMEOUT_MAX),
            )
            # At the end, nobody is blamed for an answer that was not waited for.
            heard = {id(each) for each in questions if each.is_answered or not self._closed}
        return {
            name: _verdict(
                services[name],
                [question.complaint() for question in own if id(question) in heard],
                [question.complaint() for question in helpers if id(question) in heard],
            )
            for name, (own, helpers) in asked.items()
        }

    def _ask(self, plugin: DataFlarePlugin) -> _Question:
        question = self._open.get(id(plugin))
        if question is None:
            question = self._open[id(plugin)] = _Question(plugin, self._answered)
            question.begin()
        return question

    def close(self) -> None:
        """Wait for no answer any more."""
        with self._answered:
            self._closed = True
            self._answered.notify_all()


class _Question:
    """One call of `health_check`."""

    def __init__(self, plugin: DataFlarePlugin, answered: threading.Condition) -> None:
        self._plugin = plugin
        self._answered = answered
        self._asked = time.monotonic()
        self._answer: str | None = None
        self.is_answered = False

    def begin(self) -> None:
        try:
            threading.Thread(target=self._run, name="dataflare-health", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._answer = f"it could not be asked: {error}"
            self.is_answered = True

    def _run(self) -> None:
        try:
            fit = self._plugin.health_check()
            answer = None if fit else "its health check says that it is not fit for work"
        except BaseException as error:  # in a thread of its own, it ends here
            answer = f"its health check failed: {sentence_of(error)}"
        with self._answered:
            self._answer = answer
            self.is_answered = True
            self._answered.notify_all()

    def complaint(self) -> str | None:
        """What is wrong, or None."""
        if self.is_answered:
            return self._answer
        waited = time.monotonic() - self._asked
        return f"its health check has not answered for {waited:.3g} s"


def _verdict(
    service: PluginService, complaints: list[str | None], of_helpers: list[str | None]
) -> PartHealth:
    wrong = [complaint for complaint in complaints if complaint is not None]
    state = service.breaker.state
    if wrong:
        which = f" ({len(wrong)} of {len(complaints)} instances)" if len(complaints) > 1 else ""
        return PartHealth(Verdict.UNHEALTHY, wrong[0] + which)
    if state is CircuitState.OPEN:
        return PartHealth(
            Verdict.UNHEALTHY,
            f"its circuit is open for another {service.breaker.retry_after:.3g} s",
        )
    if state is CircuitState.HALF_OPEN:
        return PartHealth(Verdict.DEGRADED, "its circuit is being probed")
    if not service.runner.enabled:
        return PartHealth(Verdict.DEGRADED, "it is disabled")
    broken = [p for p in service.instances if DataFlarePlugin.get_state(p) is PluginState.ERROR]
    if broken:
        return PartHealth(Verdict.UNHEALTHY, "it is in the state ERROR")
    for complaint in of_helpers:
        if complaint is not None:
            return PartHealth(
                Verdict.DEGRADED, f"of its fallback or plugin for dead letters: {complaint}"
            )
    return PartHealth(Verdict.HEALTHY, "it is fit for work")


def check_pool(pool: MemoryPool, in_use: Sequence[int] = ()) -> PartHealth:
    """Whether the pool is used rightly, loses no buffers, and still serves its classes from slabs.

    Parameters
    ----------
    pool : MemoryPool
    in_use : sequence of int
        How many buffers were out at the latest checks, this one included. That it only ever grew
        over `LEAK_CHECKS` of them means that somebody keeps buffers or results.

    Returns
    -------
    PartHealth
    """
    stats = pool.get_stats()
    if pool.closed:
        return PartHealth(Verdict.UNHEALTHY, "it is closed")
    if violations := pool.violations:
        count = len(violations)
        return PartHealth(
            Verdict.DEGRADED,
            f"debug mode found {count} violation{'s' * (count > 1)}, at last: {violations[-1]}",
        )
    if len(in_use) >= LEAK_CHECKS and all(map(operator.lt, in_use, in_use[1:])):
        oldest = next((loan for loan in pool.outstanding() or () if loan.kind == "buffer"), None)
        return PartHealth(
            Verdict.DEGRADED,
            f"the buffers that are out grew from {in_use[0]} to {in_use[-1]} over the last "
            f"{len(in_use)} checks: somebody keeps results or buffers"
            + (f", such as the one taken at {oldest.place}" if oldest else ""),
        )
    if stats is None:
        return PartHealth(Verdict.HEALTHY, "it does not count what it does")
    full = _exhausted(stats)
    if full:
        return PartHealth(
            Verdict.DEGRADED,
            f"every {' and '.join(full)} slab is out, further requests are allocated one by one: "
            f"drop results sooner, or allow more slabs",
        )
    return PartHealth(
        Verdict.HEALTHY,
        f"{stats.in_use} buffers are out, {stats.cache_hit_rate:.1%} of requests found a slab",
    )


def _exhausted(stats: PoolStats) -> list[str]:
    return [
        size.name
        for size, of_class in stats.classes.items()
        if of_class.capacity and of_class.cached == 0
    ]


def check_workers(workers: Workers | None) -> PartHealth:
    """Whether threads can be had; those that died are replaced when they are needed."""
    if workers is None:
        return PartHealth(Verdict.HEALTHY, "batches are not shared out")
    if workers.refused:
        return PartHealth(
            Verdict.DEGRADED,
            f"the system starts no more threads: {workers.alive} of {workers.size - 1} are running",
        )
    if dead := workers.dead:
        return PartHealth(
            Verdict.DEGRADED,
            f"{dead} thread{'s' * (dead > 1)} died; the next batch that is shared out replaces "
            f"{'them' if dead > 1 else 'it'}",
        )
    return PartHealth(
        Verdict.HEALTHY, f"{workers.alive} of at most {workers.size - 1} threads are running"
    )
