"""Whether a world's package is here, and whether what it asks for is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import InvalidRequirement, Requirement

from atlas.errors import InputError, first_line

ELSEWHERE = "Give it a Python environment of its own, and drive it from here: atlas environment serve, docs/worlds.md."


def check_installed(name: str, module: str, extra: str) -> None:
    """Raises InputError with the line that installs a world whose module is missing."""
    if find_spec(module) is None:
        raise InputError(
            f"The environment '{name}' is not installed: pip install 'atlas-vla[{extra}]'. Where other packages forbid "
            f"that: {ELSEWHERE[0].lower()}{ELSEWHERE[1:]}"
        )


def conflicting_pins(distribution: str) -> list[str]:
    """What a package asks for that is here in another version, or not here."""
    found = []
    for text in requires(distribution) or ():
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            continue
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(asked.name)
        except PackageNotFoundError:
            found.append(f"{asked.name}{asked.specifier} is not here")
            continue
        if not asked.specifier.contains(here, prereleases=True):
            found.append(f"{asked.name}{asked.specifier} is asked for, and {here} is here")
    return found


@contextmanager
def pins_explained(name: str, distribution: str) -> Iterator[None]:
    """Around the import of a world's package and its start: where that fails and other versions are here than it asks
    for, the failure becomes an InputError that names them."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of anybody's code
        found = conflicting_pins(distribution)
        if not found:
            raise
        raise InputError(
            f"The environment '{name}' fails ({type(error).__name__}: {first_line(error)}), and what {distribution} "
            f"asks for conflicts with what is installed: {'; '.join(found)}. {ELSEWHERE}"
        ) from error
