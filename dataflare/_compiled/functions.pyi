from collections.abc import Callable
from typing import overload

from dataflare._compiled.plugin import DataFlarePlugin

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
