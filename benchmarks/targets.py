"""What DataFlare must reach, and what the rows are called."""

from __future__ import annotations

from dataclasses import dataclass, field


def number(figure: float) -> str:
    """Three digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 1_000 else f"{figure:.3g}"


@dataclass(frozen=True)
class Bound:
    """At most `factor` times the best of `peers`, or at most `factor` if there are none."""

    factor: float
    peers: tuple[str, ...] = ()

    def judge(self, figure: float, measured: dict[str, float]) -> str | None:
        """Whether a figure keeps it, in words; None if no peer was measured."""
        limit, words = self.factor, f"≤ {self.factor:g}"
        if self.peers:
            peers = [who for who in self.peers if who in measured]
            if not peers:
                return None
            best = min(peers, key=measured.__getitem__)
            limit = self.factor * measured[best]
            words += f" times {best} = {number(limit)}"
        return f"[green]met[/]    {words}" if figure <= limit else f"[red]missed[/] {words}"


@dataclass(frozen=True)
class Target:
    """One row of targets; `bounds` are by job, "" stands for every job."""

    what: str
    unit: str
    bounds: dict[str, tuple[Bound, ...]] = field(default_factory=dict)

    def judge(self, job: str, figure: float, measured: dict[str, float]) -> str:
        bounds = self.bounds.get(job, self.bounds.get("", ()))
        return "\n".join(filter(None, (bound.judge(figure, measured) for bound in bounds)))


def every_job(factor: float, *peers: str) -> dict[str, tuple[Bound, ...]]:
    return {"": (Bound(factor, peers),)}


FIXED_SIZES = tuple(100 << i for i in range(13))
"""Sizes of batches, from 100 to 409,600."""


def fixed(size: int) -> str:
    """What a stream with batches of one size is called."""
    return f"batches of {size:,}"


ENGINES = ("daft", "polars", "duckdb", "pyarrow")
SELECTIVE = Bound(0.5, ENGINES)

TARGETS = {
    "P1": Target("native no-op plugin, a batch of all lines", "ns a record", every_job(3)),
    "P2": Target(
        "native plugins, batch to result",
        "ns a record",
        {
            "F": (Bound(6), SELECTIVE),
            "U": (Bound(6), Bound(1, ("pyarrow",))),
            "FU": (Bound(7), SELECTIVE),
        },
    ),
    "P3": Target("list of bytes to result", "ns a record", every_job(15)),
    "P4": Target("Python function as plugin", "ns a record", every_job(1.15, "bare loop")),
    "P5": Target("process_record through the manager", "ns a record", every_job(250)),
    "P6": Target("buffer taken and given back, from Python", "ns", every_job(45)),
    "P6 from Cython": Target("the same, from Cython", "ns", every_job(6)),
    "P6b": Target("64 buffers held, every page touched", "ns a buffer", every_job(1.1, "deque")),
    "P7": Target(
        "two threads on a native plugin that computes, wall time",
        "ns a record",
        every_job(1 / 1.85, "one thread"),
    ),
    "P8": Target("1 GB from file to file", "s", {"F": (Bound(1.5, ("grep -F",)),)}),
    "P8 CPU": Target("the same, processor time", "s"),
    "P8 memory": Target("the same, peak resident memory", "MB", every_job(200)),
    "P9": Target("metrics on, batches of 1,000", "ns a record", every_job(1.02, "run_batch alone")),
    "P10": Target(
        "a stream, its size of batches found by itself",
        "ns a record",
        every_job(1.05, *map(fixed, FIXED_SIZES)),
    ),
    "P10 settled": Target("the same, until the size is found", "batches", every_job(30)),
    "P10 latency": Target(
        "the same, 95th percentile of a batch from then on",
        "ms",
        {"": (Bound(50),), "Python F in 2 ms": (Bound(2),)},
    ),
    "P11": Target("import, beyond that of numpy", "ms", every_job(30)),
    "A1": Target("Arrow data to batch, the capsules are there", "ns a record", every_job(1)),
    "A1 of one": Target(
        "the same of one record, beyond the producer's own time", "ns", every_job(1_000)
    ),
    "A2": Target(
        "batch or result to the capsule of a stream", "ns a record that goes out", every_job(10)
    ),
    "A3": Target(
        "Arrow data to Arrow data", "ns a record", {"F": (SELECTIVE,), "FU": (SELECTIVE,)}
    ),
    "A4": Target("list of bytes to list", "ns a record", {"F": (SELECTIVE,), "FU": (SELECTIVE,)}),
    "A5": Target(
        "Parquet file to Parquet file, the whole process",
        "s",
        {job: (Bound(0.5, ("polars", "duckdb")),) for job in ("F", "FU")},
    ),
    "A5 CPU": Target("the same, processor time", "s"),
    "A5 memory": Target("the same, peak resident memory", "MB"),
    "P12": Target(
        "dataflare run on one line, fifty packages of plugins installed",
        "ms",
        {"of the library": (Bound(1.05, ("none installed",)),)},
    ),
}
