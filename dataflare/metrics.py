"""What a plugin did, as numbers to read."""

from __future__ import annotations

from dataclasses import dataclass

from dataflare._backend import PluginCounters

__all__ = ["PluginMetrics"]


@dataclass(frozen=True)
class PluginMetrics:
    """What a plugin did since it was registered.

    Attributes
    ----------
    total_processed : int
        Records that came in: ``successful + filtered + skipped + failed``.
    successful, filtered, skipped, failed : int
        Records that went on with a new value, were dropped, went on unchanged, failed.
    error_rate : float
        ``failed / total_processed``, 0.0 before the first record.
    average_latency : float
        Seconds per record: processing time by records.
    p50_latency, p95_latency, p99_latency, max_latency : float
        Seconds per record. The time of a batch counts in equal parts for its records; percentiles
        are at most 1/32 too high.
    average_throughput : float
        Records per second of processing time.
    batches : int
        Calls; a single record is a batch of one.
    p50_batch_latency, p99_batch_latency : float
        Seconds per batch.
    processing_time : float
        Seconds spent in the plugin.
    bytes_in, bytes_out : int
        Sizes of the values that came in and went on.
    """

    total_processed: int
    successful: int
    filtered: int
    skipped: int
    failed: int
    error_rate: float
    average_latency: float
    p50_latency: float
    p95_latency: float
    p99_latency: float
    max_latency: float
    average_throughput: float
    batches: int
    p50_batch_latency: float
    p99_batch_latency: float
    processing_time: float
    bytes_in: int
    bytes_out: int

    @classmethod
    def of(cls, counters: PluginCounters) -> PluginMetrics:
        """Read a plugin's counters.

        Parameters
        ----------
        counters : PluginCounters

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
            error_rate=counters.failed / records if records else 0.0,
            average_latency=busy / records if records else 0.0,
            p50_latency=latency.percentile(50) / 1e9,
            p95_latency=latency.percentile(95) / 1e9,
            p99_latency=latency.percentile(99) / 1e9,
            max_latency=latency.max / 1e9,
            average_throughput=records / busy if busy else 0.0,
            batches=counters.batches,
            p50_batch_latency=batch_latency.percentile(50) / 1e9,
            p99_batch_latency=batch_latency.percentile(99) / 1e9,
            processing_time=busy,
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
        )
