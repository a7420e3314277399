from collections.abc import Callable, Mapping

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

def set_c_doors(
    from_function: Callable[..., NativePlugin], from_capsule: Callable[..., NativePlugin]
) -> None: ...
def set_state(plugin: DataFlarePlugin, state: PluginState) -> None: ...
