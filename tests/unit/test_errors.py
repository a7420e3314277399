"""The exceptions: hierarchy, text, pickling."""

import copy
import pickle

import pytest

from dataflare import errors

NAMES = errors.__all__
EXTRA_BASES = {
    "PluginConfigurationError": ValueError,
    "PluginTimeoutError": TimeoutError,
    "PluginMemoryError": BufferError,
    "UnknownPluginError": KeyError,
}


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_its_sentence(name: str) -> None:
    """Text, attributes and defaults are the same for every class."""
    error = getattr(errors, name)("it went wrong: 'x'")
    assert str(error) == error.message == "it went wrong: 'x'"
    assert error.plugin is None
    assert error.code is None
    assert isinstance(error, errors.PluginError)
    assert isinstance(error, EXTRA_BASES.get(name, Exception))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", [7, "E7", None])
def test_errors_survive_pickling_and_copying(name: str, code: object) -> None:
    """Class, text, plugin and code come back."""
    error = getattr(errors, name)("it went wrong", plugin="upper", code=code)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), again.message) == ("it went wrong", "it went wrong")
        assert (again.plugin, again.code) == ("upper", code)


def test_plugin_and_code_are_given_by_name() -> None:
    """A second positional argument is refused."""
    with pytest.raises(TypeError):
        errors.PluginError("message", "plugin")  # type: ignore[misc]


def test_what_is_no_text_becomes_text() -> None:
    """A message that is an exception, a code that is anything."""
    error = errors.PluginError(ValueError("no"), code=2.5)
    assert (str(error), error.message, error.code) == ("no", "no", "2.5")
    assert str(pickle.loads(pickle.dumps(error))) == "no"


def test_the_cause_stays() -> None:
    """What a plugin raised is the cause of the error it becomes."""
    cause = ValueError("bad thing")
    with pytest.raises(errors.PluginProcessingError) as caught:
        raise errors.PluginProcessingError("ValueError: bad thing") from cause
    assert caught.value.__cause__ is cause
