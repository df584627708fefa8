"""The most recently used of things that are costly to create: open files, decoders, facts about a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")


class LRUCache(Generic[Key, Thing]):
    """A cache of at most `bound` things, of which the least recently used goes first. Not thread-safe."""

    def __init__(self, bound: int, discard: Callable[[Thing], object] = lambda thing: None) -> None:
        """discard: called with each thing that goes, for example to close it."""
        assert bound >= 1
        self._bound, self._discard = bound, discard
        self._things: OrderedDict[Key, Thing] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Thing]) -> Thing:
        """The thing for a key, made if there is none."""
        if key not in self._things:
            self._things[key] = make()
            if len(self._things) > self._bound:
                self._discard(self._things.popitem(last=False)[1])
        self._things.move_to_end(key)
        return self._things[key]

    def drop(self, key: Key) -> None:
        """Discard one thing."""
        self._discard(self._things.pop(key))

    @property
    def keys(self) -> list[Key]:
        """Least recently used first."""
        return list(self._things)

    def clear(self) -> None:
        """Discard all."""
        while self._things:
            self._discard(self._things.popitem()[1])
