"""Checks whether a world's package and its requirements are installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import InvalidRequirement, Requirement

from atlas.errors import InputError, first_line

ELSEWHERE = "Give it its own Python environment, and drive it from here: atlas environment serve, docs/worlds.md."


def check_installed(name: str, module: str, extra: str) -> None:
    """Raise InputError, with the command that installs it, for a world whose module is missing."""
    if find_spec(module) is None:
        raise InputError(
            f"The environment '{name}' is not installed: pip install 'atlas-vla[{extra}]'. If other packages conflict "
            f"with it: {ELSEWHERE[0].lower()}{ELSEWHERE[1:]}"
        )


def conflicting_pins(distribution: str) -> list[str]:
    """A package's requirements that are installed in another version, or not installed."""
    conflicts = []
    for text in requires(distribution) or ():
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(needed.name)
        except PackageNotFoundError:
            conflicts.append(f"{needed.name}{needed.specifier} is not installed")
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            conflicts.append(f"{needed.name}{needed.specifier} is required, and {installed} is installed")
    return conflicts


@contextmanager
def pins_explained(name: str, distribution: str) -> Iterator[None]:
    """For the import and the start of a world's package: where they fail and the package's requirements conflict with
    what is installed, raise InputError that names the conflicts."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the package may raise anything
        conflicts = conflicting_pins(distribution)
        if not conflicts:
            raise
        raise InputError(
            f"The environment '{name}' fails ({type(error).__name__}: {first_line(error)}), and the requirements of "
            f"{distribution} conflict with what is installed: {'; '.join(conflicts)}. {ELSEWHERE}"
        ) from error
