"""The installed LIBERO package: its suites of tasks, their starts, its settings and its meshes.

Tasks and starts are read from the package's files, because importing the simulator takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pickle
import re
import runpy
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from atlas.environments.rendering import failure_explained
from atlas.errors import InputError, first_line
from atlas.system.documents import read_yaml
from atlas.system.files import write_text
from atlas.system.paths import cache_root

logger = logging.getLogger(__name__)

# Steps after which LIBERO's evaluations give up; each is more than the suite's longest demonstration.
SUITES = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
ALL_SUITES = "libero"
# LIBERO-PRO changes the objects, their places, the words, the task or the scenery of four of the suites:
# https://github.com/Zxy-MLlab/LIBERO-PRO. {our name: (the name of its folders, the original suite)}
PRO_PREFIX = "libero-pro-"
_CHANGES = ("object", "swap", "lan", "task", "env")
PRO_SUITES = {
    f"{PRO_PREFIX}{suite.removeprefix('libero_')}-{change}": (f"{suite}_{change}", suite)
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    for change in _CHANGES
}
HORIZONS = {
    ALL_SUITES: max(SUITES.values()),
    **SUITES,
    **{name: SUITES[changed] for name, (_, changed) in PRO_SUITES.items()},
}

# With --no-deps, since the package declares requirements that its simulator does not import, and that must be compiled
# or pin other packages.
_INSTALL = 'pip install -e ".[libero]" -c constraints.txt && pip install --no-deps hf-libero==0.1.4 bddl==1.0.1'
_ASSETS = (
    *("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures"),
    "turbosquid_objects",
)
_FETCHED = "~/.cache/libero/assets"  # where the package keeps the assets that it fetches
_FETCH = f"hf download lerobot/libero-assets --repo-type dataset --local-dir {_FETCHED}"
_PRO_FETCHED = "~/.cache/libero/pro"
_PRO_FETCH = f"hf download zhouxueyang/LIBERO-Pro --repo-type dataset --local-dir {_PRO_FETCHED}"
_LANGUAGE = re.compile(r"\(:language\s+([^()]+)\)")
_LARGEST_DEFINITION = 2**20  # bytes of a BDDL file
_BREAKS = (3, 4)  # the first MuJoCo version that refuses the model of a task of libero_spatial


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite."""

    suite: str
    instruction: str
    definition: Path  # its scene and its goal, in BDDL
    starts: Path  # its episodes' initial states


@cache
def tasks_of(environment: str) -> dict[str, tuple[LiberoTask, ...]]:
    """The tasks of a suite, or of all suites for `libero`, by instruction, in the benchmark's order.

    Some instructions of libero_90 belong to several tasks, in several scenes. Raises InputError where the package is
    not installed, or LIBERO-PRO's files are missing.
    """
    package = find_package(environment)
    if environment in PRO_SUITES:
        return _pro_tasks(environment, package)
    names = runpy.run_path(str(_task_map(package)))["libero_task_map"]
    tasks: dict[str, tuple[LiberoTask, ...]] = {}
    for suite in SUITES if environment == ALL_SUITES else [environment]:
        for name in names[suite]:
            # The words of the file's name, as in the benchmark: those in the file differ in some suites.
            instruction = _words(name)
            definition = package / "bddl_files" / suite / f"{name}.bddl"
            starts = package / "init_files" / suite / f"{name}.pruned_init"
            task = LiberoTask(suite, instruction, definition, starts)
            tasks[instruction] = (*tasks.get(instruction, ()), task)
    return tasks


def _words(name: str) -> str:
    """The instruction in the name of a task's file."""
    return re.sub(r"^[A-Z_]*SCENE\d+_", "", name).replace("_", " ")


def _pro_tasks(environment: str, package: Path) -> dict[str, tuple[LiberoTask, ...]]:
    """A suite of LIBERO-PRO: one task per file of its folder, in the order of their names. The instruction stands in
    the file where the suite changes the words or the task, and in the file's name otherwise."""
    suite, _ = PRO_SUITES[environment]
    searched = [package, *(Path(_PRO_FETCHED).expanduser() / part for part in ("", "libero_data"))]
    found = next((folder for folder in searched if (folder / "bddl_files" / suite).is_dir()), None)
    if found is None:
        raise InputError(
            f"The environment '{environment}' needs LIBERO-PRO's files: none of these folders has bddl_files/{suite}: "
            f"{', '.join(map(str, searched))}. Fetch them once: {_PRO_FETCH}"
        )
    tasks: dict[str, tuple[LiberoTask, ...]] = {}
    for definition in sorted((found / "bddl_files" / suite).glob("*.bddl")):
        starts = found / "init_files" / suite / f"{definition.stem}.pruned_init"
        if not starts.is_file() or not starts.stat().st_size:
            raise InputError(f"LIBERO-PRO's {definition} has no starts: {starts} is missing or empty.")
        stated = _stated_words(definition) if suite.endswith(("_lan", "_task")) else None
        instruction = stated or _words(definition.stem)
        task = LiberoTask(suite, instruction, definition, starts)
        tasks[instruction] = (*tasks.get(instruction, ()), task)
    if not tasks:
        raise InputError(f"{found / 'bddl_files' / suite} holds no task (*.bddl). Fetch it again: {_PRO_FETCH}")
    return tasks


def _stated_words(definition: Path) -> str | None:
    with definition.open("rb") as file:
        text = file.read(_LARGEST_DEFINITION).decode("utf-8", errors="replace")
    found = _LANGUAGE.search(text)
    return " ".join(found[1].lower().split()) if found else None


def find_package(environment: str) -> Path:
    """The folder of `libero.libero`, without importing it. Raises InputError where there is none."""
    found = importlib.util.find_spec("libero")
    for folder in (found.submodule_search_locations or []) if found else []:
        package = Path(folder) / "libero"
        if _task_map(package).is_file():
            return package
    raise InputError(f"The environment '{environment}' needs LIBERO's package, which is not installed: {_INSTALL}")


def _task_map(package: Path) -> Path:
    return package / "benchmark" / "libero_suite_task_map.py"


# ---- starts ------------------------------------------------------------------------------------------------------


@cache
def read_starts(task: LiberoTask) -> np.ndarray:
    """The initial states of the task's episodes, float64 [starts, D]: time, joint positions, joint velocities.

    Raises InputError where the file is damaged.
    """
    try:
        with zipfile.ZipFile(task.starts) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as file:
                starts = np.asarray(_OnlyArrays(file).load(), np.float64)
    except (OSError, StopIteration, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise InputError(f"{task.starts} cannot be read ({first_line(error)}); install hf-libero again.") from error
    starts.flags.writeable = False  # the cache keeps it
    return starts


class _OnlyArrays(pickle.Unpickler):
    """Reads an array saved by torch.save: without torch, which takes a worker seconds to import, and without running
    anything else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if (module, name) in known:
            return known[module, name]
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not an array")


# ---- settings and meshes -----------------------------------------------------------------------------------------


def load_package(environment: str) -> None:
    """Import LIBERO's simulator in such a way that it asks nothing on standard input and fetches nothing.

    Raises InputError where a package or the meshes and textures are missing.
    """
    package = find_package(environment)
    settings = _settings(package)
    assets = _find_assets(environment, package, settings)
    try:
        with failure_explained():
            libero = importlib.import_module("libero.libero")
            libero._assets_path_cache = str(assets)  # type: ignore[attr-defined]
            importlib.import_module("libero.libero.envs")
    except ModuleNotFoundError as error:
        raise InputError(
            f"The environment '{environment}' needs a package that is missing ({error.name}): {_INSTALL}"
        ) from None
    if environment == ALL_SUITES or "spatial" in environment:
        _warn_of_mujoco()


def _settings(package: Path) -> Path:
    """The package's settings file. Without one the package would ask on standard input, so a missing file is made, in
    Atlas's cache unless the user's LIBERO_CONFIG_PATH names a folder.
    """
    own = Path("~/.libero").expanduser()
    if "LIBERO_CONFIG_PATH" not in os.environ and not (own / "config.yaml").exists():
        os.environ["LIBERO_CONFIG_PATH"] = str(cache_root() / "libero")
    settings = Path(os.environ.get("LIBERO_CONFIG_PATH", own)) / "config.yaml"
    if not settings.exists():
        folders = {
            "benchmark_root": package,
            "bddl_files": package / "bddl_files",
            "init_states": package / "init_files",
            "datasets": package.parent / "datasets",
            "assets": package / "assets",
        }
        write_text(settings, yaml.safe_dump({key: str(folder) for key, folder in folders.items()}))
    return settings


def _find_assets(environment: str, package: Path, settings: Path) -> Path:
    """The folder of meshes and textures: that in the settings, else the package's, else that of fetched assets.

    The package would try to fetch them, in a way that newer versions of huggingface_hub refuse, and go on without them.
    Raises InputError, which names the folders searched, where they are missing, and for an unreadable settings file.
    """
    try:
        stated = dict(read_yaml(settings) or {})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{settings} is not a settings file of LIBERO's ({first_line(error)}); correct or remove it."
        ) from None
    searched = [Path(stated.get("assets") or package / "assets"), package / "assets", Path(_FETCHED).expanduser()]
    for folder in searched:
        if all((folder / part).is_dir() for part in _ASSETS):
            return folder
    raise InputError(
        f"The environment '{environment}' needs LIBERO's meshes and textures (200 MB), which its package does not "
        f"contain: none of these folders has {', '.join(_ASSETS)}: {', '.join(dict.fromkeys(map(str, searched)))}. "
        f"Fetch them once: {_FETCH} (or name the folder of a copy as `assets` in {settings})."
    )


@cache  # once per process
def _warn_of_mujoco() -> None:
    version = importlib.import_module("mujoco").__version__
    if tuple(int(part) for part in version.split(".")[:2]) >= _BREAKS:
        logger.warning(
            "MuJoCo %s cannot load the model of one task of libero_spatial; measure this suite's success rates with a "
            'version below 3.4: pip install "mujoco<3.4"',
            version,
        )
