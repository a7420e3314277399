"""The size of the next batch: the rule for the last batch, and the search for the best size."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.config import BatchConfig
from dataflare.tuner import TunerState, tune

SLOW, FAST = 0.1, 0.01
THIN, FULL = 1999.0, 2000.0
NAN, INFINITY = float("nan"), float("inf")

# ---- the rule for the last batch


@pytest.mark.parametrize(
    ("size", "latency", "throughput", "expected"),
    [
        (100, SLOW, FULL, 80),
        (100, SLOW, THIN, 80),
        (100, FAST, THIN, 120),
        (100, FAST, FULL, 100),
        (100, 0.05, FULL, 100),
        (12, SLOW, FULL, 10),
        (11, SLOW, FULL, 10),
        (10, SLOW, FULL, 10),
        (10, SLOW, THIN, 12),
        (5, SLOW, FULL, 5),
        (1, FAST, THIN, 2),
        (4, FAST, THIN, 5),
        (900, FAST, THIN, 1000),
        (1000, FAST, THIN, 1000),
        (5000, FAST, FULL, 1000),
    ],
)
def test_the_rule_of_the_guide(backend, size, latency, throughput, expected) -> None:
    """A fifth less when too slow and more than ten; else a fifth more when too thin."""
    plugin = backend.BatchPlugin()
    assert plugin.optimize_batch_size(size, latency, throughput) == expected


@given(
    size=st.integers(1, 10_000),
    latency=st.floats(0, 1e9),
    throughput=st.floats(0, 1e12),
    most=st.integers(1, 2000),
)
def test_the_next_size_is_always_in_bounds(backend, size, latency, throughput, most) -> None:
    """At least 1, at most the maximum, whatever was measured."""
    config = BatchConfig(default_batch_size=1, max_batch_size=most)
    found = backend.BatchPlugin(config).optimize_batch_size(size, latency, throughput)
    assert type(found) is int
    assert 1 <= found <= most


# ---- the search, against made-up curves: the seconds of a batch as a function of its size

Curve = Callable[[int], float]
CONFIG = BatchConfig(max_batch_size=1_000_000)
REACHED = 30  # batches within which the size must be found
SEEDS = range(20)


def line(overhead: float, cost: float) -> Curve:
    """So much per batch and so much per record."""
    return lambda n: overhead + cost * n


def cliff(overhead: float, cost: float, edge: int, factor: float) -> Curve:
    """A record costs more by a factor in batches above some size."""
    return lambda n: overhead + cost * n * (factor if n > edge else 1.0)


def slope(overhead: float, cost: float, middle: int, factor: float) -> Curve:
    """The same, gradually, as caches fill up."""
    return lambda n: overhead + cost * n * (1 + (factor - 1) / (1 + (middle / n) ** 2))


CURVES = {
    "flat, 10 ns": line(0, 1e-8),
    "flat, 1 us": line(0, 1e-6),
    "flat, 1 ms": line(0, 1e-3),
    "flat, 40 ms": line(0, 4e-2),
    "native": line(5e-6, 6e-9),
    "Python": line(2e-5, 1e-6),
    "overhead of 100 us": line(1e-4, 1e-6),
    "overhead of 1 ms": line(1e-3, 1e-6),
    "overhead of 10 ms": line(1e-2, 1e-5),
    "a call far away": line(1e-2, 1e-8),
    "cliff at 8000": cliff(5e-6, 6e-9, 8000, 1.5),
    "cliff at 3000": cliff(1e-4, 1e-6, 3000, 2.0),
    "small cliff": cliff(1e-5, 1e-7, 1000, 1.1),
    "cliff at 150": cliff(1e-5, 1e-6, 150, 3.0),
    "cliff below the first size": cliff(1e-6, 1e-6, 40, 2.0),
}
RARE = {
    "cache fills up": slope(5e-6, 1e-8, 20_000, 1.5),
    "square": lambda n: 1e-3 + 1e-7 * n + 1e-8 * n * n,
    "overhead near the target": line(3e-2, 1e-6),
}
NOISY = [name for name in CURVES if "cliff" not in name and name != "overhead of 10 ms"]


@dataclass
class Run:
    """What happened in a stream whose batches took what a curve says."""

    sizes: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    states: list[TunerState] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """After how many batches the first search was over."""
        return next(i for i, state in enumerate(self.states, 1) if state.settled)

    def throughput(self, curve: Curve, start: int = REACHED) -> float:
        """Records per second without the noise, from some batch on."""
        return sum(self.sizes[start:]) / sum(curve(size) for size in self.sizes[start:])

    def changes(self, start: int = REACHED) -> int:
        """How often the size changed, from some batch on."""
        return sum(a != b for a, b in itertools.pairwise(self.sizes[start:]))

    def late(self, config: BatchConfig, start: int = REACHED) -> float:
        """The share of batches above the target, from some batch on."""
        late = [latency > config.target_latency for latency in self.latencies[start:]]
        return sum(late) / len(late)


def simulate(
    curve_at: Callable[[int], Curve],
    config: BatchConfig = CONFIG,
    noise: float = 0.0,
    outliers: float = 0.0,
    seed: int = 0,
    batches: int = 300,
) -> Run:
    """Run a stream; the curve may depend on the number of the batch.

    Noise is log-normal; an outlier takes ten times as long.
    """
    rng = random.Random(seed)
    run, state = Run(), TunerState(config.default_batch_size)
    for i in range(batches):
        size = state.size
        factor = math.exp(rng.gauss(0, noise)) * (10 if rng.random() < outliers else 1)
        latency = curve_at(i)(size) * factor
        run.sizes.append(size)
        run.latencies.append(latency)
        state = tune(state, size, latency, size / latency if latency else 0.0, config)
        run.states.append(state)
    return run


def best_throughput(curve: Curve, config: BatchConfig = CONFIG, noise: float = 0.0) -> float:
    """Of the fixed sizes whose 95th percentile is under the target."""
    found, size = 0.0, 1
    while size <= config.max_batch_size:
        if curve(size) * math.exp(1.645 * noise) <= config.target_latency:
            found = max(found, size / curve(size))
        size = max(size + 1, int(size * 1.02))
    return found


@pytest.mark.parametrize("name", [*CURVES, *RARE])
def test_the_best_size_is_found(name) -> None:
    """Within thirty batches, within five percent, under the target; and then it stays."""
    curve = (CURVES | RARE)[name]
    run = simulate(lambda i: curve)
    assert run.settled <= REACHED
    assert run.throughput(curve) >= 0.95 * best_throughput(curve)
    assert run.late(CONFIG) == 0
    assert run.changes() == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CURVES)
def test_the_best_size_is_found_through_noise(name, seed) -> None:
    """Five percent of noise, one batch in a hundred ten times slower."""
    curve = CURVES[name]
    run = simulate(lambda i: curve, noise=0.05, outliers=0.01, seed=seed)
    assert run.settled <= REACHED
    assert run.throughput(curve) >= 0.95 * best_throughput(curve, noise=0.05)
    assert run.late(CONFIG) <= 0.05
    assert run.changes() <= 2


@pytest.mark.parametrize("noise", [0.1, 0.25])
@pytest.mark.parametrize("name", NOISY)
def test_much_noise_costs_little(name, noise) -> None:
    """With a quarter of noise nine streams in ten are within five percent, and none is far off."""
    curve = CURVES[name]
    runs = [simulate(lambda i: curve, noise=noise, outliers=0.02, seed=seed) for seed in SEEDS]
    best = best_throughput(curve, noise=noise)
    shares = sorted(run.throughput(curve) / best for run in runs) if best else [1.0] * len(runs)
    assert all(run.settled <= REACHED for run in runs)
    assert shares[2] >= 0.95
    assert shares[0] >= 0.85
    assert max(run.changes() for run in runs) <= 30
    assert not best or max(run.late(CONFIG) for run in runs) <= 0.1


def test_of_equal_sizes_the_smallest_is_taken() -> None:
    """A large batch must pay: the first size is kept where no other is better."""
    for cost in (1e-8, 1e-6):
        assert simulate(lambda i, cost=cost: line(0, cost)).sizes[-1] == 100
    assert simulate(lambda i: line(2e-5, 1e-6)).sizes[-1] <= 2000


@pytest.mark.parametrize("factor", [10, 0.1, 3, 1 / 3])
@pytest.mark.parametrize("name", ["Python", "overhead of 100 us", "overhead of 1 ms", "native"])
def test_a_plugin_that_changes_is_followed(name, factor) -> None:
    """Thirty-five batches after it became slower or faster the size is right again."""
    before = CURVES[name]

    def after(n: int) -> float:
        return factor * before(n)

    run = simulate(lambda i: before if i < 100 else after, batches=300)
    assert run.throughput(after, 135) >= 0.95 * best_throughput(after)
    assert run.late(CONFIG, 135) == 0
    assert run.changes(135) == 0


def test_a_new_overhead_is_found_without_being_looked_for() -> None:
    """A change that barely shows at the present size is found when the search starts over."""
    before, after = line(2e-5, 1e-6), line(2e-4, 1e-6)
    run = simulate(lambda i: before if i < 50 else after, batches=2500)
    assert run.throughput(after, 2000) >= 0.95 * best_throughput(after)


def test_a_target_that_shrinks_is_kept() -> None:
    """A batch that exceeds the target is followed by smaller ones until it is kept."""
    run = simulate(lambda i: line(1e-3, 1e-6 if i < 60 else 2e-5))
    assert run.late(CONFIG, 90) == 0
    assert run.sizes[-1] > 1500


def test_outliers_that_come_at_any_size_do_not_shrink_batches() -> None:
    """Of ten batches one is interrupted for longer than the target."""
    rng = random.Random(3)
    pauses = [0.1 if rng.random() < 0.1 else 0.0 for _ in range(2000)]
    run = simulate(lambda i: line(1e-3 + pauses[i], 1e-5), batches=2000)
    assert sorted(run.sizes)[len(run.sizes) // 4] > 1000


@pytest.mark.parametrize("target", [0, 1e-9])
def test_a_target_that_no_batch_keeps_is_given_up(target) -> None:
    """Batches become small, but not so small that they are nothing but overhead."""
    config = BatchConfig(target_latency=target)
    assert 20 <= simulate(lambda i: line(1e-4, 1e-6), config).sizes[-1] <= 30
    assert simulate(lambda i: line(0, 1e-3), config).sizes[-1] == 1
    assert simulate(lambda i: line(1e-2, 1e-9), config).sizes[-1] == 100


def test_thin_streams_get_all_that_the_target_allows() -> None:
    """Below the minimum of throughput two percent are not given away."""
    config = BatchConfig(max_batch_size=10_000, min_throughput=INFINITY)
    assert simulate(lambda i: line(1e-6, 1e-6), config).sizes[-1] == 10_000
    config = BatchConfig(max_batch_size=1_000_000, min_throughput=INFINITY)
    assert 40_000 < simulate(lambda i: line(1e-6, 1e-6), config).sizes[-1] < 50_000


def test_batches_too_fast_for_the_clock_grow() -> None:
    """As long as no time is measured, sizes double, up to the maximum."""
    assert simulate(lambda i: lambda n: 0.0, batches=16).sizes == [
        *(100 << i for i in range(14)), 1_000_000, 1_000_000,
    ]  # fmt: skip


@pytest.mark.parametrize("period", [1, 2, 7, 40])
def test_a_plugin_that_alternates_upsets_nothing(period) -> None:
    """Ten times slower every other batch, or every other span of batches."""
    fast, slow = line(1e-5, 1e-7), line(1e-4, 1e-6)
    run = simulate(lambda i: slow if i // period % 2 else fast, batches=400)
    assert all(1 <= size <= 1_000_000 for size in run.sizes)
    # No better than the worse half allows, but not much worse.
    spent = sum((slow if i // period % 2 else fast)(size) for i, size in enumerate(run.sizes))
    ideal = 2 / (1 / best_throughput(fast) + 1 / best_throughput(slow))
    assert sum(run.sizes) / spent >= 0.5 * min(ideal, best_throughput(slow))


def test_shorter_batches_count_as_what_they_were() -> None:
    """A limit of bytes that cuts every batch: sizes never run away from what was run."""
    state = TunerState(100)
    for _ in range(100):
        size = min(state.size, 60)
        latency = 1e-3 + 1e-6 * size
        state = tune(state, size, latency, size / latency, CONFIG)
        assert state.size <= 2 * 60
    assert state.settled


def test_a_last_short_batch_does_not_upset_a_settled_size() -> None:
    """One record alone costs what the model says it does."""
    run = simulate(lambda i: line(1e-4, 1e-6), batches=60)
    state = run.states[-1]
    for size in (1, 7, 50):
        latency = 1e-4 + 1e-6 * size
        after = tune(state, size, latency, size / latency, CONFIG)
        assert after.settled
        assert after.size == state.size
        assert after.drift == pytest.approx(1, abs=0.02)


# ---- properties

ANY_FLOAT = st.one_of(
    st.floats(), st.sampled_from([0.0, -1.0, NAN, INFINITY, -INFINITY, 5e-324, 1e-300, 1e308])
)
MEASURED = st.one_of(ANY_FLOAT, st.floats(1e-7, 1.0), st.floats(1.0, 1e9))
CONFIGS = st.builds(
    lambda first, more, target, least: BatchConfig(
        default_batch_size=first,
        max_batch_size=first + more,
        target_latency=target,
        min_throughput=least,
    ),
    st.integers(1, 1000),
    st.sampled_from([0, 1, 900, 10**6, 10**30]),
    st.one_of(st.sampled_from([0.0, INFINITY]), st.floats(0, 10)),
    st.one_of(st.sampled_from([0.0, INFINITY]), st.floats(0, 1e9)),
)
BATCHES = st.lists(st.tuples(st.integers(0, 10**7), MEASURED, MEASURED), max_size=60)


@given(config=CONFIGS, batches=BATCHES, obey=st.booleans())
def test_sizes_stay_in_bounds_whatever_is_measured(config, batches, obey) -> None:
    """Any floats at all; with sizes that were asked for and with others; twice the same."""
    state = TunerState(config.default_batch_size)
    for size, latency, throughput in batches:
        arguments = (state.size if obey else size, latency, throughput, config)
        following = tune(state, *arguments)
        assert type(following.size) is int
        assert 1 <= following.size <= config.max_batch_size
        assert repr(following) == repr(tune(state, *arguments))
        state = following


@given(config=CONFIGS, batches=BATCHES, then=CONFIGS)
def test_a_configuration_may_change(config, batches, then) -> None:
    """A state from one configuration is good for another."""
    state = TunerState(config.default_batch_size)
    for size, latency, throughput in batches:
        state = tune(state, size, latency, throughput, config)
    for size, latency, throughput in batches:
        state = tune(state, size, latency, throughput, then)
        assert 1 <= state.size <= then.max_batch_size


@given(
    seed=st.integers(0, 10**6),
    most=st.integers(1, 3),
    overhead=st.floats(0, 1),
    cost=st.floats(1e-9, 1),
)
def test_there_is_nothing_to_tune_between_one_and_three(seed, most, overhead, cost) -> None:
    """A maximum next to nothing is respected in any noise."""
    config = BatchConfig(default_batch_size=1, max_batch_size=most)
    run = simulate(lambda i: line(overhead, cost), config, 0.3, 0.1, seed, 60)
    assert set(run.sizes) <= set(range(1, most + 1))
