from collections.abc import Callable, Mapping
from typing import overload

from dataflare._compiled.record import PluginRecord, PluginResult
from dataflare.types import PluginInfo, PluginState

class DataFlarePlugin:
    thread_safe: bool
    releases_gil: bool
    retryable_errors: tuple[type[BaseException], ...]
    def process(self, record: PluginRecord) -> PluginResult: ...
    def info(self) -> PluginInfo: ...
    def get_state(self) -> PluginState: ...
    def initialize(self, config: Mapping[str, object]) -> None: ...
    def cleanup(self) -> None: ...
    def health_check(self) -> bool: ...

class NativePlugin(DataFlarePlugin):
    @staticmethod
    def from_function(
        function: object,
        *,
        name: str | None = None,
        state: object = None,
        thread_safe: bool = False,
        description: str = "",
    ) -> NativePlugin: ...
    @staticmethod
    def from_capsule(
        capsule: object, *, name: str | None = None, config: str | bytes = ""
    ) -> NativePlugin: ...

class MapPlugin(DataFlarePlugin):
    def __init__(
        self, function: Callable[[bytes], bytes], name: str | None = None, thread_safe: bool = False
    ) -> None: ...
    @property
    def function(self) -> Callable[[bytes], bytes]: ...
    @property
    def name(self) -> str: ...
    def __call__(self, value: bytes) -> bytes: ...

class FilterPlugin(DataFlarePlugin):
    def __init__(
        self,
        function: Callable[[bytes], object],
        name: str | None = None,
        thread_safe: bool = False,
    ) -> None: ...
    @property
    def function(self) -> Callable[[bytes], object]: ...
    @property
    def name(self) -> str: ...
    def __call__(self, value: bytes) -> object: ...

@overload
def map_plugin(
    function: Callable[[bytes], bytes], /, *, name: str | None = None, thread_safe: bool = False
) -> MapPlugin: ...
@overload
def map_plugin(
    function: None = None, /, *, name: str | None = None, thread_safe: bool = False
) -> Callable[[Callable[[bytes], bytes]], MapPlugin]: ...
@overload
def filter_plugin(
    function: Callable[[bytes], object], /, *, name: str | None = None, thread_safe: bool = False
) -> FilterPlugin: ...
@overload
def filter_plugin(
    function: None = None, /, *, name: str | None = None, thread_safe: bool = False
) -> Callable[[Callable[[bytes], object]], FilterPlugin]: ...
def set_c_doors(
    from_function: Callable[..., NativePlugin], from_capsule: Callable[..., NativePlugin]
) -> None: ...
def set_state(plugin: DataFlarePlugin, state: PluginState) -> None: ...
