"""Failure recovery against a model: hypothesis invents histories, every number must agree."""

from collections import Counter
from dataclasses import dataclass

from helpers import conserved
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dataflare.config import FailureRecoveryConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import CircuitOpenError, PluginDisabledError, PluginError
from dataflare.types import CircuitState, PluginState

POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)
CLOSED, OPEN, _ = CircuitState


@dataclass(frozen=True)
class Script:
    """A record: how often it fails, whether it is worth another attempt, what it is in the end."""

    fails: int
    retryable: bool
    kind: str


SCRIPTS = st.builds(
    Script, st.sampled_from([0, 0, 0, 1, 2, 3, 99]), st.booleans(), st.sampled_from("skf")
)


class Recovery(RuleBasedStateMachine):
    """A manager with one plugin, its fallback and its sink; `backend` is set by the test."""

    backend = None

    @initialize(
        retries=st.integers(0, 3),
        fallback=st.booleans(),
        sink=st.booleans(),
        threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    )
    def begin(self, retries, fallback, sink, threshold):
        self.retries, self.has_fallback, self.has_sink = retries, fallback, sink
        self.config = FailureRecoveryConfig(
            max_retries=retries, retry_interval=0, circuit_breaker_threshold=threshold,
            circuit_breaker_window=30, circuit_breaker_minimum=5, circuit_breaker_recovery_time=10,
        )  # fmt: skip
        config = PluginManagerConfig(memory_pool_config=POOL, failure_recovery=self.config)
        self.manager = self.backend.PluginManager(config)
        self.scripts, self.calls, self.helped, self.letters = [], Counter(), Counter(), []
        self.fallback_works = self.sink_works = self.enabled = True
        self.now = 0.0
        self.expected = Counter()
        self.manager.register_plugin(
            "x",
            self.make_plugin(),
            fallback=self.make_fallback() if fallback else None,
            dead_letters=self.bury if sink else None,
        )
        self.service = self.manager._services["x"]
        self.service.breaker._clock = lambda: self.now

    def teardown(self):
        if hasattr(self, "manager"):
            self.manager.close()

    def make_plugin(self):
        machine, backend = self, self.backend

        class Scripted(backend.DataFlarePlugin):
            def process(self, record):
                number = int(bytes(record.value))
                script = machine.scripts[number]
                machine.calls[number] += 1
                if machine.calls[number] <= script.fails:
                    raise PluginError("as told", retryable=script.retryable)
                result = backend.PluginResult
                if script.kind == "s":
                    return result.success(b"new %d" % number)
                return result.skip() if script.kind == "k" else result.filtered()

        return Scripted()

    def make_fallback(self):
        def help_out(value):
            self.helped[int(value)] += 1
            if not self.fallback_works:
                raise LookupError("the fallback is broken")
            return b"helped " + value

        return self.backend.map_plugin(help_out)

    def bury(self, letter):
        if not self.sink_works:
            raise OSError("the sink is full")
        self.letters.append(
            (int(bytes(letter.record.value)), letter.index, type(letter.error), letter.attempts)
        )

    # ---- what can happen

    @rule(scripts=st.lists(SCRIPTS, max_size=8))
    def batch(self, scripts):
        """A batch; its outcomes are those of the model."""
        first = len(self.scripts)
        self.scripts += scripts
        values = [b"%d" % (first + i) for i in range(len(scripts))]
        before, letters = self.service.breaker.state, len(self.letters)
        stories = self.foretell(first, len(scripts))
        if not self.enabled:
            try:
                self.manager.process_batch("x", values)
            except PluginDisabledError:
                return
            raise AssertionError("a disabled plugin took a batch")
        result = self.manager.process_batch("x", values)
        outcomes = [outcome for outcome, _, _ in stories]
        assert ["sfke"[code] for code in result.status.tolist()] == outcomes
        goes_on = [
            value if outcome == "k" else b"helped " + value if helped else b"new " + value
            for value, (outcome, _, helped) in zip(values, stories, strict=True)
            if outcome in "sk"
        ]
        assert result.output.to_pylist() == goes_on
        assert [i for i, _ in result.errors] == [i for i, o in enumerate(outcomes) if o == "e"]
        assert len(goes_on) + result.filtered_count + len(result.errors) == len(values)
        self.settle(first, stories, [error for _, error in result.errors], letters)
        self.check_circuit(before, any(outcome == "e" or helped for outcome, _, helped in stories))

    @rule(script=SCRIPTS)
    def single(self, script):
        """A single record."""
        number = len(self.scripts)
        self.scripts.append(script)
        before, letters = self.service.breaker.state, len(self.letters)
        stories = self.foretell(number, 1)
        ((outcome, _, helped),) = stories
        errors = []
        try:
            result = self.manager.process_record("x", self.backend.PluginRecord(b"%d" % number))
        except PluginDisabledError:
            assert not self.enabled
            return
        except PluginError as error:
            errors.append(error)
            assert outcome == "e"
        else:
            assert (result.is_success, result.is_skip, result.is_filtered) == tuple(
                outcome == kind for kind in "skf"
            )
            if result.is_success:
                assert result.data == (b"helped %d" if helped else b"new %d") % number
        assert self.enabled
        self.settle(number, stories, errors, letters)
        self.check_circuit(before, any(outcome == "e" or helped for outcome, _, helped in stories))

    @rule(seconds=st.sampled_from([1.0, 5.0, 10.0]))
    def advance(self, seconds):
        """Time goes by."""
        self.now += seconds

    @rule(works=st.booleans())
    def turn_fallback(self, works):
        """The fallback breaks, or is repaired."""
        self.fallback_works = works

    @rule(works=st.booleans())
    def turn_sink(self, works):
        """The sink refuses, or accepts."""
        self.sink_works = works

    @rule(enabled=st.booleans())
    def turn_plugin(self, enabled):
        """The plugin is disabled, or enabled."""
        (self.manager.enable_plugin if enabled else self.manager.disable_plugin)("x")
        self.enabled = enabled

    @rule()
    def replace(self):
        """Another instance takes its place: its circuit is closed."""
        old = self.manager.get_plugin("x")
        self.manager.replace_plugin("x", self.make_plugin())
        assert old.get_state() is PluginState.STOPPED
        assert self.service.breaker.state is CLOSED

    # ---- the model

    def foretell(self, first, count):
        """For each record its outcome, the calls of the plugin, and whether the fallback helps."""
        breaker = self.service.breaker
        probing = breaker.state is OPEN and breaker.retry_after == 0
        allowed = [1 + self.retries] * count
        if breaker.state is OPEN:
            works = probing and count and self.scripts[first].fails == 0
            if not works:
                allowed = [int(probing and i == 0) for i in range(count)]
        return [self.story(self.scripts[first + i], most) for i, most in enumerate(allowed)]

    def story(self, script, most):
        attempts = min(script.fails + 1, most if script.retryable else min(most, 1))
        if attempts > script.fails:
            return script.kind, attempts, False
        helped = self.has_fallback and self.fallback_works
        return ("s" if helped else "e"), attempts, helped

    def settle(self, first, stories, errors, letters):
        """Compare calls and letters with the stories, and count."""
        buried = []
        remaining = iter(errors)
        for place, (outcome, attempts, helped) in enumerate(stories):
            number = first + place
            assert self.calls[number] == attempts
            failed_at_plugin = helped or outcome == "e"
            assert self.helped[number] == (self.has_fallback and failed_at_plugin)
            self.expected["total_processed"] += 1
            self.expected["retries"] += max(attempts - 1, 0)
            self.expected["fallbacks"] += helped
            if outcome != "e":
                name = {"s": "successful", "k": "skipped", "f": "filtered"}[outcome]
                self.expected[name] += 1
                continue
            error = next(remaining)
            assert type(error) is (PluginError if attempts else CircuitOpenError)
            accepted = self.has_sink and self.sink_works
            self.expected["dead_lettered" if accepted else "failed"] += 1
            if accepted:
                buried.append((number, place, type(error), attempts))
        assert self.letters[letters:] == buried

    def check_circuit(self, before, failed):
        """It opens for a reason, at a call that failed, and closes by a probe alone."""
        counters, state = self.service.counters, self.service.breaker.state
        too_many = (
            counters.window_records >= self.config.circuit_breaker_minimum
            and counters.window_failed
            > self.config.circuit_breaker_threshold * counters.window_records
        )
        assert state in (CLOSED, OPEN)
        if state is CLOSED:
            assert not (failed and too_many and before is CLOSED)
        elif before is CLOSED:
            assert failed
            assert too_many

    @invariant()
    def everything_is_counted_once(self):
        """Metrics, state and slots are those of the model at every step."""
        if not hasattr(self, "manager"):
            return
        metrics = conserved(self.manager)
        for name in (
            "total_processed", "successful", "skipped", "filtered", "failed", "dead_lettered",
            "retries", "fallbacks",
        ):  # fmt: skip
            assert getattr(metrics, name) == self.expected[name], name
        status = self.manager.get_system_status().plugins["x"]
        wanted = PluginState.ERROR if status.circuit is OPEN else PluginState.READY
        assert (status.state, status.running, status.enabled) == (wanted, 0, self.enabled)


def test_no_history_loses_or_doubles_a_record(backend) -> None:
    """Whatever fails, is tried again, probed, replaced or switched off."""
    machine = type("Machine", (Recovery,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=settings().max_examples * 3 // 2, stateful_step_count=30, deadline=None
        ),
    )
