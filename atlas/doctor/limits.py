"""The limits of a container or a batch system, which may allow less than the machine has: Linux control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # version 1 writes a number near 2^63 where there is no limit


def memory_limit(root: Path = CGROUPS, own: Path = OWN) -> int | None:
    """Bytes that this process and those in its group may use; None without a limit."""
    limits = [
        limit
        for folder in _groups("memory", root, own)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and limit < _NO_LIMIT
    ]
    return min(limits, default=None)


def memory_used(root: Path = CGROUPS, own: Path = OWN) -> int | None:
    """Bytes that the group with the lowest limit uses, without what the kernel can drop at once."""
    limit = memory_limit(root, own)
    for folder in _groups("memory", root, own):
        for name, use in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            used = _number(folder / use)
            if limit is not None and used is not None and _number(folder / name) == limit:
                return max(0, used - _droppable(folder / "memory.stat"))
    return None


def core_limit(root: Path = CGROUPS, own: Path = OWN) -> float | None:
    """Cores' worth of time that this process and those in its group may use; None without a limit."""
    limits = []
    for folder in _groups("cpu", root, own):
        quota, period = (_text(folder / "cpu.max") or "max 1").split()
        if quota == "max":
            quota = _text(folder / "cpu.cfs_quota_us") or "-1"
            period = _text(folder / "cpu.cfs_period_us") or "1"
        if int(quota) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's group and of the groups around it, whose limits hold too, innermost first."""
    for line in (_text(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree; version 1 one for each controller.
        top = root if not controllers else root / controller
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_dir():  # in a container, its own group is at the top, whatever its name outside
                yield folder
            if folder == top:
                break


def _droppable(stat: Path) -> int:
    values = dict(line.split() for line in (_text(stat) or "").splitlines())
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
