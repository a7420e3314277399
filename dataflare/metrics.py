"""What a plugin did, as numbers to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dataflare._backend import Histogram, PluginCounters

__all__ = ["PluginHistograms", "PluginMetrics", "StageMetrics"]


@dataclass(frozen=True)
class StageMetrics:
    """The time that a member of a chain took.

    Attributes
    ----------
    name : str
    exclusive_time : float
        Seconds that batches spent in this plugin alone. Of members that run fused it is estimated
        from samples.
    """

    name: str
    exclusive_time: float


@dataclass(frozen=True)
class PluginHistograms:
    """How long a plugin took, as distributions in nanoseconds.

    Attributes
    ----------
    latency : Histogram
        Per record. The time of a batch counts in equal parts for its records (amortised).
    batch_latency : Histogram
        Per batch; a single record is a batch of one.
    """

    latency: Histogram
    batch_latency: Histogram


@dataclass(frozen=True)
class PluginMetrics:
    """What a plugin did since it was registered.

    Attributes
    ----------
    total_processed : int
        Records that came in: ``successful + filtered + skipped + failed + dead_lettered``.
    successful : int
        Records that went on with a new value.
    filtered : int
        Records that were dropped.
    skipped : int
        Records that went on unchanged.
    failed : int
        Records that failed for good, without those in `dead_lettered`.
    dead_lettered : int
        Records that failed for good and that a sink of dead letters accepted.
    error_rate : float
        ``(failed + dead_lettered) / total_processed``, 0.0 before the first record.
    retries : int
        Further attempts at records that had failed.
    fallbacks : int
        Records that failed and that the fallback then processed; they count as what it made of
        them.
    average_latency : float
        Seconds per record: processing time by records.
    p50_latency, p95_latency, p99_latency, max_latency : float
        Seconds per record. The time of a batch counts in equal parts for its records (amortised);
        percentiles are at most 1/32 too high.
    average_throughput : float
        Records per second of processing time, over the plugin's life.
    recent_throughput : float
        Records per second of wall time, over the last ten whole seconds.
    batches : int
        Calls; a single record is a batch of one.
    p50_batch_latency, p95_batch_latency, p99_batch_latency, max_batch_latency : float
        Seconds per batch, waiting between attempts excluded.
    processing_time : float
        Seconds spent in the plugin; of a batch that threads share, until the last one ended.
    bytes_in : int
        Sizes of the values that came in.
    bytes_out : int
        Sizes of the values that went on.
    stages : tuple of StageMetrics
        Where the time of batches was spent: in each member of a chain, or in the plugin itself.
    """

    total_processed: int
    successful: int
    filtered: int
    skipped: int
    failed: int
    dead_lettered: int
    error_rate: float
    retries: int
    fallbacks: int
    average_latency: float
    p50_latency: float
    p95_latency: float
    p99_latency: float
    max_latency: float
    average_throughput: float
    recent_throughput: float
    batches: int
    p50_batch_latency: float
    p95_batch_latency: float
    p99_batch_latency: float
    max_batch_latency: float
    processing_time: float
    bytes_in: int
    bytes_out: int
    stages: tuple[StageMetrics, ...] = ()

    @classmethod
    def of(
        cls, counters: PluginCounters, stages: Iterable[tuple[str, float]] = ()
    ) -> PluginMetrics:
        """Read a plugin's counters.

        Parameters
        ----------
        counters : PluginCounters
        stages : iterable of (str, float)
            Names and exclusive times.

        Returns
        -------
        PluginMetrics
        """
        records = counters.records
        busy = counters.busy_ns / 1e9
        latency = counters.latency
        batch_latency = counters.batch_latency
        return cls(
            total_processed=records,
            successful=counters.success,
            filtered=counters.filtered,
            skipped=counters.skipped,
            failed=counters.failed,
            dead_lettered=counters.dead_lettered,
            error_rate=(counters.failed + counters.dead_lettered) / records if records else 0.0,
            retries=counters.retries,
            fallbacks=counters.fallbacks,
            average_latency=busy / records if records else 0.0,
            p50_latency=latency.percentile(50) / 1e9,
            p95_latency=latency.percentile(95) / 1e9,
            p99_latency=latency.percentile(99) / 1e9,
            max_latency=latency.max / 1e9,
            average_throughput=records / busy if busy else 0.0,
            recent_throughput=counters.recent_throughput(),
            batches=counters.batches,
            p50_batch_latency=batch_latency.percentile(50) / 1e9,
            p95_batch_latency=batch_latency.percentile(95) / 1e9,
            p99_batch_latency=batch_latency.percentile(99) / 1e9,
            max_batch_latency=batch_latency.max / 1e9,
            processing_time=busy,
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            stages=tuple(StageMetrics(*stage) for stage in stages),
        )
