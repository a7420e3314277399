"""Plain functions as plugins."""
from dataflare._compiled.plugin cimport DataFlarePlugin
from dataflare._compiled.record cimport PluginResult

import functools

from dataflare._compiled.plugin import first_line
from dataflare.errors import PluginProcessingError, refuse_coroutine
from dataflare.types import PluginInfo, PluginType


cdef class MapPlugin(DataFlarePlugin):
    """A function from the value of a record to its new value; made by `map_plugin`."""

    def __cinit__(self, function, name=None, thread_safe=False):
        self.function = checked(function)
        self.name = name or function_name(function)
        self.thread_safe = thread_safe
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def process(self, record):
        """The function's value for the record."""
        return PluginResult.success(as_bytes(self.function(plain(record.value))))

    def info(self):
        """Name and docstring of the function."""
        return PluginInfo(name=self.name, plugin_type=PluginType.TRANSFORMER,
                          description=first_line(self.function.__doc__))

    def __repr__(self):
        return f"map_plugin({self.name})"

    def __reduce__(self):
        return MapPlugin, (self.function, self.name, self.thread_safe)


cdef class FilterPlugin(DataFlarePlugin):
    """A function from the value of a record to whether it goes on; made by `filter_plugin`."""

    def __cinit__(self, function, name=None, thread_safe=False):
        self.function = checked(function)
        self.name = name or function_name(function)
        self.thread_safe = thread_safe
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def process(self, record):
        """Whether the record goes on."""
        keep = as_truth(self.function(plain(record.value)))
        return PluginResult.skip() if keep else PluginResult.filtered()

    def info(self):
        """Name and docstring of the function."""
        return PluginInfo(name=self.name, plugin_type=PluginType.FILTER,
                          description=first_line(self.function.__doc__))

    def __repr__(self):
        return f"filter_plugin({self.name})"

    def __reduce__(self):
        return FilterPlugin, (self.function, self.name, self.thread_safe)


cdef object plain(object value):
    return value if type(value) is bytes else bytes(value)


cdef object checked(object function):
    if not callable(function):
        raise TypeError(f"a plugin is made of a function, not of {type(function).__name__}")
    return function


cdef object function_name(object function):
    return getattr(function, "__name__", None) or type(function).__name__


cdef bytes as_bytes(object data):
    """What a map function returned, as `bytes`."""
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    refuse_coroutine(data, "the function")
    raise PluginProcessingError(f"the function returned {type(data).__name__}, not bytes")


cdef bint as_truth(object answer) except -1:
    """Whether a filter function keeps the record."""
    if answer is None:  # most likely, nothing was returned at all
        raise PluginProcessingError("the function returned NoneType, not bool")
    if type(answer) is not bool:
        refuse_coroutine(answer, "the function")
    return bool(answer)


def map_plugin(function=None, /, *, name=None, thread_safe=False):
    """Make a plugin of a function ``bytes -> bytes``.

    Parameters
    ----------
    function : callable
        Gets the value of a record, returns the new one.
    name : str, optional
        The function's own name if not given.
    thread_safe : bool
        Whether several threads may call the function at the same time.

    Returns
    -------
    MapPlugin
        Still callable as the function.

    Examples
    --------
    >>> @map_plugin
    ... def shout(value):
    ...     return value + b"!"
    """
    if function is None:
        return functools.partial(MapPlugin, name=name, thread_safe=thread_safe)
    return MapPlugin(function, name, thread_safe)


def filter_plugin(function=None, /, *, name=None, thread_safe=False):
    """Make a plugin of a function ``bytes -> bool``.

    Parameters
    ----------
    function : callable
        Gets the value of a record; the record goes on if it returns something true.
    name : str, optional
        The function's own name if not given.
    thread_safe : bool
        Whether several threads may call the function at the same time.

    Returns
    -------
    FilterPlugin
        Still callable as the function.

    Examples
    --------
    >>> @filter_plugin
    ... def is_error(value):
    ...     return b"ERROR" in value
    """
    if function is None:
        return functools.partial(FilterPlugin, name=name, thread_safe=thread_safe)
    return FilterPlugin(function, name, thread_safe)
