"""Episodes on disk, and the way from them to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas.data.formats import open_configured, open_dataset

__all__ = ["open_configured", "open_dataset"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: processes that play a world need this package's types, and none of torch."""
    if name in __all__:
        import atlas.data.formats

        return getattr(atlas.data.formats, name)
    raise AttributeError(f"module 'atlas.data' has no attribute '{name}'")
