"""Native DataFlare plugins for lines of words."""

from logfields.words import Prefix, Word

__all__ = ["Prefix", "Word", "log_prefix", "log_word"]


# What the names in pyproject.toml stand for. A class in Cython does not tell which arguments it
# takes; a function does.
def log_word(number: int) -> Word:
    """Extracts the n-th word of a line, counted from 0."""
    return Word(number)


def log_prefix(prefix: bytes) -> Prefix:
    """Puts some bytes in front of every line."""
    return Prefix(prefix)
