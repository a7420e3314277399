"""The command line: parses, calls the library, prints."""

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command that the process was started with."""
    if sys.stderr is None:  # closed by who started the process
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if not all(map(find_spec, ("typer", "rich", "msgspec"))):
        sys.exit("dataflare: the command line needs an extra: pip install 'dataflare[cli]'")
    from dataflare.cli.app import app

    app()
