"""Chains of plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from dataflare._pure.plugin import DataFlarePlugin, plugin_name
from dataflare._pure.record import PluginRecord, PluginResult, require
from dataflare._pure.result import raise_plugin_error, wrong_type
from dataflare.types import PluginInfo

_make_named: Callable[[str], DataFlarePlugin] | None = None


def let_strings_name_plugins(make: Callable[[str], DataFlarePlugin]) -> None:
    """From here on, a string in the place of a plugin is what names one.

    Parameters
    ----------
    make : callable
        Makes the plugin that a string names. Only `dataflare.loading` can: it stands above this
        module, which cannot import it.
    """
    global _make_named
    _make_named = make


def as_member(value: object) -> object:
    """The plugin that a string names; anything else as it is."""
    return _make_named(value) if isinstance(value, str) and _make_named else value


def not_a_member(value: object) -> str:
    """Why something that is no plugin cannot be in a chain."""
    if isinstance(value, type) and issubclass(value, DataFlarePlugin):
        return f"{value.__name__} is a class: give an instance, {value.__name__}()"
    if isinstance(value, (list, tuple)):
        return "give the plugins one by one: Chain(*plugins)"
    return f"a chain is made of plugins, not of {type(value).__name__}"


class Chain(DataFlarePlugin):
    """Several plugins, one after the other.

    Parameters
    ----------
    *plugins : DataFlarePlugin or str
        At least one; of a string the plugin that it names, as in `PluginManager.register_plugin`.
        Chains among them are taken apart.

    Raises
    ------
    TypeError
        There is none, or one of them is no plugin.
    PluginError
        A string names no plugin that can be used.

    Notes
    -----
    A record that a plugin drops or that fails does not reach the plugins behind it.
    """

    def __init__(self, *plugins: DataFlarePlugin | str) -> None:
        if not plugins:
            raise TypeError("a chain needs at least one plugin")
        flat: list[DataFlarePlugin] = []
        for plugin in map(as_member, plugins):
            if isinstance(plugin, Chain):
                flat.extend(plugin.plugins)
            elif isinstance(plugin, DataFlarePlugin):
                flat.append(plugin)
            else:
                raise TypeError(not_a_member(plugin))
        self.plugins: tuple[DataFlarePlugin, ...] = tuple(flat)
        self.stages = self.plugins
        self._stage_ns = [0] * len(flat)

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """bool: Whether every member is."""
        return all(plugin.thread_safe for plugin in self.plugins)

    @property
    def releases_gil(self) -> bool:  # type: ignore[override]
        """bool: Whether every member does."""
        return all(plugin.releases_gil for plugin in self.plugins)

    @property
    def retryable_errors(self) -> tuple[type[BaseException], ...]:  # type: ignore[override]
        """tuple of exception types: Those of all members."""
        return tuple(kind for plugin in self.plugins for kind in plugin.retryable_errors)

    def exclusive_times(self) -> list[tuple[str, float]]:
        """Seconds that batches spent in each plugin alone.

        Returns
        -------
        list of (str, float)
            Name and time of every member.
        """
        return [
            (plugin_name(plugin), elapsed / 1e9)
            for plugin, elapsed in zip(self.plugins, self._stage_ns, strict=True)
        ]

    def process(self, record: PluginRecord) -> PluginResult:
        """Take one record through the chain.

        Parameters
        ----------
        record : PluginRecord

        Returns
        -------
        PluginResult
            Skip, if every member passed the record on unchanged.
        """
        require(record, PluginRecord, "record")
        current = record
        changed = False
        metadata = None
        for stage in self.stages:
            try:
                result = stage.process(current)
                if type(result) is not PluginResult:
                    raise wrong_type(result)
            except Exception as error:
                raise_plugin_error(error, plugin_name(stage))
            if result.is_skip:
                continue
            if result.data is None:
                return result
            changed = True
            if result.metadata is not None:
                metadata = result.metadata
            current = PluginRecord(
                result.data,
                key=current.key,
                metadata=current.metadata if metadata is None else metadata,
                timestamp=current.timestamp,
                partition=current.partition,
                offset=current.offset,
            )
        return PluginResult.success(current.value, metadata) if changed else PluginResult.skip()

    def info(self) -> PluginInfo:
        """Name: those of the members, with bars in between."""
        return PluginInfo(
            name=" | ".join(plugin_name(plugin) for plugin in self.plugins),
            description="Several plugins, one after the other.",
        )

    def initialize(self, config: Mapping[str, object]) -> None:
        """Initialise every member with the same configuration."""
        with ExitStack() as stack:
            for plugin in each_once(self.plugins):
                plugin.initialize(config)
                stack.callback(plugin.cleanup)  # if one behind it fails
            stack.pop_all()

    def cleanup(self) -> None:
        """Clean every member up."""
        with ExitStack() as stack:  # what one raises does not spare the others
            for plugin in reversed(each_once(self.plugins)):
                stack.callback(plugin.cleanup)

    def health_check(self) -> bool:
        """Whether every member is fit for work."""
        answers = [plugin.health_check() for plugin in self.plugins]
        return all(answers)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.plugins))})"


def each_once(plugins: tuple[DataFlarePlugin, ...]) -> list[DataFlarePlugin]:
    """The members without repetitions; two that are equal are two all the same."""
    return list({id(plugin): plugin for plugin in plugins}.values())
