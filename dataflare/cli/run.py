"""``dataflare run``: lines through a chain of plugins."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace

from dataflare._backend import BatchResult, Chain, DataFlarePlugin, filter_plugin
from dataflare.cli import show
from dataflare.cli.failures import failures
from dataflare.cli.interrupts import EndedError, Interrupts
from dataflare.cli.specs import load_plugin
from dataflare.cli.tally import Tally
from dataflare.config import BatchConfig, FailureRecoveryConfig, PluginManagerConfig
from dataflare.dead_letters import NAMES_PLUGIN
from dataflare.errors import PluginConfigurationError, PluginError, PluginSerializationError
from dataflare.files import STANDARD, InputFile, LineBlock, OutputFile
from dataflare.manager import PluginManager
from dataflare.report import ReportFile

__all__ = ["Options", "run"]

DONE, FAILED, UNUSABLE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141  # exit statuses
COLLECT, STOP = "collect", "stop"
BATCH_SECONDS = 0.05
FILTERED = 1  # in BatchResult.status


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    plugins: list[str]
    inputs: list[str]
    output: str
    errors: str
    jsonl: bool
    fail_on_error: bool
    stats: str
    jobs: int
    report: str | None
    metrics_port: int | None
    metrics_address: str
    debug: bool


class StoppedError(PluginError):
    """A record failed, and the run was to stop there."""


class _Said(logging.Handler):
    """Shows the errors that the library can only log, such as that of a plugin's clean-up."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.errors += 1
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f": {type(error).__name__}: {error}"
        show.problem(record.getMessage() + why)


@contextmanager
def _said() -> Iterator[_Said]:
    logger, handler = logging.getLogger("dataflare"), _Said()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def run(options: Options) -> int:
    """Run the command; returns its exit status."""
    with redirect_stdout(sys.stderr), _said() as said:  # what plugins print is no output
        return _run(options, said)


def _run(options: Options, said: _Said) -> int:
    try:
        job = Job(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        if options.debug:
            traceback.print_exc()
        show.problem(show.sentence(error))
        return UNUSABLE
    status, problem = DONE, None
    try:
        job.run()
    except KeyboardInterrupt:
        status, problem = INTERRUPTED, "interrupted"
    except EndedError as ended:
        status, problem = ended.status, str(ended)
    except BrokenPipeError:
        for left in job.left():
            show.problem(left)
        return PIPE_CLOSED
    except (Exception, SystemExit) as error:
        if options.debug:
            traceback.print_exc()
        status, problem = FAILED, show.sentence(error)
    show.summary(job.tally, options.stats)
    if options.stats == "none" and options.errors == COLLECT and job.tally.failed:
        show.problem(job.tally.failed_sentence())
    if said.errors:
        status = status or FAILED
    problems = [each for each in (problem, *job.left()) if each is not None]
    if problems:
        status = status or FAILED
        show.problem("; ".join(problems))
    elif options.fail_on_error and job.tally.failed:
        status = FAILED
    return status


@filter_plugin(name="jsonl")
def is_json(value: bytes) -> bool:
    """Fails unless the value is a JSON text."""
    import msgspec

    try:
        value.decode()  # msgspec does not look at the text of what it skips
        msgspec.json.decode(value, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PluginSerializationError(f"the line is not JSON: {error}") from error
    return True


def _configuration(options: Options) -> PluginManagerConfig:
    config = PluginManagerConfig(
        batch_config=BatchConfig(enable_parallel=options.jobs > 1, parallelism=options.jobs),
        # Lines that fail are part of the result: they say nothing of those behind them.
        failure_recovery=FailureRecoveryConfig(circuit_breaker_threshold=1.0),
    )
    if options.report is None:
        return config
    # Five samples a second at first, a thousand a day.
    return replace(config, monitoring_interval=0.2, monitoring_growth=0.01, max_samples=2000)


def _is_plugin(options: Options) -> bool:
    """Whether a plugin gets the records that fail."""
    return options.errors.startswith(NAMES_PLUGIN)


def _plugin_for(options: Options) -> DataFlarePlugin | None:
    """The plugin that gets the records that fail; found as those for the others are."""
    return load_plugin(options.errors.removeprefix(NAMES_PLUGIN)) if _is_plugin(options) else None


class Job:
    """One run over all inputs.

    Raises
    ------
    PluginError, OSError
        Something cannot be used; nothing was begun.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._interrupts = Interrupts()
        self._batch_size = 1
        self._name = " | ".join(options.plugins)
        self._inputs = [InputFile(path) for path in options.inputs or [STANDARD]]
        plugins = [load_plugin(spec) for spec in options.plugins]
        with ExitStack() as stack:
            self._manager = stack.enter_context(PluginManager(_configuration(options)))
            chain = Chain(*[is_json] * options.jsonl, *plugins)
            self._manager.register_plugin(self._name, chain, dead_letters=_plugin_for(options))
            self._report = None
            if options.report is not None:
                self._report = stack.enter_context(ReportFile(options.report))
            self._output = stack.enter_context(OutputFile(options.output))
            self._letters = None
            if options.errors not in (COLLECT, STOP) and not _is_plugin(options):
                self._letters = stack.enter_context(OutputFile(options.errors))
            self._check_outputs()
            if options.metrics_port is not None:
                self._serve_metrics(stack, options.metrics_port)
            self._opened = stack.pop_all()
        self.tally = Tally()
        self._unreported: str | None = None

    def _serve_metrics(self, stack: ExitStack, port: int) -> None:
        try:
            from dataflare.prometheus import serve_metrics
        except ImportError as error:
            raise PluginConfigurationError(f"--metrics-port: {error}") from error
        server = serve_metrics(self._manager, port, self.options.metrics_address)
        stack.enter_context(server)
        if port == 0:
            show.note(f"metrics are at {server.url}")

    def _check_outputs(self) -> None:
        outputs = self._outputs()
        if self._report is not None:
            outputs.append(self._report.file)
            if any(self._report.file.would_overwrite(other) for other in self._outputs()):
                raise PluginConfigurationError(
                    f"{self._report.file.name} is given as --report and as another output"
                )
        for output in outputs:
            for source in self._inputs:
                if output.is_file(source.status):
                    raise PluginConfigurationError(f"{output.name} is both input and output")
        if self._letters and self._letters.would_overwrite(self._output):
            raise PluginConfigurationError(f"{self._output.name} is given as -o and as --errors")

    def _outputs(self) -> list[OutputFile]:
        return [self._output] if self._letters is None else [self._output, self._letters]

    def left(self) -> list[str]:
        """Where incomplete outputs are, and why there is no report, as parts of a sentence."""
        kept = [
            f"what was written of {output.name} is in {output.kept}"
            for output in self._outputs()
            if output.kept
        ]
        return kept if self._unreported is None else [*kept, f"no report: {self._unreported}"]

    def run(self) -> None:
        """Process every input; the outputs are complete, or kept, afterwards."""
        sizes = [source.size for source in self._inputs]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        shown = sys.stderr.isatty() and not self._output.is_terminal()
        with self._interrupts.watched(), self._opened, show.progress(total, shown) as update:
            try:
                for source in self._inputs:
                    for block in source.blocks(self._manager.pool, self._interrupts.waiting):
                        self._block(source.name, block, update)
            finally:
                self.tally.finish(self._output.size, self._manager.get_metrics(self._name))
                self._write_report()
            self._interrupts.check()  # before the outputs appear under their names
        self.tally.complete = True

    def _write_report(self) -> None:
        """The outputs are complete without it: that it fails is told, and breaks nothing off."""
        if self._report is not None:
            try:
                self._report.write(self._manager)
            except Exception as error:
                if self.options.debug:
                    traceback.print_exc()
                self._unreported = show.sentence(error)

    def _block(self, name: str, block: LineBlock, update: Callable[[Tally], None]) -> None:
        """Process a block in batches that take no longer than Ctrl-C may wait."""
        begin, length = self.tally.bytes_in, len(block.batch)
        start = 0
        while start < length:
            batch = block.batch[start : start + self._batch_size]
            result = self._manager.process_batch(self._name, batch)
            self._write(name, block, start, result)
            start += len(batch)
            self.tally.bytes_in = begin + len(block.memory) * start // length
            self._interrupts.check()
            if result.processing_time > BATCH_SECONDS:
                self._batch_size = max(1, len(batch) // 2)
            elif result.processing_time < BATCH_SECONDS / 8:
                self._batch_size = max(self._batch_size, 8 * len(batch))
            update(self.tally)

    def _write(self, name: str, block: LineBlock, start: int, result: BatchResult) -> None:
        """Write what goes on and report what failed, up to the first failure if that stops."""
        output, filtered = result.output, result.filtered_count
        stop = self.options.errors == STOP
        if result.errors and stop:
            before = result.errors[0][0]
            filtered = int((result.status[:before] == FILTERED).sum())
            output = output[: before - filtered]
        self._output.write(output.to_lines(block.newline))
        self.tally.add(len(output), filtered)
        for failure in failures(name, block, start, result):
            self.tally.add_failure(failure)
            if self._letters is not None:
                self._letters.write(failure.letter())
            if stop:
                raise StoppedError(f"stopped at {failure}")
