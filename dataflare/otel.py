"""A manager as OpenTelemetry sees it; needs the extra ``otel``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from dataflare._build_info import VERSION
from dataflare.figures import FIGURES, Figure, Kind, Reading, points
from dataflare.manager import PluginManager

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        Meter,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
except ImportError as error:
    raise ImportError(
        "dataflare.otel needs the package opentelemetry-api: pip install 'dataflare[otel]'"
    ) from error

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["Instrumentation", "instrument"]


class Instrumentation:
    """A manager that is measured; `instrument` makes it.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        manager: PluginManager,
        attributes: Mapping[str, AttributeValue],
        instruments: _Instruments,
    ) -> None:
        self.attributes = dict(attributes)
        self._manager = weakref.ref(manager)
        self._instruments = instruments

    def reading(self) -> Reading | None:
        """A reading of the manager; None once it is gone."""
        manager = self._manager()
        return None if manager is None else Reading(manager)

    def close(self) -> None:
        """Show no more figures of the manager; closing twice is fine."""
        self._instruments.remove(self)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Instruments:
    """The instruments of a meter; it takes every one once, so all managers share them."""

    # `_measured` is replaced as a whole: callbacks read it without the lock.

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: tuple[Instrumentation, ...] = ()

    def create(self, meter: Meter) -> None:
        create: dict[Kind, Callable[..., object]] = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.LEVEL: meter.create_observable_up_down_counter,
            Kind.GAUGE: meter.create_observable_gauge,
        }
        for figure in FIGURES:
            create[figure.kind](
                figure.otel,
                callbacks=[self._callback(figure)],
                unit=figure.unit,
                description=figure.description,
            )

    def _callback(self, figure: Figure) -> Callable[[CallbackOptions], Iterator[Observation]]:
        names = [f"dataflare.{label}" for label in figure.labels]

        def observe(options: CallbackOptions) -> Iterator[Observation]:
            for measured in self._measured:
                reading = measured.reading()
                if reading is None:
                    continue
                for values, value in points(figure, reading):
                    attributes = {**measured.attributes, **dict(zip(names, values, strict=True))}
                    yield Observation(value, attributes)

        return observe

    def add(self, new: Instrumentation) -> None:
        with self._lock:
            alive = [each for each in self._measured if each.reading() is not None]
            if any(each.attributes == new.attributes for each in alive):
                raise ValueError(
                    "this meter provider shows another manager already: "
                    "tell them apart by attributes"
                )
            self._measured = (*alive, new)

    def remove(self, old: Instrumentation) -> None:
        with self._lock:
            self._measured = tuple(each for each in self._measured if each is not old)


_lock = threading.Lock()
_instruments: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()


def instrument(
    manager: PluginManager,
    meter_provider: MeterProvider | None = None,
    *,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Instrumentation:
    """Show a manager through a meter provider of OpenTelemetry.

    Nothing is counted for it: what the manager counts anyway is read when the provider's reader
    collects. The manager is not kept alive. Once it is closed, ``dataflare.up`` is 0 and nothing
    else is shown; once it is gone, nothing is.

    Parameters
    ----------
    manager : PluginManager
    meter_provider : opentelemetry.metrics.MeterProvider, optional
        The global one if not given; set it before.
    attributes : Mapping, optional
        Put on every figure, to tell several managers of a provider apart.

    Returns
    -------
    Instrumentation
        Shows the manager until it is closed.

    Raises
    ------
    ValueError
        The provider shows another manager with the same attributes.
    """
    if not isinstance(manager, PluginManager):
        raise TypeError(f"manager must be a PluginManager, not {type(manager).__name__}")
    provider = get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        instruments = _instruments.get(provider)
        if instruments is None:
            instruments = _Instruments()
            instruments.create(provider.get_meter("dataflare", VERSION))
            _instruments[provider] = instruments
    made = Instrumentation(manager, attributes or {}, instruments)
    instruments.add(made)
    return made
