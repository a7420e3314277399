"""From what a batch took to the size of the next one: a pure function."""

from __future__ import annotations

from dataflare.config import BatchConfig

__all__ = ["next_batch_size"]

SMALLEST = 10


def next_batch_size(
    current_size: int, latency: float, throughput: float, config: BatchConfig
) -> int:
    """The size of the next batch.

    Shrink by a fifth when the batch took too long, else grow by a fifth when too few records went
    through.

    Parameters
    ----------
    current_size : int
        Records in the last batch.
    latency : float
        Seconds it took.
    throughput : float
        Records per second.
    config : BatchConfig

    Returns
    -------
    int
        Records, at least 1 and at most ``config.max_batch_size``.
    """
    size = current_size
    if latency > config.target_latency and current_size > SMALLEST:
        size = max(int(current_size * 0.8), SMALLEST)
    elif throughput < config.min_throughput and current_size < config.max_batch_size:
        size = max(int(current_size * 1.2), current_size + 1)
    return min(size, config.max_batch_size)
