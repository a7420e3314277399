"""The memory pool: size classes, loans, misuse, exact counts, resident memory."""

import gc
import subprocess
import sys
import threading
import weakref
from datetime import timedelta
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest

from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize

TINY, SMALL, MEDIUM, LARGE, HUGE = BufferSize
FEW = MemoryPoolConfig(
    max_tiny_buffers=3,
    max_small_buffers=2,
    max_medium_buffers=2,
    max_large_buffers=1,
    max_huge_buffers=1,
)


@pytest.fixture
def pool(backend: SimpleNamespace):
    """A pool of a few slabs."""
    with backend.MemoryPool(FEW) as pool:
        yield pool


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, TINY), (1, TINY), (255, TINY), (256, TINY),
        (257, SMALL), (4096, SMALL),
        (4097, MEDIUM), (65536, MEDIUM),
        (65537, LARGE), (1 << 20, LARGE),
        ((1 << 20) + 1, HUGE), (4 << 20, HUGE),
    ],
)  # fmt: skip
def test_a_request_takes_the_smallest_class_that_holds_it(pool, size, expected) -> None:
    """Size, length and capacity at the boundaries of the classes."""
    buffer = pool.get_buffer(size)
    assert buffer.size_class is expected
    assert len(buffer) == buffer.size == len(memoryview(buffer)) == size
    assert buffer.capacity == expected
    assert not buffer.returned
    assert pool.get_stats().classes[expected].hits == 1


def test_more_than_huge_is_served_exactly_and_counted_as_a_miss(pool) -> None:
    """A request that no class holds gets memory of its own, in the totals only."""
    size = HUGE + 1
    buffer = pool.get_buffer(size)
    view = memoryview(buffer)
    view[0], view[-1] = 1, 2
    assert (len(view), buffer.capacity, buffer.size_class) == (size, size, None)
    view.release()
    stats = pool.get_stats()
    assert (stats.allocations, stats.hits, stats.misses, stats.in_use) == (1, 0, 1, 1)
    assert (stats.bytes_requested, stats.bytes_allocated, stats.bytes_in_use) == (size, size, size)
    assert all(entry.allocations == 0 for entry in stats.classes.values())
    pool.return_buffer(buffer)
    stats = pool.get_stats()
    assert (stats.returns, stats.in_use, stats.bytes_in_use) == (1, 0, 0)


def test_past_the_cap_a_request_is_served_exactly_and_counted_as_a_miss(pool) -> None:
    """With every slab of a class out, a request is unpooled; when one is back, it is a hit."""
    out = [pool.get_buffer(100) for _ in range(4)]
    assert [buffer.size_class for buffer in out] == [TINY, TINY, TINY, None]
    assert out[3].capacity == 100
    tiny = pool.get_stats().classes[TINY]
    assert (tiny.capacity, tiny.hits, tiny.misses, tiny.in_use) == (3, 3, 1, 4)
    assert (tiny.cached, tiny.peak_in_use, tiny.bytes_requested) == (0, 4, 400)
    pool.return_buffer(out[3])
    assert pool.get_stats().classes[TINY].cached == 0
    pool.return_buffer(out[0])
    assert pool.get_buffer(100).size_class is TINY


def test_a_class_of_no_slabs_serves_everything_unpooled(backend) -> None:
    """A maximum of 0 is allowed."""
    none = dict.fromkeys(("tiny", "small", "medium", "large", "huge"), 0)
    with backend.MemoryPool(
        MemoryPoolConfig(**{f"max_{name}_buffers": count for name, count in none.items()})
    ) as pool:
        pool.warmup()
        buffers = [pool.get_buffer(size) for size in BufferSize]
        assert [buffer.size_class for buffer in buffers] == [None] * 5
        assert pool.trim(0) == 0
        stats = pool.get_stats()
        assert (stats.hits, stats.misses, stats.bytes_reserved) == (0, 5, 0)
        assert (stats.cache_hit_rate, stats.memory_efficiency) == (0.0, 1.0)


@pytest.mark.parametrize("size", [-1, -(1 << 40)])
def test_a_negative_size_is_refused(pool, size) -> None:
    """ValueError, and nothing is counted."""
    with pytest.raises(ValueError, match="cannot be negative"):
        pool.get_buffer(size)
    assert pool.get_stats().allocations == 0


@pytest.mark.parametrize("size", [None, 1.0, "256", b"1", np.float64(3)])
def test_a_size_that_is_no_integer_is_refused(pool, size) -> None:
    """TypeError, and nothing is counted."""
    with pytest.raises(TypeError):
        pool.get_buffer(size)
    assert pool.get_stats().allocations == 0


def test_a_size_may_be_anything_with_an_index(pool) -> None:
    """`__index__` is honoured, of NumPy's integers and of True too."""
    assert len(pool.get_buffer(np.int32(300))) == 300
    assert len(pool.get_buffer(True)) == 1
    assert len(pool.get_buffer(TINY)) == 256


def test_a_size_beyond_all_memory_is_a_memory_error(pool) -> None:
    """What the system cannot give raises, and no loan is counted as out."""
    with pytest.raises(MemoryError):
        pool.get_buffer((1 << 62) - 1)
    assert pool.get_stats().in_use == 0
    with pytest.raises((MemoryError, OverflowError)):
        pool.get_buffer(1 << 70)


def test_a_buffer_is_writable_by_memoryview_numpy_and_readinto(pool) -> None:
    """Three ways to write, one memory."""
    buffer = pool.get_buffer(8)
    memoryview(buffer)[:] = b"abcdefgh"
    assert bytes(buffer) == b"abcdefgh"
    array = np.frombuffer(buffer, np.uint8)
    array[0] = ord("X")
    del array
    assert BytesIO(b"12").readinto(buffer) == 2
    assert bytes(buffer) == b"12cdefgh"
    view = memoryview(buffer)
    assert (view.format, view.itemsize, view.ndim, view.readonly) == ("B", 1, 1, False)
    assert (view.shape, view.strides, view.c_contiguous) == ((8,), (1,), True)


def test_a_buffer_of_no_bytes_is_a_buffer(pool) -> None:
    """Length 0 works like any other."""
    with pool.get_buffer(0) as buffer:
        assert bytes(buffer) == b""
        assert np.frombuffer(memoryview(buffer).tobytes(), np.uint8).shape == (0,)
    assert buffer.returned


def test_leaving_the_context_returns_the_buffer(pool) -> None:
    """Once, also if it was returned inside, also when the block raised."""
    with pool.get_buffer(10) as buffer:
        assert pool.get_stats().in_use == 1
    assert buffer.returned
    with pool.get_buffer(10) as buffer:
        pool.return_buffer(buffer)
    with pytest.raises(KeyError), pool.get_buffer(10) as buffer:
        raise KeyError
    assert buffer.returned
    stats = pool.get_stats()
    assert (stats.allocations, stats.returns, stats.in_use) == (3, 3, 0)


def test_slabs_are_handed_out_last_in_first_out(pool) -> None:
    """The warmest slab goes first, with what its last user left in it."""
    first, second = pool.get_buffer(100), pool.get_buffer(100)
    memoryview(first)[:] = b"1" * 100
    memoryview(second)[:] = b"2" * 100
    pool.return_buffer(second)
    pool.return_buffer(first)
    assert bytes(pool.get_buffer(100)) == b"1" * 100
    one, two = pool.get_buffer(100), pool.get_buffer(100)
    assert bytes(one) == b"1" * 100
    assert bytes(two) == b"2" * 100


def test_returning_twice_is_refused(pool) -> None:
    """The slab is not in the free list twice: two borrowers never share it."""
    buffer = pool.get_buffer(10)
    pool.return_buffer(buffer)
    before = pool.get_stats()
    with pytest.raises(PluginMemoryError, match="was returned"):
        pool.return_buffer(buffer)
    assert pool.get_stats() == before
    one, two = pool.get_buffer(10), pool.get_buffer(10)
    memoryview(one)[:], memoryview(two)[:] = b"1" * 10, b"2" * 10
    assert (bytes(one), bytes(two)) == (b"1" * 10, b"2" * 10)


def test_returning_to_another_pool_is_refused(backend, pool) -> None:
    """Both pools and the buffer stay as they were."""
    with backend.MemoryPool(FEW) as other:
        buffer = pool.get_buffer(10)
        before = pool.get_stats(), other.get_stats()
        with pytest.raises(PluginMemoryError, match="another memory pool"):
            other.return_buffer(buffer)
        assert (pool.get_stats(), other.get_stats()) == before
        assert not buffer.returned
        pool.return_buffer(buffer)
        with pytest.raises(PluginMemoryError, match="another memory pool"):
            other.return_buffer(buffer)


@pytest.mark.parametrize("wrong", [None, b"bytes", object()])
def test_returning_something_else_is_refused(pool, wrong) -> None:
    """TypeError for what is no buffer."""
    with pytest.raises(TypeError):
        pool.return_buffer(wrong)


def test_returning_while_a_view_is_alive_is_refused(pool) -> None:
    """The message has the number of views; the buffer still works, and goes back after them."""
    buffer = pool.get_buffer(10)
    view, array = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    before = pool.get_stats()
    with pytest.raises(PluginMemoryError, match=r"while 2 view\(s\)"):
        pool.return_buffer(buffer)
    view.release()
    with pytest.raises(PluginMemoryError, match=r"while 1 view\(s\)"):
        pool.return_buffer(buffer)
    assert pool.get_stats() == before
    array[:] = 7
    del array
    assert bytes(buffer) == b"\7" * 10
    pool.return_buffer(buffer)
    assert pool.get_stats().in_use == 0


def test_leaving_the_context_while_a_view_is_alive_is_refused(pool) -> None:
    """The error comes from the end of the block, and the buffer stays out."""
    buffer = pool.get_buffer(10)
    view = None
    with pytest.raises(PluginMemoryError, match="view"), buffer:
        view = memoryview(buffer)
    assert not buffer.returned
    view.release()


def test_use_after_return_is_refused(pool) -> None:
    """Neither a view nor a context; length and repr still answer."""
    buffer = pool.get_buffer(10)
    pool.return_buffer(buffer)
    with pytest.raises(PluginMemoryError, match="was returned"):
        memoryview(buffer)
    with pytest.raises(PluginMemoryError, match="was returned"):
        np.frombuffer(buffer, np.uint8)
    with pytest.raises(PluginMemoryError, match="was returned"), buffer:
        pass
    assert (len(buffer), buffer.returned, repr(buffer)) == (10, True, "Buffer(10 bytes, returned)")


def test_a_stale_reference_never_reaches_the_next_borrower(pool) -> None:
    """The object of a returned buffer is not handed out again while it is held."""
    stale = pool.get_buffer(10)
    pool.return_buffer(stale)
    fresh = pool.get_buffer(10)
    assert fresh is not stale
    with pytest.raises(PluginMemoryError):
        pool.return_buffer(stale)
    assert not fresh.returned


def test_a_dropped_buffer_goes_home(pool) -> None:
    """Pooled and unpooled ones, at once, and a view keeps its buffer out."""
    for size in (10, HUGE + 1):
        buffer = pool.get_buffer(size)
        view = memoryview(buffer)
        del buffer
        view[0] = 1
        assert pool.get_stats().in_use == 1
        del view
        assert pool.get_stats().in_use == 0
    stats = pool.get_stats()
    assert (stats.returns, stats.bytes_in_use, stats.classes[TINY].cached) == (2, 0, 3)


def test_a_buffer_keeps_its_pool_alive(backend) -> None:
    """A pool that nobody else holds lives as long as its buffers."""
    buffer = backend.MemoryPool(FEW).get_buffer(100)
    gc.collect()
    memoryview(buffer)[:] = b"x" * 100
    assert bytes(buffer) == b"x" * 100


def test_buffers_in_a_cycle_go_home(pool) -> None:
    """The garbage collector returns what only a cycle holds."""
    cycle: list = [pool.get_buffer(10)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert pool.get_stats().in_use == 0


def test_views_in_a_cycle_go_in_silence(pool, monkeypatch) -> None:
    """Whichever the garbage collector takes apart first, the buffer or its view."""
    noted: list = []
    monkeypatch.setattr(sys, "unraisablehook", noted.append)
    buffer = pool.get_buffer(10)
    cycle: list = [memoryview(buffer)]
    cycle.append(cycle)
    del buffer, cycle
    gc.collect()
    assert (noted, pool.get_stats().in_use) == ([], 0)


def test_what_the_garbage_collector_calls_may_use_the_pool(pool) -> None:
    """A finalizer that takes and returns buffers, at any moment of another call."""

    class Holder:
        def __init__(self) -> None:
            self.buffer = pool.get_buffer(100)
            self.itself = self

        def __del__(self) -> None:
            pool.return_buffer(self.buffer)
            with pool.get_buffer(10) as other:
                memoryview(other)[:] = b"x" * 10
            pool.trim(0)
            pool.get_stats()

    def use() -> None:
        threshold = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(100):
                Holder()
                with pool.get_buffer(50):
                    repr(pool)
                pool.get_stats()
                pool.trim(0)
        finally:
            gc.set_threshold(*threshold)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    gc.collect()
    assert (pool.get_stats().in_use, pool.get_stats().cached) == (0, 9)


def test_statistics_are_exact(pool) -> None:
    """Every field after a small history."""
    a, b = pool.get_buffer(100), pool.get_buffer(300)
    c = pool.get_buffer(HUGE + 10)
    pool.return_buffer(a)
    pool.return_buffer(c)
    d = pool.get_buffer(256)
    stats = pool.get_stats()
    assert (stats.allocations, stats.returns, stats.hits, stats.misses) == (4, 2, 3, 1)
    assert (stats.in_use, stats.peak_in_use) == (2, 3)
    assert stats.cached == 3 + 2 + 2 + 1 + 1 - 2
    assert stats.bytes_requested == 100 + 300 + HUGE + 10 + 256
    assert stats.bytes_allocated == 256 + 4096 + HUGE + 10 + 256
    assert stats.bytes_in_use == 4096 + 256
    assert stats.peak_bytes_in_use == 256 + 4096 + HUGE + 10
    assert stats.bytes_reserved == 3 * TINY + 2 * SMALL + 2 * MEDIUM + LARGE + HUGE
    assert stats.cache_hit_rate == 3 / 4
    assert stats.memory_efficiency == stats.bytes_requested / stats.bytes_allocated
    assert list(stats.classes) == list(BufferSize)
    tiny = stats.classes[TINY]
    assert (tiny.allocations, tiny.returns, tiny.hits, tiny.misses) == (2, 1, 2, 0)
    assert (tiny.in_use, tiny.cached, tiny.peak_in_use, tiny.bytes_requested) == (1, 2, 1, 356)
    assert b.size_class is SMALL
    assert d.size_class is TINY


def test_statistics_of_an_unused_pool_are_zero(pool) -> None:
    """No division by zero: both ratios are 0.0."""
    stats = pool.get_stats()
    assert (stats.allocations, stats.cache_hit_rate, stats.memory_efficiency) == (0, 0.0, 0.0)


def test_without_metrics_there_are_no_statistics(backend) -> None:
    """The pool works all the same."""
    with backend.MemoryPool(MemoryPoolConfig(max_tiny_buffers=1, enable_metrics=False)) as pool:
        with pool.get_buffer(10) as buffer, pool.get_buffer(10) as unpooled:
            assert (buffer.size_class, unpooled.size_class) == (TINY, None)
            assert repr(pool).startswith("MemoryPool(2 in use,")
        with pytest.raises(PluginMemoryError):
            pool.return_buffer(buffer)
        assert pool.get_stats() is None


def test_a_closed_pool_lends_nothing(backend) -> None:
    """Buffers that are out stay valid and can still come back; closing twice is fine."""
    pool = backend.MemoryPool(FEW)
    assert not pool.closed
    buffer, dropped = pool.get_buffer(10), pool.get_buffer(10)
    memoryview(buffer)[:] = b"0123456789"
    pool.close()
    pool.close()
    assert pool.closed
    with pytest.raises(PluginMemoryError, match="closed"):
        pool.get_buffer(10)
    with pytest.raises(PluginMemoryError, match="closed"):
        pool.warmup()
    assert bytes(buffer) == b"0123456789"
    pool.return_buffer(buffer)
    del dropped
    assert pool.get_stats().in_use == 0
    assert repr(pool).startswith("MemoryPool(closed,")


def test_repr_says_what_is_out(pool) -> None:
    """Class or unpooled, and how many are in use."""
    buffer, big = pool.get_buffer(300), pool.get_buffer(HUGE + 1)
    assert repr(buffer) == "Buffer(300 bytes, SMALL)"
    assert repr(pool.get_buffer(1)) == "Buffer(1 byte, TINY)"
    assert repr(big) == f"Buffer({HUGE + 1} bytes, unpooled)"
    assert repr(pool) == f"MemoryPool(2 in use, {pool.get_stats().bytes_reserved} bytes reserved)"


def test_a_pool_takes_its_configuration_and_nothing_else(backend) -> None:
    """The default is the default configuration; something else is refused."""
    assert backend.MemoryPool().config == MemoryPoolConfig()
    with pytest.raises(TypeError, match="MemoryPoolConfig"):
        backend.MemoryPool({"max_tiny_buffers": 1})


def test_buffers_come_from_pools_alone(backend) -> None:
    """The class itself makes none."""
    with pytest.raises(TypeError, match="get_buffer"):
        backend.Buffer()


def test_pools_are_not_kept_alive_by_the_clean_up_thread(backend) -> None:
    """A pool that is dropped is gone at once."""

    pool = backend.MemoryPool(FEW)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


def test_trim_gives_back_what_is_free_and_not_what_is_out(pool) -> None:
    """Bytes given back, contents of live buffers, and nothing to give the second time."""
    pool.warmup()
    kept = pool.get_buffer(MEDIUM)
    memoryview(kept)[:] = b"k" * MEDIUM
    freed = pool.trim(0)
    # The three TINY slabs share one page; trimming counts slabs, not the rest of the page.
    assert freed == 3 * TINY + 2 * SMALL + MEDIUM + LARGE + HUGE
    assert pool.trim(0) == 0
    assert bytes(kept) == b"k" * MEDIUM
    pool.return_buffer(kept)
    assert pool.trim(0) == MEDIUM


def test_tiny_slabs_keep_their_page_while_one_of_them_is_out(backend) -> None:
    """A page of sixteen TINY slabs is given back only when all of them are free."""
    with backend.MemoryPool(MemoryPoolConfig(max_tiny_buffers=64)) as pool:
        buffers = [pool.get_buffer(TINY) for _ in range(64)]
        for number, buffer in enumerate(buffers):
            memoryview(buffer)[:] = bytes([number]) * TINY
        for buffer in buffers[1:]:
            pool.return_buffer(buffer)
        assert pool.trim(0) == 3 * 4096
        assert bytes(buffers[0]) == b"\0" * TINY
        pool.return_buffer(buffers[0])
        assert pool.trim(0) == 4096


def test_what_trim_gave_back_reads_as_zeros(pool) -> None:
    """The pages are really gone: new ones are zero."""
    with pool.get_buffer(LARGE) as buffer:
        memoryview(buffer)[:] = b"x" * LARGE
    assert pool.trim(0) == LARGE
    assert bytes(pool.get_buffer(LARGE)) == bytes(LARGE)


def test_trim_spares_what_is_not_idle_long_enough(pool) -> None:
    """With an idle time that cannot have passed nothing is given back."""
    pool.warmup()
    assert pool.trim(timedelta(hours=1)) == 0
    assert pool.trim(float("inf")) == 0
    assert pool.trim() == 0
    assert pool.trim(timedelta(0)) > 0
    with pytest.raises(ValueError, match="max_idle_time"):
        pool.trim(-1)
    with pytest.raises(TypeError, match="max_idle_time"):
        pool.trim("0")


def test_warmup_leaves_buffers_in_use_alone(pool) -> None:
    """Not a byte of a live buffer changes, in any class."""
    buffers = [pool.get_buffer(size) for size in BufferSize]
    for buffer in buffers:
        memoryview(buffer)[:] = b"w" * len(buffer)
    pool.warmup()
    assert all(bytes(buffer) == b"w" * len(buffer) for buffer in buffers)


RESIDENT = """
import sys, time
from dataflare.config import MemoryPoolConfig
from dataflare.{room}.pool import MemoryPool

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

MIB = 1 << 20
config = MemoryPoolConfig(
    max_tiny_buffers=65536, max_small_buffers=4096, max_medium_buffers=256, max_large_buffers=16,
    max_huge_buffers=4, cleanup_interval={interval}, max_idle_time=2,
)  # five times 16 MiB
pool = MemoryPool(config)
start = resident()
pool.warmup()
warm = resident()
assert warm - start > 76 * MIB, ("warmup made too little resident", warm - start)
{action}
while resident() > warm - 76 * MIB:  # the parent's time limit ends a wait in vain
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("interval", "action"),
    [
        pytest.param(3600, "assert pool.trim(0) == 80 * MIB", id="trim"),
        pytest.param(0.05, "", id="idle-thread"),
        pytest.param(3600, "pool.close()", id="close"),
    ],
)
def test_resident_memory_rises_with_warmup_and_falls(backend, interval, action, tmp_path) -> None:
    """The process's own resident set, in a process of its own: 80 MiB up, and down again."""
    room = "_compiled" if backend.name == "cython" else "_pure"
    program = RESIDENT.format(room=room, interval=interval, action=action)
    command = [sys.executable, "-c", program]
    # Elsewhere than in the source tree, which would be imported instead of what is installed.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_threads_never_share_a_slab_and_all_is_counted(backend) -> None:
    """Four threads take, fill, check and give in all three ways; the counts come out exact."""
    rounds, workers = 400, 4
    wrong = []
    with backend.MemoryPool(FEW) as pool:

        def hammer(mark: int) -> None:
            for turn in range(rounds):
                buffers = [pool.get_buffer(size) for size in (10, 300, 5000, 256)]
                for buffer in buffers:
                    memoryview(buffer)[:] = bytes([mark]) * len(buffer)
                wrong.extend(buffer for buffer in buffers if set(bytes(buffer)) != {mark})
                pool.return_buffer(buffers.pop())
                with buffers.pop():
                    pass
                if turn % 50 == 0:
                    pool.trim(0)

        threads = [threading.Thread(target=hammer, args=(mark,)) for mark in range(1, workers + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = pool.get_stats()
    assert wrong == []
    assert stats.allocations == stats.returns == stats.hits + stats.misses == rounds * workers * 4
    assert (stats.in_use, stats.bytes_in_use, stats.cached) == (0, 0, 9)
    assert stats.bytes_requested == rounds * workers * (10 + 300 + 5000 + 256)


def test_a_returned_slab_is_handed_out_once_when_threads_return_it_together(backend) -> None:
    """Of several threads that return one buffer only one succeeds."""
    with backend.MemoryPool(FEW) as pool:
        for _ in range(100):
            buffer = pool.get_buffer(10)
            barrier = threading.Barrier(3)
            outcomes = []

            def give(buffer=buffer, barrier=barrier, outcomes=outcomes) -> None:
                barrier.wait()
                try:
                    pool.return_buffer(buffer)
                    outcomes.append("returned")
                except PluginMemoryError:
                    outcomes.append("refused")

            threads = [threading.Thread(target=give) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(outcomes) == ["refused", "refused", "returned"]
        stats = pool.get_stats()
        assert (stats.returns, stats.in_use, stats.classes[TINY].cached) == (100, 0, 3)
