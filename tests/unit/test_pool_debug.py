"""Debug mode of the memory pool: what is written where it must not be, and what does not return."""

import ctypes
import gc
import logging
import random
import subprocess
import sys
import threading
import weakref

import pytest

from dataflare._pure import pool as pure_pool
from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize, Loan

TINY, SMALL, MEDIUM, LARGE, HUGE = BufferSize
FEW = MemoryPoolConfig(
    max_tiny_buffers=3,
    max_small_buffers=2,
    max_medium_buffers=2,
    max_large_buffers=1,
    max_huge_buffers=1,
)
LOGGER = "dataflare.pool"
SIZES = [
    0, 1, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537,
    (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1,
]  # fmt: skip


@pytest.fixture
def pool(backend):
    """A pool of a few slabs, in debug mode."""
    with backend.MemoryPool(FEW, debug=True) as pool:
        yield pool


def here() -> str:
    """The place of the line that calls this, as the pool writes it."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def address_of(buffer) -> int:
    """Where a buffer is; no view of it is left."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def write(address: int, value: int = 0x41) -> None:
    """Write one byte, as a faulty C function does."""
    ctypes.memset(address, value, 1)


def said(caplog, level: int) -> list[str]:
    """What the pool's logger said at a level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == LOGGER and record.levelno == level
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["return", "leave"])
def test_one_byte_past_the_end_is_reported_when_the_buffer_returns(pool, size, way) -> None:
    """Of every class, at exact and inexact sizes; the buffer is home and whole all the same."""
    buffer, place = pool.get_buffer(size), here()
    limit = next((limit for limit in BufferSize if size <= limit), None)
    assert (buffer.size_class, buffer.capacity) == (limit, limit or size)
    write(address_of(buffer) + size)
    sentence = (
        f"a buffer of {size} byte{'' if size == 1 else 's'} was written past its end, "
        f"first at offset {size}; it was taken at {place}"
    )
    with pytest.raises(PluginMemoryError) as caught:  # noqa: PT012
        if way == "return":
            pool.return_buffer(buffer)
        else:
            with buffer:
                pass
    assert str(caught.value) == sentence
    assert pool.violations == (sentence,)
    assert buffer.returned
    assert pool.get_stats().in_use == 0
    with pool.get_buffer(size) as again:
        assert bytes(again) == b"\xcd" * size
    pool.trim(0)
    assert pool.violations == (sentence,)


@pytest.mark.parametrize("size", SIZES)
def test_the_guard_is_at_least_64_bytes_behind_the_capacity(pool, size) -> None:
    """Its last byte is watched like its first one, and the offset names it."""
    buffer = pool.get_buffer(size)
    offset = buffer.capacity + 63
    write(address_of(buffer) + offset)
    with pytest.raises(PluginMemoryError, match=f"first at offset {offset};"):
        pool.return_buffer(buffer)


def test_what_an_exception_cannot_tell_goes_to_the_log(pool, caplog) -> None:
    """A buffer that is dropped after an over-run."""
    buffer, place = pool.get_buffer(10), here()
    write(address_of(buffer) + 10)
    del buffer
    (sentence,) = said(caplog, logging.ERROR)
    assert sentence == (
        f"a buffer of 10 bytes was written past its end, first at offset 10; "
        f"it was taken at {place}"
    )
    assert pool.violations == (sentence,)
    assert pool.get_stats().in_use == 0


@pytest.mark.parametrize("size", [1, 256, 4096, 65536, 1 << 20, 4 << 20])
@pytest.mark.parametrize("look", ["take", "trim", "close"])
def test_use_after_return_is_named_with_the_last_place(pool, caplog, size, look) -> None:
    """When the slab is taken again, or at the latest when its pages go; once."""
    pool.return_buffer(pool.get_buffer(size))
    buffer, place = pool.get_buffer(size), here()
    address = address_of(buffer)
    pool.return_buffer(buffer)
    write(address + size - 1)
    sentence = (
        f"a buffer of {size} byte{'' if size == 1 else 's'} was written to after its return, "
        f"first at offset {size - 1}; it was taken at {place}"
    )
    if look == "take":
        with pool.get_buffer(1 if size == 1 else size) as innocent:
            assert bytes(innocent) == b"\xcd" * len(innocent)
    elif look == "trim":
        pool.trim(3600)
    else:
        pool.close()
    pool.trim(0)
    assert said(caplog, logging.ERROR) == [sentence]
    assert pool.violations == (sentence,)


def test_poison_is_what_a_stale_pointer_reads(pool) -> None:
    """A returned slab is full of 0xDD, guard and all; a fresh loan is full of 0xCD."""
    buffer = pool.get_buffer(100)
    assert bytes(buffer) == b"\xcd" * 100
    address = address_of(buffer)
    assert ctypes.string_at(address + 100, 256 - 100 + 64) == b"\xfd" * (256 - 100 + 64)
    pool.return_buffer(buffer)
    assert ctypes.string_at(address, 256 + 64) == b"\xdd" * (256 + 64)


def test_unpooled_loans_are_fresh_and_guarded(pool) -> None:
    """Past the cap of a class too."""
    out = [pool.get_buffer(100) for _ in range(4)]
    assert out[3].size_class is None
    assert bytes(out[3]) == b"\xcd" * 100
    write(address_of(out[3]) + 100)
    for buffer in out[:3]:
        pool.return_buffer(buffer)
    with pytest.raises(PluginMemoryError, match=r"of 100 bytes .* offset 100;"):
        pool.return_buffer(out[3])


def test_trim_and_warmup_are_no_use_after_return(pool, caplog) -> None:
    """Poison that went with its page is not missed, and warming up leaves it alone."""
    for size in (10, 300, 5000, LARGE, HUGE):
        pool.return_buffer(pool.get_buffer(size))
    pool.warmup()
    assert pool.trim(0) > 0
    for size in (10, 300, 5000, LARGE, HUGE):
        pool.return_buffer(pool.get_buffer(size))
    pool.trim(0)
    pool.warmup()
    for size in (10, 300, 5000, LARGE, HUGE):
        pool.return_buffer(pool.get_buffer(size))
    pool.close()
    assert pool.violations == ()
    assert said(caplog, logging.ERROR) == []


def test_warming_up_without_help_from_the_kernel_keeps_the_poison(monkeypatch) -> None:
    """Where every page must be written to, a returned slab is written to with poison."""
    monkeypatch.setattr(pure_pool, "_MADV_POPULATE_WRITE", 1 << 20)
    with pure_pool.MemoryPool(FEW, debug=True) as pool:
        pool.return_buffer(pool.get_buffer(5000))
        pool.warmup()
        pool.return_buffer(pool.get_buffer(5000))
        assert pool.violations == ()


def test_every_buffer_that_is_out_is_known_with_its_place(pool) -> None:
    """Oldest first; one that came back is out of the list."""
    first, place_of_first = pool.get_buffer(10), here()
    gone = pool.get_buffer(20)
    second, place_of_second = pool.get_buffer(HUGE + 1), here()
    pool.return_buffer(gone)
    loans = pool.outstanding()
    assert all(type(loan) is Loan and 0 <= loan.age < 60 for loan in loans)
    assert [(loan.size, loan.place, loan.kind) for loan in loans] == [
        (10, place_of_first, "buffer"), (HUGE + 1, place_of_second, "buffer")]  # fmt: skip
    del first, second
    assert pool.outstanding() == []


def test_closing_names_every_leak(pool, caplog) -> None:
    """A warning for each buffer that is out, once, with size, file, line and function."""
    leak, place = pool.get_buffer(10), here()
    with pool.get_buffer(20):
        pass
    pool.close()
    pool.close()
    (warning,) = said(caplog, logging.WARNING)
    start = f"a buffer of 10 bytes was not returned; it was taken at {place}, "
    assert warning.startswith(start)
    assert warning.removeprefix(start).endswith(" s ago")
    assert not leak.returned


def test_memory_of_a_batch_is_no_leak(backend, pool, caplog) -> None:
    """A result that is alive holds its memory, and is not warned of; it is in the list."""
    batch = backend.RecordBatch.from_values([b"one", b"two"])
    result = backend.run_batch(backend.Contains(b"o"), batch, pool)
    assert {loan.kind for loan in pool.outstanding()} == {"batch"}
    assert all(loan.place.startswith(f"{__file__}:") for loan in pool.outstanding())
    pool.close()
    assert said(caplog, logging.WARNING) == []
    assert result.output.to_pylist() == [b"one", b"two"]
    del result
    assert pool.outstanding() == []
    assert pool.violations == ()


def test_no_frame_is_kept(pool) -> None:
    """What the function that took a buffer had in its variables dies with the call."""

    class Local:
        pass

    def take():
        local = Local()
        return pool.get_buffer(10), weakref.ref(local)

    buffer, reference = take()
    gc.collect()
    assert reference() is None
    assert "take" in pool.outstanding()[0].place
    pool.return_buffer(buffer)


def test_without_debug_mode_nothing_is_watched(backend, caplog) -> None:
    """No list, no violations, no guard, and not a word in the log."""
    caplog.set_level(logging.DEBUG)
    with backend.MemoryPool(FEW) as pool:
        assert not pool.debug
        leak = pool.get_buffer(10)
        memoryview(leak)[:] = b"x" * 10
        write(address_of(leak) + 10)
        pool.return_buffer(leak)
        leak = pool.get_buffer(10)
        assert bytes(leak) == b"x" * 10
        pool.warmup()
        assert pool.outstanding() is None
        assert pool.violations == ()
    assert [record for record in caplog.records if record.name == LOGGER] == []


def test_debug_is_a_flag_given_by_name(backend, pool) -> None:
    """Anything but True or False is refused."""
    assert pool.debug
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="debug must be True or False"):
            backend.MemoryPool(FEW, debug=wrong)
    with pytest.raises(TypeError):
        backend.MemoryPool(FEW, True)


def test_every_step_is_logged(pool, caplog) -> None:
    """Taking, giving back, dropping, warming up, trimming."""
    caplog.set_level(logging.DEBUG, LOGGER)
    buffer, place = pool.get_buffer(10), here()
    pool.return_buffer(buffer)
    buffer, dropped_at = pool.get_buffer(300), here()
    del buffer
    pool.warmup()
    freed = pool.trim(0)
    assert said(caplog, logging.DEBUG) == [
        f"lent 10 bytes, at {place}",
        f"took 10 bytes back, taken at {place}",
        f"lent 300 bytes, at {dropped_at}",
        f"took 300 bytes back, taken at {dropped_at}",
        "warmed all slabs up",
        f"gave {freed} bytes of idle slabs back to the system",
    ]


def test_only_the_latest_violations_are_kept(pool) -> None:
    """The list is bounded: a program that goes on for days does not fill its memory."""
    for _ in range(1010):
        buffer = pool.get_buffer(8)
        write(address_of(buffer) + 8)
        with pytest.raises(PluginMemoryError):
            pool.return_buffer(buffer)
    assert len(pool.violations) == 1000


def test_a_log_handler_may_use_the_pool(pool) -> None:
    """Nothing is logged while the pool is locked or half changed."""

    class Curious(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.removeHandler(self)
            seen.append((pool.get_stats().in_use, len(pool.outstanding()), pool.violations))
            with pool.get_buffer(10):
                pass

    seen: list = []
    logger = logging.getLogger(LOGGER)
    handler = Curious()
    logger.addHandler(handler)
    try:
        buffer = pool.get_buffer(10)
        write(address_of(buffer) + 10)
        del buffer
    finally:
        logger.removeHandler(handler)
    ((in_use, outstanding, violations),) = seen
    assert (in_use, outstanding, len(violations)) == (0, 0, 1)


@pytest.mark.parametrize("step", ["lent", "took"])
def test_an_interrupt_while_logging_loses_no_slab(pool, step) -> None:
    """The pool is whole when a log's handler raises, as when the user presses Ctrl-C in it."""

    class Interrupted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith(step):
                logger.removeHandler(self)
                raise KeyboardInterrupt

    logger = logging.getLogger(LOGGER)
    handler, level = Interrupted(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.return_buffer(pool.get_buffer(10))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    gc.collect()
    stats = pool.get_stats()
    assert (stats.allocations, stats.returns, stats.in_use, stats.cached) == (1, 1, 0, 9)
    assert pool.outstanding() == []
    assert pool.violations == ()


def test_a_pool_in_debug_mode_is_not_kept_alive(backend) -> None:
    """Neither its ledger nor anything else holds it."""
    pool = backend.MemoryPool(FEW, debug=True)
    pool.return_buffer(pool.get_buffer(10))
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


def test_statistics_and_trimming_are_the_same_as_without(backend) -> None:
    """One history in both modes, step by step."""
    rng = random.Random(7)
    sizes = [0, 1, 200, 256, 257, 4096, 5000, 65536, 65537, LARGE, HUGE, HUGE + 1]
    with backend.MemoryPool(FEW) as plain, backend.MemoryPool(FEW, debug=True) as guarded:
        out: list = []
        for _ in range(300):
            action = rng.randrange(8)
            if action < 4:
                size = rng.choice(sizes)
                out.append((plain.get_buffer(size), guarded.get_buffer(size)))
                assert out[-1][0].capacity == out[-1][1].capacity
                assert repr(out[-1][0]) == repr(out[-1][1])
            elif action < 7 and out:
                one, other = out.pop(rng.randrange(len(out)))
                plain.return_buffer(one)
                guarded.return_buffer(other)
            elif action == 7:
                assert plain.trim(0) == guarded.trim(0)
            assert plain.get_stats() == guarded.get_stats()
            assert repr(plain) == repr(guarded)
        assert guarded.violations == ()


def test_without_metrics_debug_mode_works_all_the_same(backend) -> None:
    """The two flags are apart."""
    with backend.MemoryPool(MemoryPoolConfig(enable_metrics=False), debug=True) as pool:
        assert pool.get_stats() is None
        buffer = pool.get_buffer(256)
        assert len(pool.outstanding()) == 1
        write(address_of(buffer) + 256)
        with pytest.raises(PluginMemoryError, match="past its end"):
            pool.return_buffer(buffer)


def test_threads_are_told_of_their_own_faults_alone(pool) -> None:
    """Three threads behave and one does not: its faults are found, and nothing else is."""
    rounds = 200
    told: list = []

    def hammer(faulty: bool) -> None:
        for turn in range(rounds):
            buffers = [pool.get_buffer(size) for size in (10, 300, 5000, 256)]
            for buffer in buffers:
                memoryview(buffer)[:] = bytes([turn % 256]) * len(buffer)
            if faulty:
                write(address_of(buffers[3]) + 256)
            try:
                pool.return_buffer(buffers.pop())
            except PluginMemoryError as error:
                told.append((faulty, str(error)))
            with buffers.pop():
                pass
            if turn % 50 == 0:
                pool.trim(0)

    threads = [threading.Thread(target=hammer, args=(number == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pool.get_stats()
    assert len(told) == rounds
    assert all(faulty and "a buffer of 256 bytes" in text for faulty, text in told)
    assert pool.violations == tuple(text for _, text in told)
    assert pool.outstanding() == []
    assert stats.allocations == stats.returns == rounds * 4 * 4
    assert (stats.in_use, stats.cached) == (0, 9)


FORK = """
import ctypes, os, sys
from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError
from dataflare.{room}.pool import MemoryPool

pool = MemoryPool(MemoryPoolConfig(cleanup_interval=float("inf")), debug=True)
good, bad = pool.get_buffer(100), pool.get_buffer(256)
child = os.fork()
assert len(pool.outstanding()) == 2
pool.return_buffer(good)
assert pool.violations == ()
ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(bad)) + 256, 1, 1)
try:
    pool.return_buffer(bad)
except PluginMemoryError as error:
    assert "past its end" in str(error), error
else:
    raise AssertionError("not found")
pool.close()
assert len(pool.violations) == 1
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

AT_EXIT = """
import ctypes
from dataflare.{room}.pool import MemoryPool

pool = MemoryPool(debug=True)
kept, bad = pool.get_buffer(100), pool.get_buffer(256)
view = memoryview(kept)
ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(bad)) + 256, 1, 1)
"""


@pytest.mark.parametrize("program", [FORK, AT_EXIT], ids=["fork", "exit"])
def test_in_a_process_of_its_own(backend, program, tmp_path) -> None:
    """After a fork both sides go on watching; the end of the interpreter is quiet."""
    room = "_compiled" if backend.name == "cython" else "_pure"
    command = [sys.executable, "-c", program.format(room=room)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
