"""The plugins that come with the library; native ones on the compiled backend."""

from dataflare._backend import (
    Chain,
    Contains,
    JsonField,
    Lower,
    Regex,
    Replace,
    StartsWith,
    Upper,
)

__all__ = ["Chain", "Contains", "JsonField", "Lower", "Regex", "Replace", "StartsWith", "Upper"]
