"""The last used of things that are costly to have: open files, decoders, what is known of a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")


class LRUCache(Generic[Key, Thing]):
    """At most `bound` things, of which the one that was not used for longest goes first. Not for several threads."""

    def __init__(self, bound: int, discard: Callable[[Thing], object] = lambda thing: None) -> None:
        """discard: called with each thing that goes, such as to close it."""
        assert bound >= 1
        self._bound, self._discard = bound, discard
        self._things: OrderedDict[Key, Thing] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Thing]) -> Thing:
        """The thing of a key, made where there is none."""
        if key not in self._things:
            self._things[key] = make()
            if len(self._things) > self._bound:
                self._discard(self._things.popitem(last=False)[1])
        self._things.move_to_end(key)
        return self._things[key]

    def drop(self, key: Key) -> None:
        """Discard one."""
        self._discard(self._things.pop(key))

    @property
    def keys(self) -> list[Key]:
        """From the one that would go first to the last used one."""
        return list(self._things)

    def clear(self) -> None:
        """Discard all."""
        while self._things:
            self._discard(self._things.popitem()[1])
