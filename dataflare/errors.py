"""Every exception of the library. Each message is one sentence that says what went wrong."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from types import CoroutineType
from typing import Any

__all__ = [
    "CircuitOpenError",
    "DuplicatePluginError",
    "IncompatiblePluginError",
    "PluginConfigurationError",
    "PluginDisabledError",
    "PluginError",
    "PluginInitializationError",
    "PluginMemoryError",
    "PluginProcessingError",
    "PluginSerializationError",
    "PluginTimeoutError",
    "UnhealthyError",
    "UnknownPluginError",
]


class PluginError(Exception):
    """Base class of all errors of the library.

    Parameters
    ----------
    message : str
        One sentence.
    plugin : str, optional
        Name of the plugin that failed.
    code : int or str, optional
        The plugin's own code of the failure.
    retryable : bool
        Whether another attempt may succeed.

    Notes
    -----
    An exception that a plugin raised itself is the ``__cause__``.
    """

    # For the errors of authors whose constructors do not call this one.
    message: str = ""
    plugin: str | None = None
    code: int | str | None = None
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        plugin: str | None = None,
        code: int | str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message if isinstance(message, str) else str(message)
        self.plugin = plugin
        self.code = code if code is None or isinstance(code, int | str) else str(code)
        self.retryable = retryable

    def __str__(self) -> str:
        # KeyError, which one subclass is too, would show its repr.
        return self.message or ", ".join(map(str, self.args))

    def __reduce__(self) -> tuple[object, ...]:
        state = {"plugin": self.plugin, "code": self.code, "retryable": self.retryable}
        return type(self), (self.message,), state


class PluginInitializationError(PluginError):
    """A plugin could not be made ready."""


class PluginConfigurationError(PluginError, ValueError):
    """A plugin was set up with something that cannot work."""


class PluginProcessingError(PluginError):
    """A plugin failed at a record."""


class PluginSerializationError(PluginError):
    """Data could not be read or written in the form it was said to have."""


class PluginTimeoutError(PluginError, TimeoutError):
    """A plugin took longer than it may."""


TOO_LATE = "the batch reached its time limit before this record"
"""What the `PluginTimeoutError` of a record says that the engine did not begin."""


class PluginMemoryError(PluginError, BufferError):
    """A buffer of a memory pool was used in a way that is not allowed."""


class UnknownPluginError(PluginError, KeyError):
    """No plugin of that name is registered."""


class DuplicatePluginError(PluginError):
    """A plugin of that name is registered already."""


class IncompatiblePluginError(PluginError):
    """A plugin was made for another version of the library."""


class PluginDisabledError(PluginError):
    """The plugin was disabled by its manager."""


class CircuitOpenError(PluginError):
    """The plugin failed too often and is not called for a while."""


class UnhealthyError(PluginError):
    """A health check found something that does not work."""


class RunnerStoppedError(PluginError):
    """The plugin was taken out of service; its manager looks for the one that replaced it."""


def sentence_of(error: BaseException) -> str:
    """What an exception is and says; one that cannot say anything is named at least."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def coroutine_error(outcome: Coroutine[Any, Any, Any], what: str) -> PluginProcessingError:
    """What becomes of a record whose plugin is written for asyncio, which nobody runs here."""
    outcome.close()  # else Python warns, at each record, that nobody awaits it
    return PluginProcessingError(f"{what} is a coroutine: it must be a plain function")


def refuse_coroutine(outcome: object, what: str) -> None:
    """Raise if that is what a plugin returned."""
    if isinstance(outcome, CoroutineType):
        raise coroutine_error(outcome, what)


def drop_frames(error: BaseException) -> None:
    """Keep of an exception's traceback only the place, as a note.

    The frames of a traceback lead to those of all callers, and would keep the whole batch alive as
    long as the error of one of its records.
    """
    raised: BaseException | None = error
    while raised is not None and raised.__traceback__ is not None:
        trace = raised.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        code = trace.tb_frame.f_code
        note = f"raised in {code.co_qualname}, {code.co_filename}, line {trace.tb_lineno}"
        with suppress(Exception):  # the notes may be anything, if the exception's author wants
            if note not in getattr(raised, "__notes__", ()):  # raised before: it may be a constant
                raised.add_note(note)
        raised.__traceback__ = None
        raised = raised.__context__ if raised.__cause__ is None else raised.__cause__
