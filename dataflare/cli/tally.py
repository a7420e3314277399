"""What a run did so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from dataflare.cli.failures import Failure
from dataflare.metrics import PluginMetrics

__all__ = ["Tally"]

FAILURES_SHOWN = 5


@dataclass
class Tally:
    """Counts of records and bytes, and the first failures."""

    records_out: int = 0
    filtered: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    complete: bool = False
    first_failures: list[str] = field(default_factory=list)
    metrics: PluginMetrics | None = None
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    @property
    def records_in(self) -> int:
        """Records that were decided."""
        return self.records_out + self.filtered + self.failed

    def add(self, records_out: int, filtered: int) -> None:
        """Count records that were written, and records that were dropped."""
        self.records_out += records_out
        self.filtered += filtered

    def add_failure(self, failure: Failure) -> None:
        """Count a record that failed."""
        self.failed += 1
        if len(self.first_failures) < FAILURES_SHOWN:
            self.first_failures.append(str(failure))

    def failed_sentence(self) -> str:
        """How many failed, and the first of them."""
        noun = "record" if self.records_in == 1 else "records"
        return (
            f"{self.failed:,} of {self.records_in:,} {noun} failed, "
            f"the first at {self.first_failures[0]}"
        )

    def finish(self, bytes_out: int, metrics: PluginMetrics | None) -> None:
        """Note what is known at the end only."""
        self.bytes_out = bytes_out
        self.metrics = metrics
        self.seconds = time.perf_counter() - self.started

    def rate(self, count: int) -> float:
        """So many in the time of the run, per second."""
        return count / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, object]:
        """For machines; times are in seconds."""
        return {
            "complete": self.complete,
            "records_in": self.records_in,
            "records_out": self.records_out,
            "filtered": self.filtered,
            "failed": self.failed,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": self.seconds,
            "records_per_second": self.rate(self.records_in),
            "bytes_per_second": self.rate(self.bytes_in),
            "p50_batch_latency": self.metrics.p50_batch_latency if self.metrics else 0.0,
            "p99_batch_latency": self.metrics.p99_batch_latency if self.metrics else 0.0,
            "first_failures": self.first_failures,
        }
