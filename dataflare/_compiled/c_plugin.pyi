from typing import final

from dataflare._compiled.plugin import NativePlugin

@final
class CPlugin(NativePlugin):
    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...

def from_function(
    function: object,
    *,
    name: str | None = None,
    state: object = None,
    thread_safe: bool = False,
    description: str = "",
) -> NativePlugin: ...
def from_capsule(
    capsule: object, *, name: str | None = None, config: str | bytes = ""
) -> NativePlugin: ...
def c_functions() -> dict[str, int]: ...
def new_capsule(address: int, owner: object) -> object: ...
