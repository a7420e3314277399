"""Buffers taken and given back: P6 and P6b."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import repeat, starmap
from time import process_time as clock

import numpy as np
import pytest

from dataflare import MemoryPool, MemoryPoolConfig

pytestmark = pytest.mark.benchmark(timer=clock)

SIZES = {"200 B": 200, "4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "4 MiB": 4 << 20}
HELD_SIZES = ("64 KiB", "1 MiB", "4 MiB")
HELD = 64


@pytest.fixture(scope="module")
def pool() -> Iterator[MemoryPool]:
    config = MemoryPoolConfig(
        max_medium_buffers=HELD, max_large_buffers=HELD, max_huge_buffers=HELD
    )
    with MemoryPool(config) as pool:
        pool.warmup()
        yield pool


def dataflare_pairs(pool: MemoryPool, size: int, count: int) -> None:
    take, give = pool.get_buffer, pool.return_buffer
    for _ in repeat(None, count):
        give(take(size))


def deque_pairs(free: deque[bytearray], size: int, count: int) -> None:
    take, give = free.pop, free.append
    for _ in repeat(None, count):
        give(take())


def bytearray_pairs(source: None, size: int, count: int) -> None:
    for _ in repeat(None, count):
        bytearray(size)


def numpy_pairs(source: None, size: int, count: int) -> None:
    empty = np.empty
    for _ in repeat(None, count):
        empty(size, np.uint8)


PAIRS = {
    "DataFlare": dataflare_pairs,
    "deque": deque_pairs,
    "bytearray(n)": bytearray_pairs,
    "numpy.empty(n)": numpy_pairs,
}


@pytest.mark.parametrize("who", PAIRS)
@pytest.mark.parametrize("size", SIZES)
def test_p6(who, size, measure, pool, quick):
    count = 100 if quick else 2_000 if who == "bytearray(n)" else 50_000
    number = SIZES[size]
    source = {"DataFlare": pool, "deque": deque([bytearray(number)])}.get(who)
    before = pool.get_stats()
    measure("P6", size, who, lambda: PAIRS[who](source, number, count), count, rounds=20)
    after = pool.get_stats()
    assert after.misses == before.misses
    assert after.in_use == 0
    assert (after.hits - before.hits >= count) == (who == "DataFlare")


@pytest.mark.parametrize("size", SIZES)
def test_p6_cython(size, measure, pool, native, quick):
    count = 100 if quick else 200_000
    pairs = native("buffers").pairs
    with pool.get_buffer(SIZES[size]) as buffer:
        capacity = buffer.capacity
    total = measure(
        "P6 from Cython",
        size,
        "DataFlare",
        lambda: pairs(pool, SIZES[size], count),
        count,
        rounds=20,
    )
    assert total == count * capacity
    assert pool.get_stats().misses == 0


@pytest.mark.parametrize("size", HELD_SIZES)
def test_p6b(size, compare, pool, native, quick):
    touch, number = native("buffers").touch, SIZES[size]
    free = deque(bytearray(number) for _ in range(HELD))
    cycles = 1 if quick else 10

    def cycle(take, arguments, give) -> int:
        pages = 0
        for _ in repeat(None, cycles):
            held = list(starmap(take, repeat(arguments, HELD)))
            pages += touch(held)
            for buffer in held:
                give(buffer)
        return pages

    functions = {
        "DataFlare": lambda: cycle(pool.get_buffer, (number,), pool.return_buffer),
        "deque": lambda: cycle(free.pop, (), free.append),
    }
    pages = compare("P6b", size, functions, cycles * HELD, rounds=50)
    assert set(pages.values()) == {cycles * HELD * number // 4096}
    assert pool.get_stats().misses == 0


@pytest.mark.parametrize("size", HELD_SIZES)
def test_p6b_bytearray(size, measure, native):
    touch, number = native("buffers").touch, SIZES[size]
    pages = measure(
        "P6b",
        size,
        "bytearray(n)",
        lambda: touch([bytearray(number) for _ in repeat(None, HELD)]),
        HELD,
        rounds=5,
    )
    assert pages == HELD * number // 4096
