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
    logger, waiting = logging.getLogger("dataflare"), logging.StreamHandler()
    waiting.setFormatter(logging.Formatter("dataflare: %(message)s"))
    logger.addHandler(waiting)  # what it waits for, if it does
    try:
        print(build(path))
    except KeyboardInterrupt:
        return INTERRUPTED
    except PluginError as error:
        show.problem(str(error))
        return UNUSABLE
    finally:
        logger.removeHandler(waiting)
    return DONE
