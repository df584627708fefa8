"""The checks of the machine: system, packages, cores, memory, disks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import atlas
from atlas.config import Config
from atlas.doctor.gpus import read_gpus
from atlas.doctor.limits import core_limit, memory_limit, memory_used
from atlas.doctor.verdict import Finding, Status, gib
from atlas.system.paths import cache_root
from atlas.system.process_control.cores import available_cores
from atlas.tracking.provenance import installed_version

_DISTRIBUTION = "atlas-vla"
_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_OPTIONAL = ("wandb", "mujoco", "robosuite", "peft")
_LEAST_MEMORY, _ENOUGH_MEMORY = 1.5 * 2**30, 4 * 2**30
_ENOUGH_SHARED_MEMORY = 2**30
_LEAST_DISK, _ENOUGH_DISK = 2**29, 5 * 2**30
_CORES_PER_GPU = 2  # one that trains and one that reads data


def check_platform() -> Finding:
    """The system, Python and Atlas itself."""
    system = platform.platform()
    release = Path("/etc/os-release")
    if release.exists():
        values = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
        system = f"{values.get('PRETTY_NAME', '').strip(chr(34))}, {system}"
    details = {
        "system": system,
        "python": platform.python_version(),
        "executable": sys.executable,
        "atlas": atlas.__version__,
    }
    summary = f"{system}; Python {details['python']}; Atlas {atlas.__version__}"
    if platform.system() != "Linux":
        fix = "Training was only tested on Linux; on Windows use WSL 2."
        return Finding("platform", "warning", summary, fix, details)
    return Finding("platform", "ok", summary, None, details)


# ---- packages ----------------------------------------------------------------------------------------------


def check_packages() -> Finding:
    """Whether Atlas's requirements are installed in suitable versions."""
    required = declared_requirements()
    return judge_packages(required, {name: installed_version(name) for name in (*_names(required), *_OPTIONAL)})


def judge_packages(required: Sequence[str], versions: dict[str, str | None]) -> Finding:
    """required: such as 'torch>=2.6'; versions: the installed ones, None for missing packages."""
    from packaging.requirements import Requirement

    details = {"versions": versions, "required": list(required)}
    wrong = []
    for requirement in map(Requirement, required):
        version = versions[requirement.name]
        if version is None:
            wrong.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, but Atlas needs {requirement.specifier}")
    if wrong:
        fix = "pip install -e . in Atlas's folder, or remove .venv and let ./train.sh make it again."
        return Finding("packages", "problem", "; ".join(wrong), fix, details)
    shown = ("torch", "accelerate", "transformers", "numpy", *_OPTIONAL)
    summary = ", ".join(f"{name} {versions[name] or '(not installed)'}" for name in shown if name in versions)
    return Finding("packages", "ok", summary, None, details)


def declared_requirements() -> list[str]:
    """The package's requirements without extras: from its installation, else from the source's pyproject.toml."""
    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        declared = _requirements_of_source(_PYPROJECT.read_text(encoding="utf-8"))
    return [text for text in declared if "extra ==" not in text]


def _requirements_of_source(text: str) -> list[str]:
    # Python 3.10 has no TOML parser; the file beside this package has one requirement per line.
    listed = text.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    return [line.split('"')[1] for line in listed.splitlines() if line.strip().startswith('"')]


def _names(requirements: Iterable[str]) -> list[str]:
    from packaging.requirements import Requirement

    return [Requirement(text).name for text in requirements]


# ---- cores and memory --------------------------------------------------------------------------------------


def check_cores() -> Finding:
    """Check how many cores there are, how many this process may use, and how busy they are."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return judge_cores(os.cpu_count() or 1, available_cores(), core_limit(), load, len(read_gpus().gpus))


def judge_cores(cores: int, allowed: int, limit: float | None, load: float, gpus: int) -> Finding:
    """limit: cores' worth of time that a container may use; load: processes that wanted a core in the last minute."""
    details = {"cores": cores, "allowed": allowed, "limit": limit, "load": load}
    summary = f"{cores}, of which this process may use {allowed}; load {load:.1f}"
    if limit is not None and limit < allowed:
        summary += f"; the container is limited to {limit:g} cores' worth of time"
    usable = min(allowed, limit or allowed)
    if limit is not None and limit < allowed - 0.5:
        fix = (
            f"Threads for {allowed} cores would be throttled: set OMP_NUM_THREADS={max(1, int(limit))}, or give the "
            "container more cores (docker run --cpus)."
        )
        return Finding("cores", "warning", summary, fix, details)
    if usable < _CORES_PER_GPU * gpus:
        fix = (
            f"{gpus} GPUs wait for data if they have fewer than {_CORES_PER_GPU} cores each: ask the batch system for "
            "more (SLURM: --cpus-per-task), or see `taskset -p $$`."
        )
        return Finding("cores", "warning", summary, fix, details)
    return Finding("cores", "ok", summary, None, details)


def check_memory() -> Finding:
    """Main memory: the total, what is free, and a container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    return judge_memory(memory.total, memory.available, memory_limit(), memory_used())


def judge_memory(total: int, available: int, limit: int | None, used: int | None) -> Finding:
    """Judge the memory, in bytes; limit and used: the container's, if it has a limit."""
    details = {"total": total, "available": available, "limit": limit, "used_of_limit": used}
    summary = f"{gib(total)}, {gib(available)} of them free"
    free = available
    if limit is not None and limit < total:
        free = min(available, limit - (used or 0))
        summary += f"; limited to {gib(limit)} here, of which {gib(max(0, free))} are free"
    where = "the container's limit (docker run --memory, SLURM --mem)" if free < available else "other programs"
    if free < _LEAST_MEMORY:
        fix = f"Training takes more than {gib(_LEAST_MEMORY)} per process: look at {where}."
        return Finding("memory", "problem", summary, fix, details)
    if free < _ENOUGH_MEMORY:
        fix = f"That is little; if a process is killed, look at {where}, and lower data.num_workers or data.batch_size."
        return Finding("memory", "warning", summary, fix, details)
    return Finding("memory", "ok", summary, None, details)


# ---- disks -------------------------------------------------------------------------------------------------


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, through which the workers that read data pass batches."""
    if not folder.is_dir():
        summary = f"there is no {folder}"
        return Finding("shared_memory", "warning", summary, "Set data.num_workers=0.", {"total": None, "free": None})
    usage = shutil.disk_usage(folder)
    details = {"total": usage.total, "free": usage.free}
    summary = f"{folder}: {gib(usage.total)}, {gib(usage.free)} of them free"
    if usage.free < _ENOUGH_SHARED_MEMORY:
        fix = (
            "Workers that read data may be killed by SIGBUS: start the container with docker run --shm-size=8g (or "
            "--ipc=host), or set data.num_workers=0."
        )
        return Finding("shared_memory", "warning", summary, fix, details)
    return Finding("shared_memory", "ok", summary, None, details)


def check_outputs() -> Finding:
    """Whether the folder for runs can be written to, and has room."""
    return judge_folder("outputs", Path(Config().output_dir), "output_dir=DIR")


def check_cache() -> Finding:
    """Whether the folder for downloaded models can be written to; training from random weights does not need it."""
    return judge_folder("cache", cache_root(), "ATLAS_CACHE_DIR=DIR", needed=False)


def judge_folder(check: str, folder: Path, another: str, needed: bool = True) -> Finding:
    """Whether a folder, or its closest existing parent, can be written to; leaves nothing behind.

    another: how a user chooses another folder. needed: whether training cannot work without it.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    shown = str(folder) if existing == folder else f"{folder} (not made yet, in {existing})"
    severity: Status = "problem" if needed else "warning"
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".atlas-doctor-", dir=existing) as trial,
            open(Path(trial) / "file", "wb") as file,
        ):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        summary = f"{shown} cannot be written to: {error.strerror}"
        fix = f"Correct its owner, its permissions or its disk, or choose another folder with {another}."
        return Finding(check, severity, summary, fix, {"folder": str(folder), "free": None})
    details = {"folder": str(folder), "free": free}
    summary = f"{shown}: {gib(free)} free"
    if free < _ENOUGH_DISK:
        fix = f"That is little for checkpoints and models: make room, or choose another disk with {another}."
        return Finding(check, severity if free < _LEAST_DISK else "warning", summary, fix, details)
    return Finding(check, "ok", summary, None, details)
