"""Plug-ins: objects that other packages add to Atlas by name, with entry points or with `register`.

A package names an object under a group of entry points, in its pyproject.toml:

    [project.entry-points."atlas.policies"]
    mine = "my_package.config:MyPolicyConfig"

From then on the name works wherever one of Atlas's own does, in every process of that Python. `atlas.register` does the
same for the process that calls it. What the object has to be is documented where the group's table is.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from atlas.errors import InputError, did_you_mean, first_line

# Each has its table where the things are used: policies in atlas/config/model_section.py, the parts of a modular one in
# atlas/policies/modular/parts.py, environments in atlas/environments/catalog.py, datasets in atlas/data/formats.py,
# perturbations in atlas/environments/perturbations/choices.py.
GROUPS = (
    "atlas.policies",
    "atlas.vision_encoders",
    "atlas.language_encoders",
    "atlas.fusions",
    "atlas.heads",
    "atlas.vlm_heads",
    "atlas.environments",
    "atlas.datasets",
    "atlas.perturbations",
)

_registered: dict[tuple[str, str], Any] = {}

Thing = TypeVar("Thing")


def register(group: str, name: str, thing: Any) -> None:
    """Add an object under a name in a group, in this process. Raises InputError if there is no such group, or if
    another object has been registered under the name."""
    if group not in GROUPS:
        raise InputError(f"There is no group '{group}'.{did_you_mean(group, GROUPS)} Known: {', '.join(GROUPS)}.")
    if _registered.setdefault((group, name), thing) is not thing:
        raise InputError(f"'{name}' is already registered in {group}, for another object; choose another name.")


@dataclass(frozen=True)
class PluginTable(Generic[Thing]):
    """The things of one group by name: Atlas's own, then those of other packages.

    built_in: {name: the thing, or "module:attribute", which is imported when the name is first asked for}. These names
    cannot be taken by others.
    """

    group: str
    built_in: Mapping[str, Thing | str]

    def names(self) -> list[str]:
        """All names that `find` knows. Raises InputError if a package takes one of Atlas's, or two take the same."""
        return [*self.built_in, *sorted(self._added())]

    def find(self, name: object) -> Thing | None:
        """The thing of that name; None if there is none. Raises InputError if it cannot be imported."""
        if not isinstance(name, str):
            return None
        found = self.built_in[name] if name in self.built_in else self._added().get(name)
        if isinstance(found, EntryPoint):
            return self._load(found)
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        return found

    def unknown(self, name: object) -> str:
        """Return the end of a message about an unknown name: ' Did you mean …? Known: …'."""
        names = self.names()
        return f"{did_you_mean(str(name), names)} Known: {', '.join(names)}."

    def _added(self) -> dict[str, Thing | EntryPoint]:
        """Return what other packages offer now: packages get installed, and Python's path changes."""
        added: dict[str, Thing | EntryPoint] = {
            n: thing for (group, n), thing in _registered.items() if group == self.group
        }
        for entry in _offered(self.group, _state_of_path()):
            there = added.setdefault(entry.name, entry)
            if entry.name not in self.built_in and (there is entry or _same(there, entry)):
                continue
            other = "Atlas itself" if entry.name in self.built_in else "another package"
            raise InputError(f"{_whose(entry)} takes the name '{entry.name}' in {self.group}, which {other} has.")
        taken = sorted(set(added) & set(self.built_in))
        if taken:
            raise InputError(f"'{taken[0]}' in {self.group} is Atlas's own; register another name.")
        return added

    def _load(self, entry: EntryPoint) -> Thing:
        try:
            loaded: Thing = entry.load()
        except Exception as error:  # whatever the package fails with
            raise InputError(
                f"{_whose(entry)} offers '{entry.name}' in {self.group} as {entry.value}, which cannot be imported "
                f"({type(error).__name__}: {first_line(error)}). Install what it needs, or remove the package."
            ) from error
        return loaded


@functools.lru_cache(maxsize=len(GROUPS))
def _offered(group: str, state: tuple[object, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of all packages in a group. They are in a file of each package, so they are read again only if
    the state of Python's path is another."""
    return tuple(entry_points(group=group))


def _state_of_path() -> tuple[object, ...]:
    """What installing or removing a package changes: the folders of Python's path, and when each was changed."""
    state: list[object] = []
    for entry in sys.path:
        try:
            stat = os.stat(entry or ".")
        except (OSError, ValueError):
            state.append((entry, None))
        else:
            state.append((entry, stat.st_dev, stat.st_ino, stat.st_mtime_ns))
    return tuple(state)


def _same(there: object, entry: EntryPoint) -> bool:
    """Whether it is the same entry, found twice on Python's path."""
    return isinstance(there, EntryPoint) and there.value == entry.value


def _whose(entry: EntryPoint) -> str:
    return f"The package {entry.dist.name}" if entry.dist is not None else "A package"
