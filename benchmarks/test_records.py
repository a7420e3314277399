"""Records through plugins: P1 to P5 and P9."""

from __future__ import annotations

from itertools import repeat
from time import process_time as clock

import pytest

from benchmarks.peers import PEERS, as_bytes, has_needle, upper
from benchmarks.workload import JOBS, PLUGINS, answer, as_block
from dataflare import (
    BatchConfig,
    BatchResult,
    DataFlarePlugin,
    PluginManager,
    PluginManagerConfig,
    PluginRecord,
    PluginResult,
    RecordBatch,
    filter_plugin,
    map_plugin,
)
from dataflare._backend import run_batch

pytestmark = pytest.mark.benchmark(timer=clock)

STREAMS = {"stream of 65,536": 65_536, "stream of 8,192": 8_192}
ONE_THREAD = BatchConfig(enable_parallel=False)


class PythonNoop(DataFlarePlugin):
    """The least that a Python plugin can do."""

    def process(self, record: PluginRecord) -> PluginResult:
        return PluginResult.skip()


@pytest.fixture(scope="module")
def batch(lines: list[bytes]) -> RecordBatch:
    return RecordBatch.from_lines(as_block(lines))


def in_batches(lines: list[bytes], size: int) -> list[RecordBatch]:
    return [
        RecordBatch.from_lines(as_block(lines[start : start + size]))
        for start in range(0, len(lines), size)
    ]


@pytest.mark.parametrize("who", ["DataFlare", "DataFlare, run_batch alone"])
def test_p1(who, measure, manager, native, batch):
    plugin = native("noop").Noop()
    manager.register_plugin(who, plugin)
    function = {
        "DataFlare": lambda: manager.process_batch(who, batch),
        "DataFlare, run_batch alone": lambda: run_batch(plugin, batch, manager.pool),
    }[who]
    result = measure("P1", "no-op", who, function, len(batch), rounds=20)
    assert result.skipped_count == len(batch)
    assert result.output.to_lines() == batch.to_lines()


@pytest.mark.parametrize("who", ["DataFlare", "DataFlare, run_batch alone"])
@pytest.mark.parametrize("job", JOBS)
def test_p2_batch(who, job, measure, manager, batch, answers):
    function = {
        "DataFlare": lambda: manager.process_batch(job, batch),
        "DataFlare, run_batch alone": lambda: run_batch(PLUGINS[job], batch, manager.pool),
    }[who]
    result = measure("P2", job, who, function, len(batch), rounds=20)
    assert result.output.to_pylist() == answers[job]
    assert result.filtered_count == len(batch) - len(answers[job])


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("job", JOBS)
def test_p2_stream(stream, job, measure, lines, answers):
    # Else as it is without any configuration.
    with PluginManager(PluginManagerConfig(batch_config=ONE_THREAD)) as manager:
        manager.register_plugin("plugin", PLUGINS[job])
        manager.pool.warmup()
        batches = in_batches(lines, STREAMS[stream])

        def run() -> int:
            process = manager.process_batch
            return sum([process("plugin", batch).filtered_count for batch in batches])

        filtered = measure("P2", job, f"DataFlare, {stream}", run, len(lines), rounds=20)
        assert filtered == len(lines) - len(answers[job])
        outputs = [manager.process_batch("plugin", batch).output for batch in batches]
        assert [value for output in outputs for value in output.to_pylist()] == answers[job]


@pytest.mark.parametrize("who", PEERS)
@pytest.mark.parametrize("job", JOBS)
def test_p2_peer(who, job, measure, loaded, lines, answers):
    function, data = PEERS[who].job(job), loaded(who)
    found = measure("P2", job, who, lambda: function(data), len(lines))
    assert as_bytes(PEERS[who].values(found)) == answers[job]


def test_p3(measure, manager, lines, answers):
    result = measure(
        "P3", "F", "DataFlare", lambda: manager.process_batch("F", lines), len(lines), rounds=20
    )
    assert result.output.to_pylist() == answers["F"]


@pytest.mark.parametrize("who", PEERS)
def test_p3_peer(who, measure, lines, answers):
    peer = PEERS[who]
    found = measure("P3", "F", who, lambda: peer.filtered(peer.load(lines)), len(lines), rounds=5)
    assert as_bytes(peer.values(found)) == answers["F"]


@pytest.mark.parametrize("job", ["F", "U"])
def test_p4(job, compare, manager, lines, answers):
    name = f"Python {job}"
    manager.register_plugin(name, {"F": filter_plugin(has_needle), "U": map_plugin(upper)}[job])
    batch = RecordBatch.from_values(lines)
    loop = {
        "F": lambda: [line for line in lines if has_needle(line)],
        "U": lambda: [upper(line) for line in lines],
    }[job]
    functions = {"DataFlare": lambda: manager.process_batch(name, batch), "bare loop": loop}
    found = compare("P4", job, functions, len(lines), rounds=9)
    assert found["DataFlare"].output.to_pylist() == answers[job]
    assert found["bare loop"] == answers[job]


@pytest.mark.parametrize("kind", ["native", "Python"])
def test_p5(kind, measure, manager, native, quick):
    count = 1_000 if quick else 50_000
    record = PluginRecord(b"2026-11-23 12:00:00.123 INFO  worker-7 request 1234567 done")
    plugin = native("noop").Noop() if kind == "native" else PythonNoop()
    name = f"{kind} no-op"
    manager.register_plugin(name, plugin)

    def run() -> None:
        process = manager.process_record
        for _ in repeat(None, count):
            process(name, record)

    measure("P5", name, "DataFlare", run, count, rounds=20)
    assert manager.process_record(name, record).is_skip
    assert manager.get_metrics(name).skipped >= count


@pytest.mark.parametrize("job", ["F", "U"])
def test_p9(job, compare, manager, lines, quick):
    lines = lines[:1_000]
    batch = RecordBatch.from_lines(as_block(lines))
    count = 10 if quick else 200

    def metered() -> BatchResult:
        for _ in repeat(None, count):
            result = manager.process_batch(job, batch)
        return result

    def bare() -> BatchResult:
        plugin, pool = PLUGINS[job], manager.pool
        for _ in repeat(None, count):
            result = run_batch(plugin, batch, pool)
        return result

    functions = {"DataFlare": metered, "run_batch alone": bare}
    for result in compare("P9", job, functions, count * len(lines), rounds=300).values():
        assert result.output.to_pylist() == answer(job, lines)
