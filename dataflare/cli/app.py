"""The commands and their options."""

from __future__ import annotations

import enum
import platform
import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import dataflare

__all__ = ["app"]

app = typer.Typer(
    name="dataflare",
    help="Run records through plugins, at columnar speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Command(TyperCommand):
    """A command whose usage is written as elsewhere: some versions of Typer put NAME in braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the line of usage."""
        return [re.sub(r"^\{(.*)\}$", r"\1", part) for part in super().collect_usage_pieces(ctx)]


class Format(enum.StrEnum):
    """What a line is."""

    LINES = "lines"
    JSONL = "jsonl"


class Stats(enum.StrEnum):
    """How the summary is printed."""

    TABLE = "table"
    JSON = "json"
    NONE = "none"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dataflare {dataflare.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Run records through plugins, at columnar speed."""


@app.command(cls=Command, no_args_is_help=True)
def run(
    plugins: Annotated[
        list[str],
        typer.Option(
            "--plugin",
            "-p",
            metavar="PLUGIN",
            help="What happens to every line; several run one after the other. A name ('dataflare "
            "plugins' lists them), module:attribute, file.py:attribute, or file.pyx:class.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...", help="Files to read; standard input if there is none, or for -."
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write; the file appears when it is complete.",
            show_default="standard output",
        ),
    ] = "-",
    line_format: Annotated[
        Format,
        typer.Option("--format", help="With jsonl, a line that is not JSON is a failed record."),
    ] = Format.LINES,
    errors: Annotated[
        str,
        typer.Option(
            metavar="collect|stop|FILE|plugin:PLUGIN",
            help="What becomes of records that fail: they are counted and the first ones shown, "
            "the run stops at the first, each is described in FILE by a line of JSON, or each goes "
            "to another plugin.",
        ),
    ] = "collect",
    fail_on_error: Annotated[
        bool,
        typer.Option("--fail-on-error", help="Exit with status 1 if any record failed."),
    ] = False,
    stats: Annotated[
        Stats, typer.Option(help="How to print the summary to standard error.")
    ] = Stats.TABLE,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            help="Threads that share the work, where the plugins run without Python's lock.",
        ),
    ] = 1,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.html|FILE.json",
            help="Where to report how the run went over time: a page with plots, or JSON. It is "
            "written at the end, also of a run that breaks off.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve /metrics for Prometheus, and /healthz, while the run lasts; 0 for any free "
            "port, which is then said.",
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where --metrics-port listens.")
    ] = "127.0.0.1",
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error comes from.")
    ] = False,
) -> None:
    """Run the lines of files through plugins.

    A line is a record, without its line end; what comes out is written with the line ends of its
    input. A record that fails is left out, and all others go on. A value with line ends in it takes
    several lines.

    The arguments of a plugin follow its name and a colon: contains:ERROR, replace:old:new. The last
    argument may contain colons; in one before it, write \\: for a colon. Options stand before the
    first colon: regex,group=1:id=(\\d+).

    Ctrl-C ends the run when the batch at work is written; press it twice not to wait.

    Exit status: 0 when the run is complete; 1 if it broke off, or if records failed and --errors
    stop or --fail-on-error asks for it; 2 if it could not begin; 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP; 141 when the reader of the output went away.
    """
    from dataflare.cli.run import Options
    from dataflare.cli.run import run as run_job

    options = Options(
        plugins=plugins,
        inputs=inputs or [],
        output=output,
        errors=errors,
        jsonl=line_format is Format.JSONL,
        fail_on_error=fail_on_error,
        stats=stats.value,
        jobs=jobs,
        report=report,
        metrics_port=metrics_port,
        metrics_address=metrics_address,
        debug=debug,
    )
    raise typer.Exit(run_job(options))


@app.command(cls=Command, no_args_is_help=True)
def check(
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="PLUGIN",
            help="A name ('dataflare plugins' lists them), module:attribute, file.py:attribute, or "
            "file.pyx:class.",
        ),
    ],
    records: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Records that the plugin is made for, one in a line: tried besides the others.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="What its initialize gets: a JSON object.", show_default=False
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many batches to make up.")
    ] = 50,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PROPERTY", help="Check this property; may be given repeatedly."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PROPERTY", help="Leave this property out; may be given repeatedly."),
    ] = None,
    not_deterministic: Annotated[
        bool,
        typer.Option(
            "--not-deterministic", help="The same records may give other results each time."
        ),
    ] = False,
    stateful: Annotated[
        bool, typer.Option("--stateful", help="A result may depend on the records before.")
    ] = False,
    whole_batch: Annotated[
        bool,
        typer.Option("--whole-batch", help="A result may depend on the other records of a batch."),
    ] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="The plugin is sent to other processes.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long the check of a property may take.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check a plugin on records that it may not expect.

    Each property of a right plugin is checked in a process of its own, so a crash is one more thing
    that is found. Nothing of the plugin is trusted, but it does run: with all its effects.

    Exit status: 0 when all properties that apply hold, 1 when one does not, 2 when the plugin could
    not be checked.
    """
    from dataflare.cli.check import Options, check

    if not timeout > 0:
        raise typer.BadParameter("--timeout must be more than 0 seconds")
    options = Options(
        plugin=plugin,
        examples=examples,
        only=only or [],
        skip=skip or [],
        deterministic=not not_deterministic,
        stateful=stateful,
        whole_batch=whole_batch,
        records=records,
        config=config,
        distributed=distributed,
        timeout=timeout,
        as_json=as_json,
    )
    raise typer.Exit(check(options))


@app.command(cls=Command, no_args_is_help=True)
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the package, and of the directory to make.")
    ],
    native: Annotated[
        bool, typer.Option("--native", help="The plugin is written in Cython.")
    ] = False,
    in_c: Annotated[bool, typer.Option("--c", help="The plugin is written in C.")] = False,
) -> None:
    """Make a package with a plugin, to begin with.

    It can be installed, has tests that check the plugin, and gives it a name that can be used
    wherever a plugin is named. The plugin gets the name NAME in lower case, with - for each dot.

    Exit status: 0 when it is made, 1 when it cannot be written, 2 when NAME cannot be used.
    """
    from dataflare.cli.new import new as make

    if native and in_c:
        raise typer.BadParameter("a plugin is written in Cython or in C: choose one of the two")
    raise typer.Exit(make(name, "c" if in_c else "native" if native else "python"))


@app.command(cls=Command, no_args_is_help=True)
def build(
    file: Annotated[str, typer.Argument(metavar="FILE.pyx", help="A native plugin in Cython.")],
) -> None:
    """Build a native plugin of a single file, and print where it is.

    What was built is kept in the user's cache, or in the directory that DATAFLARE_CACHE names, and
    is used by -p FILE.pyx:CLASS, which builds the file itself if need be. Cython and a C compiler
    are needed; CC, CFLAGS and LDFLAGS are heeded.

    Exit status: 0, or 2 if it cannot be built.
    """
    from dataflare.cli.build import build_file

    raise typer.Exit(build_file(file))


@app.command()
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the plugins that have a name.

    Those of the library, and those that installed packages bring. The packages are imported to say
    what their plugins are; what is wrong with one of them is said.
    """
    from dataflare.cli.listing import print_plugins

    print_plugins(as_json)


@app.command()
def info() -> None:
    """Show versions, the backend and what the processor offers."""
    import numpy as np

    from dataflare._backend import simd_level, simd_levels
    from dataflare.cli import show

    show.pairs(
        [
            ("dataflare", dataflare.__version__),
            ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
            ("NumPy", np.__version__),
            ("platform", platform.platform()),
            ("backend", dataflare.backend),
            ("SIMD in use", simd_level() or "none"),
            ("SIMD available", ", ".join(simd_levels()) or "none"),
        ]
    )
