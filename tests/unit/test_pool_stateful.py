"""The memory pool against a model: hypothesis invents histories, every count must agree."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize

HUGE = BufferSize.HUGE
CAPACITIES = dict(zip(BufferSize, (5, 3, 2, 1, 1), strict=True))
CONFIG = MemoryPoolConfig(
    max_tiny_buffers=5,
    max_small_buffers=3,
    max_medium_buffers=2,
    max_large_buffers=1,
    max_huge_buffers=1,
)
BOUNDARIES = [limit + step for limit in (0, *BufferSize) for step in (-1, 0, 1) if limit + step > 0]
SIZES = st.one_of(st.integers(0, 600), st.sampled_from([0, *BOUNDARIES]))


@dataclass
class Loan:
    """What the model knows of a buffer that is out."""

    buffer: object
    size: int
    pooled: bool
    content: bytes
    views: list = field(default_factory=list)

    @property
    def size_class(self) -> BufferSize | None:
        return next((limit for limit in BufferSize if self.size <= limit), None)

    @property
    def capacity(self) -> int:
        return int(self.size_class) if self.pooled else self.size


class PoolMachine(RuleBasedStateMachine):
    """Borrowers that behave and borrowers that do not."""

    backend: SimpleNamespace
    debug: bool
    loans = Bundle("loans")

    def __init__(self) -> None:
        super().__init__()
        self.pool = self.backend.MemoryPool(CONFIG, debug=self.debug)
        self.other = self.backend.MemoryPool(CONFIG, debug=self.debug)
        self.out: dict[int, Loan] = {}
        self.returned: list = []
        self.free = dict(CAPACITIES)
        self.allocations = self.returns = self.hits = self.requested = self.handed_out = 0
        self.peak = self.peak_bytes = 0
        self.per_class = {limit: [0, 0, 0] for limit in BufferSize}  # hits, misses, requested
        self.peaks = dict.fromkeys(BufferSize, 0)
        self.written = 0

    def teardown(self) -> None:
        for loan in self.out.values():
            for view in loan.views:
                view.release()
        self.out.clear()
        self.pool.close()
        self.other.close()

    @rule(target=loans, size=SIZES)
    def borrow(self, size: int) -> int:
        """Take a buffer and fill it with bytes of its own."""
        buffer = self.pool.get_buffer(size)
        limit = next((limit for limit in BufferSize if size <= limit), None)
        pooled = limit is not None and self.free[limit] > 0
        assert buffer.size_class is (limit if pooled else None)
        assert len(buffer) == size
        self.written += 1
        pattern = self.written.to_bytes(4, "little")
        content = (pattern * (size // 4 + 1))[:size]
        with memoryview(buffer) as view:
            view[:] = content
        loan = Loan(buffer, size, pooled, content)
        self.out[self.written] = loan
        self.allocations += 1
        self.requested += size
        self.handed_out += loan.capacity
        self.hits += pooled
        if limit is not None:
            self.free[limit] -= pooled
            self.per_class[limit][0 if pooled else 1] += 1
            self.per_class[limit][2] += size
            self.peaks[limit] = max(self.peaks[limit], self.out_of(limit))
        self.peak = max(self.peak, len(self.out))
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_use())
        return self.written

    @rule(number=consumes(loans), way=st.sampled_from(["return", "leave", "drop"]))
    def give_back(self, number: int, way: str) -> None:
        """Return a buffer in one of three ways, after its views were released."""
        loan = self.out.pop(number)
        for view in loan.views:
            view.release()
        assert bytes(loan.buffer) == loan.content
        if way == "return":
            self.pool.return_buffer(loan.buffer)
        elif way == "leave":
            with loan.buffer:
                pass
        if way != "drop":
            assert loan.buffer.returned
            self.returned.append(loan.buffer)
        loan.buffer = None
        self.returns += 1
        if loan.pooled:
            self.free[loan.size_class] += 1

    @rule(number=loans)
    def look(self, number: int) -> None:
        """Take a view that lives on."""
        self.out[number].views.append(memoryview(self.out[number].buffer))

    @rule(number=loans)
    def look_away(self, number: int) -> None:
        """Release the last view, if there is one."""
        if self.out[number].views:
            self.out[number].views.pop().release()

    @rule(number=loans)
    def return_too_early(self, number: int) -> None:
        """With a view alive the return is refused."""
        with memoryview(self.out[number].buffer), pytest.raises(PluginMemoryError, match="view"):
            self.pool.return_buffer(self.out[number].buffer)

    @rule(number=loans)
    def return_to_another_pool(self, number: int) -> None:
        """The other pool refuses it."""
        with pytest.raises(PluginMemoryError, match="another"):
            self.other.return_buffer(self.out[number].buffer)

    @rule(data=st.data())
    def return_again(self, data: st.DataObject) -> None:
        """Every buffer that was ever returned is refused, and cannot be looked at."""
        if self.returned:
            buffer = data.draw(st.sampled_from(self.returned))
            with pytest.raises(PluginMemoryError, match="returned"):
                self.pool.return_buffer(buffer)
            with pytest.raises(PluginMemoryError, match="returned"):
                memoryview(buffer)

    @rule(target=loans, count=st.integers(1, 6))
    def borrow_a_whole_class(self, count: int) -> object:
        """Several of the smallest at once, past the cap sooner or later."""
        return multiple(*(self.borrow(200) for _ in range(count)))

    @rule()
    def warm_up(self) -> None:
        """Leaves everything as it is."""
        self.pool.warmup()

    @rule(idle=st.sampled_from([0, 3600]))
    def trim(self, idle: int) -> None:
        """Never gives back more than what is free."""
        freed = self.pool.trim(idle)
        limit = sum(int(size) * count for size, count in self.free.items())
        assert 0 <= freed <= (limit if idle == 0 else 0)

    def out_of(self, limit: BufferSize) -> int:
        return sum(loan.size_class is limit for loan in self.out.values())

    def bytes_in_use(self) -> int:
        return sum(loan.capacity for loan in self.out.values())

    @invariant()
    def the_counts_are_exact(self) -> None:
        """Every field of the statistics."""
        stats = self.pool.get_stats()
        assert (stats.allocations, stats.returns) == (self.allocations, self.returns)
        assert (stats.hits, stats.misses) == (self.hits, self.allocations - self.hits)
        assert (stats.in_use, stats.peak_in_use) == (len(self.out), self.peak)
        assert stats.cached == sum(self.free.values())
        assert (stats.bytes_requested, stats.bytes_allocated) == (self.requested, self.handed_out)
        assert stats.bytes_in_use == self.bytes_in_use()
        assert stats.peak_bytes_in_use == self.peak_bytes
        for limit, entry in stats.classes.items():
            hits, misses, requested = self.per_class[limit]
            out = self.out_of(limit)
            assert entry.peak_in_use == self.peaks[limit]
            assert (entry.capacity, entry.cached) == (CAPACITIES[limit], self.free[limit])
            assert (entry.hits, entry.misses, entry.bytes_requested) == (hits, misses, requested)
            assert (entry.allocations, entry.in_use) == (hits + misses, out)
            assert entry.returns == hits + misses - out
        assert self.other.get_stats().allocations == 0

    @invariant()
    def live_buffers_keep_their_bytes(self) -> None:
        """Whatever happens to the others."""
        for loan in self.out.values():
            assert bytes(loan.buffer) == loan.content
            assert all(view == loan.content for view in loan.views)

    @invariant()
    def debug_mode_finds_what_is_out_and_nothing_wrong(self) -> None:
        """The loans are those of the model, in the order in which they were taken."""
        if self.debug:
            sizes = [loan.size for loan in self.pool.outstanding()]
            assert sizes == [loan.size for loan in self.out.values()]
        assert self.pool.violations == ()


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
def test_any_history_agrees_with_the_model(backend: SimpleNamespace, debug: bool) -> None:
    """Borrow, return, drop, view, misuse, trim and warm up in any order, in both modes."""
    machine = type("PoolMachine", (PoolMachine,), {"backend": backend, "debug": debug})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=settings().max_examples * 2 // 5, stateful_step_count=40, deadline=None
        ),
    )
