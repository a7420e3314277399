"""Native DataFlare plugins for lines of words."""

from logfields.words import Prefix, Word

__all__ = ["Prefix", "Word"]
