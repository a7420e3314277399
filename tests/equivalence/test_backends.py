"""The same in, the same out: between the backends, and between the ways to run a plugin."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    CHAINS,
    NATIVE_CHAINS,
    PLUGINS,
    Batch,
    Plugin,
    batches,
    chain_of,
)

from dataflare.errors import PluginError

FILTERED, SKIP, ERROR = 1, 2, 3
EXAMPLES = settings().max_examples  # of the profile that was chosen


def columns_of(batch: Any) -> dict[str, Any]:
    """Everything that can be read from a batch."""
    numbers = {
        name: None if getattr(batch, name) is None else getattr(batch, name).tolist()
        for name in ("timestamps", "partitions", "offsets")
    }
    return {
        "values": batch.to_pylist(),
        "keys": batch.keys,
        "metadata": batch.metadata,
        "nbytes": batch.nbytes,
        "lines": bytes(batch.to_lines()),
        "records": [repr(record) for record in batch],
        "repr": repr(batch),
        **numbers,
    }


def failure_of(error: PluginError) -> tuple[Any, ...]:
    """Everything that can be read from an error."""
    cause = error.__cause__
    return (
        type(error), str(error), error.plugin, error.code, type(cause), str(cause),
    )  # fmt: skip


def errors_of(result: Any) -> list[tuple[Any, ...]]:
    return [(index, *failure_of(error)) for index, error in result.errors]


def observed(result: Any) -> dict[str, Any]:
    """Everything that can be read from a result."""
    return {
        "status": result.status.tolist(),
        "output": columns_of(result.output),
        "errors": errors_of(result),
        "results": [repr(outcome) for outcome in result.results],
        "repr": repr(result),
    }


@given(batch=batches())
def test_batches_read_the_same(backends, batch: Batch) -> None:
    """Values, columns, records, lines and reprs."""
    compiled, pure = (columns_of(batch.build(backend)) for backend in backends)
    assert compiled == pure


@settings(max_examples=3 * EXAMPLES)
@given(batch=batches(), plugin=PLUGINS)
def test_backends_agree(backends, batch: Batch, plugin: Plugin) -> None:
    """Statuses, outputs, errors and reprs of any plugin on any batch."""
    compiled, pure = (
        observed(backend.run_batch(plugin.build(backend), batch.build(backend)))
        for backend in backends
    )
    assert compiled == pure


@settings(max_examples=4 * EXAMPLES)
@given(batch=batches(), plugin=PLUGINS | NATIVE_CHAINS.map(chain_of), copies=st.integers(1, 9))
def test_a_deadline_that_is_met_changes_nothing(
    backend: SimpleNamespace, batch: Batch, plugin: Plugin, copies: int
) -> None:
    """Kernels, loops and chains go lap by lap then, and give the same."""
    if batch.source in ("lines", "crlf"):  # as long as several laps
        batch = replace(batch, payload=batch.payload * copies, part=slice(None))
    records, made = batch.build(backend), plugin.build(backend)
    timed = backend.run_batch(made, records, None, 1000)
    assert observed(timed) == observed(backend.run_batch(made, records))


@given(batch=batches(), plugin=PLUGINS)
def test_a_pool_changes_nothing(backend: SimpleNamespace, batch: Batch, plugin: Plugin) -> None:
    """With its memory from a pool a result is the same as without, and all of it goes back."""
    alone = observed(backend.run_batch(plugin.build(backend), batch.build(backend)))
    with backend.MemoryPool() as pool:
        result = backend.run_batch(plugin.build(backend), batch.build(backend), pool)
        assert observed(result) == alone
        del result
        assert pool.get_stats().in_use == 0


def alone(backend: SimpleNamespace, plugin: Any, record: Any) -> tuple[Any, Any]:
    """The outcome of one record, or what can be read from its failure."""
    try:
        return backend.run_record(plugin, record), None
    except PluginError as error:
        return None, failure_of(error)


@settings(max_examples=2 * EXAMPLES)
@given(batch=batches(), plugin=PLUGINS)
def test_a_batch_is_its_records(backend: SimpleNamespace, batch: Batch, plugin: Plugin) -> None:
    """What happens to a record in a batch is what happens to it alone."""
    records = batch.build(backend)
    runner = plugin.build(backend)
    result = backend.run_batch(runner, records)
    errors = dict(result.errors)
    for index, record in enumerate(records):
        outcome, failure = alone(backend, runner, record)
        if failure is not None:
            assert failure == failure_of(errors[index])
        else:
            assert repr(outcome) == repr(result.results[index])
            assert outcome == result.results[index]


@given(batch=batches(), plugin=PLUGINS, size=st.integers(1, 5))
def test_the_size_of_batches_does_not_matter(
    backend: SimpleNamespace, batch: Batch, plugin: Plugin, size: int
) -> None:
    """Cut into pieces and run piece by piece, everything comes out the same."""
    records = batch.build(backend)
    runner = plugin.build(backend)
    whole = backend.run_batch(runner, records)
    status, output, errors = [], [], []
    for start in range(0, len(records), size):
        part = backend.run_batch(runner, records[start : start + size])
        status.extend(part.status.tolist())
        output.extend(map(repr, part.output))
        errors.extend((start + index, *failure_of(error)) for index, error in part.errors)
    assert status == whole.status.tolist()
    assert output == [repr(record) for record in whole.output]
    assert errors == errors_of(whole)


def one_by_one(backend: SimpleNamespace, members: list[Plugin], batch: Any) -> dict[str, Any]:
    """What a chain should do: each member on what the one before it let through."""
    status = [SKIP] * len(batch)
    origin = list(range(len(batch)))
    errors = []
    for member in members:
        result = backend.run_batch(member.build(backend), batch)
        errors.extend((origin[index], *failure_of(error)) for index, error in result.errors)
        for index, outcome in enumerate(result.status.tolist()):
            if outcome != SKIP:
                status[origin[index]] = outcome
        origin = [
            origin[index]
            for index, outcome in enumerate(result.status.tolist())
            if outcome not in (FILTERED, ERROR)
        ]
        batch = result.output
    return {"status": status, "output": columns_of(batch), "errors": sorted(errors, key=str)}


@settings(max_examples=2 * EXAMPLES)
@given(batch=batches(), members=CHAINS | NATIVE_CHAINS)
def test_a_chain_is_its_members_one_by_one(
    backend: SimpleNamespace, batch: Batch, members: list[Plugin]
) -> None:
    """Fused or not, nested or not: as if each member ran over a batch of its own."""
    expected = one_by_one(backend, members, batch.build(backend))
    nested = backend.Chain(
        chain_of(members[:1]).build(backend),
        *([chain_of(members[1:]).build(backend)] if members[1:] else []),
    )
    for chain in (chain_of(members).build(backend), nested):
        result = backend.run_batch(chain, batch.build(backend))
        errors = errors_of(result)
        assert errors == sorted(errors, key=lambda entry: entry[0])
        assert {
            "status": result.status.tolist(),
            "output": columns_of(result.output),
            "errors": sorted(errors, key=str),
        } == expected


def test_no_class_of_the_pure_backend_offers_more(backends) -> None:
    """What only one backend has, nobody can rely upon."""
    compiled, pure = backends
    classes = [name for name, found in vars(pure).items() if isinstance(found, type)]
    assert len(classes) > 20
    for name in classes:
        public = {word for word in dir(getattr(pure, name)) if not word.startswith("_")}
        assert public <= set(dir(getattr(compiled, name))), name


def test_batches_and_results_are_sequences(backend) -> None:
    """With all that a sequence has."""
    batch = backend.RecordBatch.from_values([b"a", b"b", b"a"])
    results = backend.run_batch(backend.Upper(), batch).results
    for sequence in (batch, results):
        assert isinstance(sequence, Sequence)
        assert sequence.count(sequence[0]) >= 1
        assert sequence.index(sequence[1]) >= 0
        assert object() not in sequence
