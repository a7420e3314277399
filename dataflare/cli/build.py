"""``dataflare build``: a native plugin of a single file."""

from __future__ import annotations

import logging

from dataflare.building import build
from dataflare.cli import show
from dataflare.errors import PluginError

__all__ = ["build_file"]

DONE, UNUSABLE, INTERRUPTED = 0, 2, 130  # exit statuses


def build_file(path: str) -> int:
    """Run the command; returns its exit status."""
    said = logging.StreamHandler()  # that it waits for another process
    said.setFormatter(logging.Formatter("dataflare: %(message)s"))
    logging.getLogger("dataflare").addHandler(said)
    try:
        print(build(path))
    except KeyboardInterrupt:
        return INTERRUPTED
    except PluginError as error:
        show.problem(str(error))
        return UNUSABLE
    return DONE
