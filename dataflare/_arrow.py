"""What both backends say and decide about Arrow data, apart from the memory it lies in."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "RECORD_COLUMNS",
    "RESULT_COLUMNS",
    "STATUSES",
    "TYPES",
    "check_columns",
    "check_type",
    "choose",
    "export_names",
    "fits",
    "type_name",
]

TYPES = {
    "binary": "z",
    "string": "u",
    "large_binary": "Z",
    "large_string": "U",
    "binary_view": "vz",
    "string_view": "vu",
}
"""The types that values are exported as, and how Arrow's C data interface writes them."""

RECORD_COLUMNS = ("value", "key", "timestamp", "partition", "offset", "metadata")
RESULT_COLUMNS = (*RECORD_COLUMNS, "index", "status", "error")
STATUSES = ("success", "filtered", "skip", "error")

_NAMES = {written: name for name, written in TYPES.items()} | {
    "n": "null",
    "b": "bool",
    "c": "int8",
    "C": "uint8",
    "s": "int16",
    "S": "uint16",
    "i": "int32",
    "I": "uint32",
    "l": "int64",
    "L": "uint64",
    "e": "float16",
    "f": "float32",
    "g": "float64",
    "tdD": "date32",
    "tdm": "date64",
    "+l": "list",
    "+L": "large_list",
    "+vl": "list_view",
    "+vL": "large_list_view",
    "+s": "struct",
    "+m": "map",
    "+r": "run_end_encoded",
}
_UNITS = {"s": "s", "m": "ms", "u": "us", "n": "ns"}


def type_name(written: str) -> str:
    """How people call a type that the C data interface writes so.

    Parameters
    ----------
    written : str

    Returns
    -------
    str
    """
    if written[:2] == "ts" and written[2:3] in _UNITS and written[3:4] == ":":
        return f"timestamp[{_UNITS[written[2]]}]"
    if written[:2] == "w:":
        return f"fixed_size_binary[{written[2:]}]"
    return _NAMES.get(written) or f"{written!r}"


def choose(names: Sequence[str], wanted: Sequence[str | None]) -> list[int]:
    """Which columns of a table the parts of a record come from.

    Parameters
    ----------
    names : sequence of str
        Of the table's columns.
    wanted : sequence of (str or None)
        By part of a record, in the order of `RECORD_COLUMNS`.

    Returns
    -------
    list of int
        By part; -1: it comes from none.

    Raises
    ------
    TypeError
        A name is not a string.
    ValueError
        There is no such column, or more than one.
    """
    chosen = []
    for part, name in zip(RECORD_COLUMNS, wanted, strict=True):
        if name is None:
            chosen.append(_only(names) if part == "value" else -1)
            continue
        if not isinstance(name, str):
            raise TypeError(f"{part} must be the name of a column, not {type(name).__name__}")
        if names.count(name) != 1:
            many = "more than one column" if name in names else "no column"
            raise ValueError(f"{many} {name!r}; there are {_listed(names)}")
        chosen.append(names.index(name))
    return chosen


def _only(names: Sequence[str]) -> int:
    """The column of values, where none was named."""
    if len(names) == 1:
        return 0
    if names.count("value") != 1:
        raise ValueError(
            f"which column has the values? Name it by value=...; there are {_listed(names)}"
        )
    return names.index("value")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def check_columns(columns: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The columns to export.

    Parameters
    ----------
    columns : sequence of str
    known : sequence of str

    Returns
    -------
    tuple of str

    Raises
    ------
    TypeError
        `columns` is a single string.
    ValueError
        There is no such column, or it is there twice.
    """
    if isinstance(columns, str):
        raise TypeError("columns must be a sequence of names, not one str")
    chosen = tuple(columns)
    for column in chosen:
        if column not in known:
            raise ValueError(f"no column {column!r}; there are {_listed(known)}")
        if chosen.count(column) > 1:
            raise ValueError(f"the column {column!r} is there twice")
    if not chosen:
        raise ValueError("no column to export")
    return chosen


def check_type(name: str | None) -> None:
    """Refuse a type that values cannot have.

    Raises
    ------
    ValueError
    """
    if name is not None and name not in TYPES:
        raise ValueError(f"no type {name!r}; there are {_listed([*TYPES])}")


def export_names(columns: Sequence[str], name: str | None) -> list[str]:
    """What exported columns are called: the values as the column that they came from.

    Parameters
    ----------
    columns : sequence of str
    name : str or None
        Of that column; not used where another column has it.

    Returns
    -------
    list of str
    """
    if name is None or name in columns:
        return list(columns)
    return [name if column == "value" else column for column in columns]


def fits(column: str, written: str) -> bool:
    """Whether a column can be exported as a type, as far as the type alone says.

    Parameters
    ----------
    column : str
        Of `RESULT_COLUMNS`.
    written : str
        The type, as the C data interface writes it.

    Returns
    -------
    bool
    """
    if column in ("value", "key"):
        return written in TYPES.values()
    if column in ("status", "error"):
        return written in ("u", "U", "vu")
    if column == "timestamp":
        return written in ("tsn:", "l")
    if column == "metadata":
        return written == "+m"
    return written == "l" or (column == "partition" and written == "i")
