r"""From what batches took to the size of the next one: pure functions, no clock, no globals.

Two rules. `next_batch_size` is the guide's, which looks at the last batch alone; a plugin that
decides for itself starts from it. `tune` is what a stream goes by: it is handed its own state, and
finds the size of best throughput in about twenty batches.

What `tune` does
----------------
a. **Model.** A batch of n records takes ``overhead + cost * n`` seconds, so a record takes
   ``overhead / n + cost``. Both come from a least-squares line through the batches seen so far,
   each weighted by ``1 / cost**2``: an error counts in proportion, and a batch that a garbage
   collection made ten times slower hardly counts at all. Apache Beam's `BatchElements` [1]_ rests
   on the same model.
b. **Knee.** The wanted size is the smallest whose overhead is at most `SLACK` of its time. The
   overhead is taken one standard error above its estimate, so that noise leads to batches that are
   too large, which costs little, and not to batches that are too small.
c. **Slow start.** Sizes double [2]_ until the wanted size is among them. One batch of a quarter of
   the first size shows what lies below, and holds the line where it is steep.
d. **Rise.** Where larger batches cost more per record (the cache is full, the plugin is not
   linear) a line does not fit. The change point [3]_ that explains most is looked for, what lies
   beyond it counting by its median; it must exceed three standard deviations of the noise. Only
   sizes below it are then wanted. The gap around it is halved while that could pay.
e. **Latency.** The wanted size keeps the 95th percentile under the target, by the model and the
   noise that was seen. A target that even a single record misses is given up: batches are then so
   large that they take a quarter more than a single record, but not larger than the first one.
f. **Settled.** Once the wanted size was run often enough, or after `MOST_SAMPLES` batches, the
   size stays. A moving average [4]_ of measured by predicted cost, in which no batch counts more
   than twofold, tells drift from noise. Batches above the target fill a leaky bucket that one in
   thirty keeps level; when it is full, the size shrinks by a tenth. Outliers do not count there:
   smaller batches have them too.
g. **Again.** When the cost has drifted, and otherwise after `RECHECK` batches, the search starts
   over at an eighth of the size. Nothing that was seen before then counts.

References
----------
.. [1] Apache Beam, ``apache_beam/transforms/util.py``, ``_BatchSizeEstimator``.
.. [2] V. Jacobson, "Congestion avoidance and control", SIGCOMM 1988.
.. [3] D. V. Hinkley, "Inference about the change-point in a sequence of random variables",
   Biometrika 57, 1970.
.. [4] S. W. Roberts, "Control chart tests based on geometric moving averages",
   Technometrics 1, 1959.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from operator import itemgetter
from typing import NamedTuple

from dataflare.config import BatchConfig

__all__ = ["TunerState", "next_batch_size", "tune"]

SMALLEST = 10  # below it the stateless rule does not shrink
LARGEST = 1 << 40  # sizes stay exact as floats, and fit where Python counts items

SLACK = 0.02  # the share of the best throughput that a smaller batch is worth
DELAY = 0.25  # what a batch may take beyond a single record when the target cannot be met
MOST_SAMPLES = 26  # batches of a search
CONFIRMATIONS = 3  # batches of the wanted size that end it, without noise
PER_NOISE = 40  # and so many more per unit of noise
RISE = 0.03  # the least rise of the cost per record that is looked at
SIGNIFICANT = 3.0  # standard deviations that a rise must explain
OUTLIER = 3.0  # times the cost that the others predict
PRIOR_NOISE = 0.04  # what is assumed before there are batches enough to tell
P95 = 1.9  # standard deviations: 1.645 for the 95th percentile, and room for outliers
DRIFT = 1.3  # the change of cost, as a factor beyond noise, after which the search starts over
GAIN = 0.07  # the weight of a batch in the running mean
FULL = 2.4  # batches above the target in a short time after which the size shrinks
LEAK = 1 / 30  # how much of one a batch below the target makes up for; outliers have the rest
SHRINK = 0.9
RECHECK = 1000  # batches after which a search starts over in any case,
RECHECK_SECONDS = 1.0  # but not sooner than this, or the searches would be felt
CHEAPEST, DEAREST = 1e-12, 1e9  # seconds per record; keeps squares and their inverses finite

_Sample = tuple[int, float]
_size_of = itemgetter(0)
_new = tuple.__new__  # a third of the time of TunerState(...)


def next_batch_size(
    current_size: int, latency: float, throughput: float, config: BatchConfig
) -> int:
    """The size of the next batch, by the last one alone.

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


class TunerState(NamedTuple):
    """What `tune` knows; ``TunerState(config.default_batch_size)`` knows nothing yet.

    While it searches, `samples` grow and the fields below `settled` mean nothing. Once settled,
    `samples` are empty and ``overhead / size + cost`` is above 0.

    Parameters
    ----------
    size : int
        Records that the next batch should have.
    samples : tuple of (int, float)
        Records and seconds per record of the batches of this search, by size, then by age.
    settled : bool
        Whether the search is over.
    overhead, cost : float
        Seconds per batch, seconds per record.
    band : float
        The factor that `drift` must reach, up or down, for a new search.
    drift : float
        Running mean of the measured cost by the predicted one.
    late : float
        Batches above the target that were no outliers, less those made up for.
    left : int
        Batches until the next search.
    """

    size: int
    samples: tuple[_Sample, ...] = ()
    settled: bool = False
    overhead: float = 0.0
    cost: float = 0.0
    band: float = 1.0
    drift: float = 1.0
    late: float = 0.0
    left: int = 0


def tune(
    state: TunerState, size: int, latency: float, throughput: float, config: BatchConfig
) -> TunerState:
    """What to know after a batch, the size of the next one included.

    A pure function: the same arguments give an equal state. It takes about a microsecond once
    settled, and some tens of them for each batch of a search.

    Parameters
    ----------
    state : TunerState
        What was known before.
    size : int
        Records that the batch really had; may be less than ``state.size``, and counts as what it
        is.
    latency : float
        Seconds it took, to hold against ``config.target_latency``.
    throughput : float
        Records per second, to be made as large as possible. Where it is no positive number,
        `size` by `latency` is taken.
    config : BatchConfig

    Returns
    -------
    TunerState
        ``state.size`` is at least 1 and at most ``config.max_batch_size``.
    """
    wanted, _, settled, overhead, each, band, drift, late, left = state
    most = config.max_batch_size
    if not 1 <= size <= LARGEST:
        size = min(max(size, 1), LARGEST)
    if 0.0 < throughput < math.inf:
        cost = 1.0 / throughput
    elif latency > 0.0:
        cost = latency / size
    elif latency == 0.0 and not settled:  # too fast for the clock
        return state._replace(size=min(2 * size, most, LARGEST))
    else:
        return state._replace(size=min(max(wanted, 1), most, LARGEST))
    if not CHEAPEST < cost < DEAREST:
        cost = min(max(cost, CHEAPEST), DEAREST)
    if not settled:
        return _search(state, size, cost, config, min(most, LARGEST))
    ratio = cost / ((overhead / size + each) * drift)
    drift *= 1.0 - GAIN + GAIN * (ratio if 0.5 < ratio < 2.0 else 0.5 if ratio <= 0.5 else 2.0)
    left -= 1
    if latency > config.target_latency and ratio < OUTLIER:
        late += 1.0
    elif late > 0.0:
        late = late - LEAK if late > LEAK else 0.0
    if left <= 0 or drift >= band or drift * band <= 1.0:
        start = max(wanted // 8, min(config.default_batch_size, wanted // 2), 1)
        return TunerState(min(start, most))
    if late >= FULL:
        late = 0.0
        if overhead + each < config.target_latency:  # else it was given up
            wanted = max(int(min(size, wanted) * SHRINK), 1)
    if wanted > most:
        wanted = most
    return _new(TunerState, (wanted, (), True, overhead, each, band, drift, late, left))


def _search(
    state: TunerState, size: int, cost: float, config: BatchConfig, most: int
) -> TunerState:
    """One more sample: the size to run next, or the end of the search."""
    samples = list(state.samples)
    samples.insert(bisect_right(samples, size, key=_size_of), (size, cost))
    curve = _fit(samples)
    first = min(config.default_batch_size, most)
    limit = _within(config.target_latency, curve, first)
    wanted = _wanted(curve, samples, config, first, limit, most)
    close = sum([0.9 * wanted <= n <= 1.1 * wanted for n, _ in samples])
    smallest, largest = samples[0][0], samples[-1][0]
    reachable = min(limit, most)
    following = wanted
    if len(samples) < MOST_SAMPLES:
        between = math.isqrt(curve.good * curve.bad)
        if curve.overhead + curve.cost > config.target_latency and smallest > 1:
            following = 1  # before the target is given up, one record must have missed it
        elif wanted < smallest:
            pass
        elif len(samples) < 3 and smallest > first // 4 > 0:
            following = first // 4
        elif 0 < curve.bad <= reachable and curve.beyond < min(close, 2 + 20 * curve.noise):
            following = curve.bad  # was that really a rise, or an outlier?
        elif curve.bad and wanted == smallest > 1:
            following = smallest // 2
        elif (
            wanted == curve.good
            and between <= reachable
            and curve.bad > 1.2 * curve.good
            and curve.overhead > SLACK * curve.cost * curve.good
        ):
            following = between
        elif wanted > 2 * largest:
            following = 2 * largest
        elif close < CONFIRMATIONS + int(PER_NOISE * curve.noise):
            if 0.9 * wanted <= state.size <= 1.1 * wanted:
                following = state.size
        else:
            return _settle(min(wanted, 2 * largest), curve)
        return TunerState(min(max(following, 1), most), tuple(samples))
    return _settle(min(wanted, 2 * largest), curve)


def _settle(size: int, curve: _Curve) -> TunerState:
    seconds = curve.overhead + curve.cost * size
    left = max(RECHECK, int(RECHECK_SECONDS / max(seconds, 1e-9)))
    band = DRIFT * math.exp(min(curve.noise, 10.0))
    return TunerState(size, (), True, curve.overhead, curve.cost, band, 1.0, 0.0, left)


class _Curve(NamedTuple):
    """What the samples of a search say.

    ``good < bad`` are the sizes around a rise of the cost, both 0 if there is none; the line was
    then drawn through the samples up to `good`, and `beyond` samples lie past it.
    """

    overhead: float  # seconds per batch
    cost: float  # seconds per record; not both are 0
    doubt: float  # standard error of the overhead; infinity if a single size was seen
    noise: float  # standard deviation of the logarithm of the cost
    good: int
    bad: int
    beyond: int


def _within(target: float, curve: _Curve, first: int) -> int:
    """The largest size that keeps the target."""
    room = target * math.exp(-P95 * min(curve.noise, 10.0))
    overhead, cost = curve.overhead, curve.cost
    if overhead + cost > room:  # not even one record does
        size = 1.0 + DELAY * (overhead + cost) / cost if cost > 0.0 else math.inf
        return int(min(size, first))
    return int(min((room - overhead) / cost, LARGEST)) if cost > 0.0 else LARGEST


def _wanted(
    curve: _Curve, samples: list[_Sample], config: BatchConfig, first: int, limit: int, most: int
) -> int:
    """The size that the samples speak for, run already or not."""
    overhead, cost = curve.overhead, curve.cost
    # Of a single size, all may have been overhead.
    at_most = overhead + curve.doubt if curve.doubt < math.inf else cost * samples[-1][0]
    knee = at_most / (SLACK * cost) if cost > 0.0 else math.inf
    if knee >= LARGEST or config.min_throughput * (overhead / max(knee, first) + cost) > 1.0:
        size = LARGEST  # too thin: no throughput to spare
    else:
        size = max(int(knee), first)
    if curve.bad:
        size = min(size, _cheapest(samples, curve))
    return max(min(size, limit, most), 1)


def _cheapest(samples: list[_Sample], curve: _Curve) -> int:
    """The largest size before the rise that is not clearly dearer than the cheapest one."""
    costs = [cost for size, cost in samples if size <= curve.good]
    medians = [_low_median(sorted(costs[max(i - 1, 0) : i + 2])) for i in range(len(costs))]
    enough = min(medians) * math.exp(max(SLACK / 2, curve.noise))
    for (size, _), median in zip(reversed(samples[: len(costs)]), reversed(medians), strict=True):
        if median <= enough:
            return size
    return curve.good


def _fit(samples: list[_Sample]) -> _Curve:
    noise = _noise(samples)
    cut = _change_point(samples, noise)
    good = bad = beyond = 0
    before = samples
    if cut:
        good, bad, beyond = samples[cut - 1][0], samples[cut][0], len(samples) - cut
        before = samples[:cut]
    overhead, cost, error = _line(before)
    kept = [(n, c) for n, c in before if c < OUTLIER * (overhead / n + cost)]
    if len(before) > len(kept) >= len(before) / 2:
        overhead, cost, error = _line(kept)
    else:
        kept = before
    # The weights favour samples that came out low: bring the line back to their middle.
    level = _low_median(sorted([c / (overhead / n + cost) for n, c in kept]))
    return _Curve(overhead * level, cost * level, noise * error * level, noise, good, bad, beyond)


def _line(samples: list[_Sample]) -> tuple[float, float, float]:
    """Overhead, cost, and the overhead's standard error per unit of noise."""
    scale = samples[0][0]
    sw = sx = sxx = sy = sxy = 0.0
    for n, c in samples:
        x, y = scale / n, 1.0 / c
        w = y * y
        sw += w
        sx += w * x
        sxx += w * x * x
        sy += y
        sxy += x * y
    return _solve(sw, sx, sxx, sy, sxy, scale)


def _solve(
    sw: float, sx: float, sxx: float, sy: float, sxy: float, scale: int
) -> tuple[float, float, float]:
    """The line of these sums, neither part below 0."""
    determinant = sw * sxx - sx * sx
    if determinant <= 1e-9 * sw * sxx:  # a single size
        return 0.0, sy / sw, math.inf
    overhead = (sw * sxy - sx * sy) / determinant
    cost = (sxx * sy - sx * sxy) / determinant
    if overhead < 0.0:
        overhead, cost = 0.0, sy / sw
    elif cost < 0.0:
        overhead, cost = sxy / sxx, 0.0
    return overhead * scale, cost, math.sqrt(sw / determinant) * scale


def _noise(samples: list[_Sample]) -> float:
    """The standard deviation of the logarithm of the cost.

    From how far each sample lies off the straight line between its neighbours, which takes out any
    slope; from the median of that, which takes out outliers and rises.
    """
    if len(samples) < 3:
        return PRIOR_NOISE
    points = [(math.log(n), math.log(c)) for n, c in samples]
    inner = zip(points, points[1:], points[2:], strict=False)
    points[1:-1] = [b for a, b, c in inner if b[1] < max(a[1], c[1]) + math.log(OUTLIER)]
    squares = []
    for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
        share = (x1 - x0) / (x2 - x0) if x2 > x0 else 0.5
        off = y1 - y0 - share * (y2 - y0)
        squares.append(off * off / (1.0 + share * share + (1.0 - share) * (1.0 - share)))
    if not squares:
        return PRIOR_NOISE
    squares.sort()
    count = len(squares)
    variance = (squares[count // 2] + squares[(count - 1) // 2]) / 2.0 / 0.455  # of chi squared
    weight = 4.0 / count  # of what was assumed: fades as samples come in
    return math.sqrt((variance * count + PRIOR_NOISE * PRIOR_NOISE * weight) / (count + weight))


def _change_point(samples: list[_Sample], noise: float) -> int:
    """The index of the first sample past a rise of the cost, or 0."""
    count = len(samples)
    tail: list[float] = []
    medians = [0.0] * count
    for k in range(count - 1, 0, -1):
        insort(tail, samples[k][1])
        medians[k] = _low_median(tail)
    scale = samples[0][0]
    sw = sx = sxx = sy = sxy = 0.0
    lowest, second = math.inf, math.inf
    best, cut, middle = (SIGNIFICANT * noise) ** 2, 0, 0.0
    for k in range(1, count):
        n, c = samples[k - 1]
        x, y = scale / n, 1.0 / c
        w = y * y
        sw += w
        sx += w * x
        sxx += w * x * x
        sy += y
        sxy += x * y
        if c < second:
            lowest, second = min(c, lowest), max(c, lowest)
        # A rise is above what was reached before, not only above what the line promised.
        reached = math.sqrt(lowest * second) if k > 1 else c
        size = samples[k][0]
        if size == n or medians[k] <= reached:
            continue
        overhead, cost, _ = _solve(sw, sx, sxx, sy, sxy, scale)
        level = max(overhead / size + cost, reached)
        rise = math.log(medians[k] / level)
        if rise > RISE and rise * rise > best * (1.0 / k + 1.0 / (count - k)):
            best = rise * rise / (1.0 / k + 1.0 / (count - k))
            cut, middle = k, level * math.exp(rise / 2.0)
    return _boundary(samples, cut, middle) if cut else 0


def _boundary(samples: list[_Sample], cut: int, middle: float) -> int:
    """The cut, moved to where the cost crosses the middle of the rise.

    Medians look past a few sizes that are still good, or bad already.
    """
    moved = cut
    while moved > 0 and _median_of(samples, moved - 1) > middle:
        moved = bisect_left(samples, samples[moved - 1][0], key=_size_of)
    if 0 < moved < cut:
        return moved
    while cut < len(samples) and _median_of(samples, cut) < middle:
        cut = bisect_right(samples, samples[cut][0], key=_size_of)
    return cut if cut < len(samples) else 0


def _median_of(samples: list[_Sample], index: int) -> float:
    """The lower median of the costs at the size of a sample."""
    size = samples[index][0]
    start = bisect_left(samples, size, key=_size_of)
    end = bisect_right(samples, size, key=_size_of)
    return _low_median(sorted([cost for _, cost in samples[start:end]]))


def _low_median(ordered: list[float]) -> float:
    return ordered[(len(ordered) - 1) // 2]
