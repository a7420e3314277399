"""Configuration: what is accepted, what is refused, and how."""

from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
    seconds,
)

NAN = float("nan")
INFINITY = float("inf")


def test_defaults_are_those_of_the_guide() -> None:
    """The defaults that the user's guide promises."""
    pool, batch = MemoryPoolConfig(), BatchConfig()
    assert (
        pool.max_tiny_buffers, pool.max_small_buffers, pool.max_medium_buffers,
        pool.max_large_buffers, pool.max_huge_buffers, pool.cleanup_interval, pool.max_idle_time,
        pool.enable_metrics,
    ) == (2000, 1000, 200, 50, 5, 60.0, 300.0, True)  # fmt: skip
    assert (
        batch.default_batch_size, batch.max_batch_size, batch.target_latency,
        batch.min_throughput, batch.enable_auto_optimization, batch.max_batch_bytes,
    ) == (100, 1000, 0.05, 2000.0, True, None)  # fmt: skip
    assert PluginManagerConfig() == PluginManagerConfig(
        memory_pool_config=pool, batch_config=batch, enable_debug_mode=False
    )


@pytest.mark.parametrize(
    ("config", "arguments", "error"),
    [
        (MemoryPoolConfig, {"max_tiny_buffers": -1}, ValueError),
        (MemoryPoolConfig, {"max_small_buffers": 1.5}, TypeError),
        (MemoryPoolConfig, {"max_medium_buffers": True}, TypeError),
        (MemoryPoolConfig, {"max_large_buffers": "5"}, TypeError),
        (MemoryPoolConfig, {"max_huge_buffers": None}, TypeError),
        (MemoryPoolConfig, {"cleanup_interval": 0}, ValueError),
        (MemoryPoolConfig, {"cleanup_interval": timedelta(0)}, ValueError),
        (MemoryPoolConfig, {"cleanup_interval": -1.0}, ValueError),
        (MemoryPoolConfig, {"cleanup_interval": NAN}, ValueError),
        (MemoryPoolConfig, {"cleanup_interval": "60"}, TypeError),
        (MemoryPoolConfig, {"max_idle_time": timedelta(seconds=-1)}, ValueError),
        (MemoryPoolConfig, {"max_idle_time": NAN}, ValueError),
        (MemoryPoolConfig, {"max_idle_time": None}, TypeError),
        (MemoryPoolConfig, {"max_idle_time": False}, TypeError),
        (MemoryPoolConfig, {"enable_metrics": 1}, TypeError),
        (MemoryPoolConfig, {"enable_metrics": "no"}, TypeError),
        (BatchConfig, {"default_batch_size": 0}, ValueError),
        (BatchConfig, {"default_batch_size": 10.0}, TypeError),
        (BatchConfig, {"default_batch_size": True}, TypeError),
        (BatchConfig, {"default_batch_size": 2000}, ValueError),
        (BatchConfig, {"max_batch_size": 0}, ValueError),
        (BatchConfig, {"max_batch_size": 99}, ValueError),
        (BatchConfig, {"target_latency": -0.1}, ValueError),
        (BatchConfig, {"target_latency": "fast"}, TypeError),
        (BatchConfig, {"min_throughput": -1}, ValueError),
        (BatchConfig, {"min_throughput": NAN}, ValueError),
        (BatchConfig, {"min_throughput": True}, TypeError),
        (BatchConfig, {"min_throughput": "2000"}, TypeError),
        (BatchConfig, {"enable_auto_optimization": 0}, TypeError),
        (BatchConfig, {"max_batch_bytes": 0}, ValueError),
        (BatchConfig, {"max_batch_bytes": -1}, ValueError),
        (BatchConfig, {"max_batch_bytes": 1e6}, TypeError),
        (BatchConfig, {"max_batch_bytes": True}, TypeError),
        (BatchConfig, {"parallelism": 0}, ValueError),
        (BatchConfig, {"parallelism": 1.5}, TypeError),
        (BatchConfig, {"enable_parallel": "yes"}, TypeError),
        (FailureRecoveryConfig, {"max_retries": -1}, ValueError),
        (FailureRecoveryConfig, {"max_retries": "3"}, TypeError),
        (FailureRecoveryConfig, {"retry_interval": -0.1}, ValueError),
        (FailureRecoveryConfig, {"retry_interval": NAN}, ValueError),
        (FailureRecoveryConfig, {"max_retry_interval": NAN}, ValueError),
        (FailureRecoveryConfig, {"circuit_breaker_threshold": 1.1}, ValueError),
        (FailureRecoveryConfig, {"circuit_breaker_threshold": NAN}, ValueError),
        (FailureRecoveryConfig, {"circuit_breaker_threshold": None}, TypeError),
        (FailureRecoveryConfig, {"circuit_breaker_recovery_time": -1}, ValueError),
        (FailureRecoveryConfig, {"circuit_breaker_window": 0}, ValueError),
        (FailureRecoveryConfig, {"circuit_breaker_minimum": 0}, ValueError),
        (FailureRecoveryConfig, {"enable_fallback": 1}, TypeError),
        (FailureRecoveryConfig, {"batch_timeout": 0}, ValueError),
        (FailureRecoveryConfig, {"batch_timeout": NAN}, ValueError),
        (PluginManagerConfig, {"failure_recovery": {}}, TypeError),
        (PluginManagerConfig, {"enable_auto_optimization": None}, TypeError),
        (PluginManagerConfig, {"monitoring_interval": 0}, ValueError),
        (PluginManagerConfig, {"monitoring_interval": NAN}, ValueError),
        (PluginManagerConfig, {"max_samples": 0}, ValueError),
        (PluginManagerConfig, {"max_plugin_instances": 0}, ValueError),
        (PluginManagerConfig, {"max_plugin_instances": True}, TypeError),
        (PluginManagerConfig, {"health_check_interval": -1}, ValueError),
        (PluginManagerConfig, {"health_check_timeout": 0}, ValueError),
        (PluginManagerConfig, {"health_check_timeout": "5"}, TypeError),
        (PluginManagerConfig, {"memory_pool_config": {}}, TypeError),
        (PluginManagerConfig, {"memory_pool_config": None}, TypeError),
        (PluginManagerConfig, {"batch_config": MemoryPoolConfig()}, TypeError),
        (PluginManagerConfig, {"enable_debug_mode": 1}, TypeError),
        (PluginManagerConfig, {"enable_debug_mode": None}, TypeError),
    ],
)
def test_bad_input_is_refused_by_name(config: type, arguments: dict, error: type) -> None:
    """A field with a value that cannot work is refused, and the sentence names the field."""
    with pytest.raises(error, match=next(iter(arguments))):
        config(**arguments)


@pytest.mark.parametrize("config", [MemoryPoolConfig, BatchConfig, PluginManagerConfig])
def test_positional_and_unknown_arguments_are_refused(config: type) -> None:
    """Fields are given by name, and only those that exist."""
    with pytest.raises(TypeError, match="positional"):
        config(1)
    with pytest.raises(TypeError, match="surprise"):
        config(surprise=1)


def test_durations_become_float_seconds() -> None:
    """A timedelta and an integer are float seconds when read."""
    config = MemoryPoolConfig(cleanup_interval=timedelta(minutes=2), max_idle_time=0)
    assert (config.cleanup_interval, config.max_idle_time) == (120.0, 0.0)
    assert type(config.max_idle_time) is float
    assert BatchConfig(target_latency=timedelta(milliseconds=5)).target_latency == 0.005
    assert MemoryPoolConfig(cleanup_interval=INFINITY).cleanup_interval == INFINITY


def test_integers_may_be_anything_with_an_index() -> None:
    """An object with `__index__` counts as the integer it stands for."""

    class Seven:
        def __index__(self) -> int:
            return 7

    assert MemoryPoolConfig(max_huge_buffers=Seven()).max_huge_buffers == 7
    assert type(BatchConfig(default_batch_size=Seven()).default_batch_size) is int


def test_configurations_are_frozen_and_compare_by_value() -> None:
    """A configuration cannot be changed, and two with the same fields are equal."""
    config = MemoryPoolConfig(max_idle_time=5)
    with pytest.raises(FrozenInstanceError):
        config.max_tiny_buffers = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.max_idle_time = 1.0  # type: ignore[misc]
    assert config == MemoryPoolConfig(max_idle_time=timedelta(seconds=5))
    assert config != MemoryPoolConfig(max_idle_time=6)
    assert hash(config) == hash(MemoryPoolConfig(max_idle_time=5))
    assert "max_idle_time=5.0" in repr(config)


def test_seconds_names_what_it_refuses() -> None:
    """The helper's sentence says which duration was wrong, and what it was."""
    assert seconds("pause", 3) == 3.0
    with pytest.raises(TypeError, match=r"^pause must be seconds or a timedelta, not list$"):
        seconds("pause", [])
    with pytest.raises(
        ValueError, match=r"^pause must be a duration of 0 seconds or more, not -2$"
    ):
        seconds("pause", -2)
