"""The house: a room imports only the rooms above it, wherever in a module the import is."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "atlas"

# The lowest first. A line is a room, or modules of the top level that share a level.
ROOMS = [
    "errors types action_errors rotations",
    "system",
    "config",
    "launch",
    "data",
    "registry",
    "policies",
    "tracking",
    "environments",
    "rollout",
    "runs",
    "drawing",
    "checks",
    "viewer",
    "geometry",
    "report",
    "checkpoints",
    "training",
    "serving",
    "prepare",
    "train",
    "learning",
    "sweeps",
    "doctor",
    "cli",
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names.split()}


def modules() -> Iterator[tuple[str, Path]]:
    """("data.hdf5.reader", its file) of everything in the package but atlas/__init__.py."""
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, file


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """(line, "data.hdf5") of each import of Atlas in a module, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "atlas":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("atlas."):
            yield node.lineno, node.module.removeprefix("atlas.")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("atlas.")]
            yield from ((node.lineno, name.removeprefix("atlas.")) for name in names)


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name, _ in modules()} == set(LEVEL)


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = [
        f"{file.relative_to(ROOT.parent)}:{line} imports atlas.{target}"
        for name, file in modules()
        for line, target in imported(file)
        if room(target) in LEVEL and LEVEL[room(target)] > LEVEL[room(name)]
    ]

    assert wrong == []


def test_nobody_outside_of_policies_knows_a_type() -> None:
    """atlas/policies/vggt is a network that the geometry of images also uses, not a policy type."""
    folders = {path.name for path in (ROOT / "policies").iterdir() if path.is_dir()} - {"vggt", "__pycache__"}
    wrong = [
        f"{file.relative_to(ROOT.parent)}:{line} imports atlas.{target}"
        for name, file in modules()
        for line, target in imported(file)
        if room(name) != "policies" and target.split(".")[0] == "policies" and folders & set(target.split(".")[1:2])
    ]

    assert "modular" in folders and wrong == []


def test_a_basename_occurs_once() -> None:
    counts = Counter(name.split(".")[-1] for name, _ in modules())

    assert [name for name, count in counts.items() if count > 1] == []


def test_modules_and_folders_stay_small() -> None:
    long = [name for name, file in modules() if len(file.read_text().splitlines()) > 450]
    folders = Counter(file.parent.relative_to(ROOT) for _, file in modules() if file.name != "__init__.py")

    assert long == [] and [str(folder) for folder, count in folders.items() if count > 15] == []
