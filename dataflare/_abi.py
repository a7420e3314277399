"""What is said of a native plugin that was built against another DataFlare."""

from __future__ import annotations

import re

from dataflare._build_info import VERSION
from dataflare.errors import sentence_of

__all__ = ["why_not_loaded"]

# What Cython says when a base class has other fields than the plugin was compiled with. It names no
# version: neither that of the plugin, which nothing in it tells, nor that of the library.
_OTHER_SIZE = re.compile(
    r"dataflare\.(?:\w+\.)*(?P<base>\w+) size changed, may indicate binary incompatibility\. "
    r"Expected (?P<built>\d+) from C header, got (?P<here>\d+)(?:-\d+)? from PyObject"
)


def why_not_loaded(error: BaseException) -> str:
    """Why a module with a plugin could not be imported, as the end of a sentence.

    Parameters
    ----------
    error : BaseException
        What the import raised.

    Returns
    -------
    str
        What it is and says; of a plugin that was built against a DataFlare whose base classes have
        other fields, what to do about it.
    """
    found = _OTHER_SIZE.match(str(error)) if isinstance(error, ValueError) else None
    if found is None:
        return sentence_of(error)
    return (
        f"it was built with another version of DataFlare, whose {found['base']} has "
        f"{found['built']} bytes; that of the DataFlare it runs with, {VERSION}, has "
        f"{found['here']}: build the plugin again with the DataFlare it runs with"
    )
