"""Checkpoints that all ranks write together, with one file per rank for trained weights and optimizer state, and that
any number of ranks reads back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from atlas.checkpoints.contents import Contents, TrainingState, load_optimizer_state, load_trained_weights
from atlas.checkpoints.run_folder import Checkpoints, Retention
from atlas.errors import InputError
from atlas.system.documents import parse_json
from atlas.system.tensors import save_tensors

SHARDS = "trainer/shards"  # in a checkpoint
_WEIGHTS = "weights"  # the kind for trained weights; the other kinds are AdamW's
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_NUMBER = "number"  # a key of a file's metadata: its number, and how many files there are


def name_training(
    weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, averaged: bool
) -> dict[str, torch.Tensor]:
    """Name all that training continues with as "<kind>/<name of a weight>": AdamW's state, and the trained weights if
    `policy/` has averaged ones."""
    tensors = {f"{_WEIGHTS}/{name}": weight.detach() for name, weight in weights.items()} if averaged else {}
    for name, weight in weights.items():
        tensors |= {f"{kind}/{name}": value for kind, value in optimizer.state.get(weight, {}).items()}
    return tensors


def write_shard(folder: Path, rank: int, ranks: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a rank's part of `name_training`'s tensors into a checkpoint's folder. Raises OSError.

    Each rank has some rows (of dimension 0) of every tensor, rank 0 the first ones; 0-d tensors are the same on all.
    This does not use torch.distributed.checkpoint, whose index is a pickle: reading a checkpoint must not run its code.
    """
    kept = {name: t for name, t in tensors.items() if t.numel() and (t.ndim or rank == 0)}
    path = folder / SHARDS / f"{rank:05d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, kept, {_NUMBER: json.dumps([rank, ranks])})


class Shards:
    """The files that `write_shard` wrote, read as if they were one."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises InputError for damaged or missing parts."""
        self._folder = checkpoint / SHARDS
        self._files = []
        paths = sorted(self._folder.glob("*.safetensors"))
        for number, path in enumerate(paths):
            try:
                file = safe_open(path, framework="pt")
                rank, ranks = parse_json((file.metadata() or {})[_NUMBER])
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
                raise InputError(f"{path} is damaged ({type(error).__name__}: {error}).") from None
            if (rank, ranks) != (number, len(paths)):
                raise InputError(f"{self._folder} is incomplete: it has {len(paths)} files of {ranks}.")
            self._files.append(file)
        if not paths:
            raise InputError(f"{self._folder} is incomplete: it holds no file.")
        self._places: dict[str, list[int]] = {}  # the numbers of the files that have rows of a tensor
        for number, file in enumerate(self._files):
            for name in file.keys():
                self._places.setdefault(name, []).append(number)
        kinds = {name.split("/", 1)[0] for name in self._places}
        self.has_weights = _WEIGHTS in kinds
        self.has_moments = not kinds.isdisjoint(_MOMENTS)  # there are none before the first step

    def weight(self, name: str, shape: Sequence[int], rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a trained weight of this shape, on the CPU. Raises InputError if its shape is different."""
        return self._read(f"{_WEIGHTS}/{name}", shape, rows)

    def moments(self, name: str, shape: Sequence[int], rows: slice = slice(None)) -> dict[str, torch.Tensor]:
        """AdamW's state for the same rows: {"step": 0-d, "exp_avg", "exp_avg_sq"}. Raises InputError."""
        return {
            kind: self._read(f"{kind}/{name}", () if kind == "step" else shape, slice(None) if kind == "step" else rows)
            for kind in _MOMENTS
        }

    def _read(self, key: str, shape: Sequence[int], rows: slice) -> torch.Tensor:
        files = [self._files[number] for number in self._places.get(key, [])]
        shapes = [file.get_slice(key).get_shape() for file in files]
        found = [sum(s[0] for s in shapes), *shapes[0][1:]] if shapes and shapes[0] else []
        if not files or found != list(shape):
            what = f"has the shape {found}, expected {list(shape)}" if files else "is missing"
            raise InputError(f"{self._folder} does not fit the policy's config: '{key}' {what}.")
        if not shape:
            return files[0].get_tensor(key)
        start, stop, _ = rows.indices(shape[0])
        parts, first = [], 0
        for file, (count, *_) in zip(files, shapes, strict=True):
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                parts.append(file.get_slice(key)[low:high])
            first += count
        return torch.cat(parts) if parts else torch.empty(0, *shape[1:])


def has_trained_weights(checkpoint: Path) -> bool:
    """Whether a checkpoint has weights that training continues with, beside those in `policy/`. Raises InputError."""
    if (checkpoint / SHARDS).exists():
        return Shards(checkpoint).has_weights
    return any((checkpoint / "trainer").glob(f"{_WEIGHTS}.*"))


class Whole:
    """A checkpoint that one rank wrote, with the interface of `Shards`."""

    def __init__(self, checkpoint: Path, order: Sequence[str]) -> None:
        """order: the names of the weights in the optimizer's order. Raises InputError."""
        self._checkpoint = checkpoint
        self._weights = load_trained_weights(checkpoint)
        optimizer = load_optimizer_state(checkpoint)
        try:
            numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
            self._moments = {name: optimizer["state"].get(number) for name, number in zip(order, numbers, strict=False)}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{checkpoint / 'trainer'} holds no optimizer state ({error!r}).") from None
        if len(numbers) != len(order):
            raise InputError(
                f"{checkpoint} does not fit the policy's config: its optimizer has {len(numbers)} weights, but "
                f"{len(order)} are trained."
            )
        self.has_weights = self._weights is not None
        self.has_moments = bool(optimizer["state"])

    def weight(self, name: str, shape: Sequence[int], rows: slice = slice(None)) -> torch.Tensor:
        assert self._weights is not None
        return self._fitting(name, self._weights.get(name), shape)[rows]

    def moments(self, name: str, shape: Sequence[int], rows: slice = slice(None)) -> dict[str, torch.Tensor]:
        found = self._moments[name] or {}
        moments = {kind: self._fitting(name, found.get(kind), () if kind == "step" else shape) for kind in _MOMENTS}
        return {kind: value if kind == "step" else value[rows] for kind, value in moments.items()}

    def _fitting(self, name: str, tensor: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor:
        if not isinstance(tensor, torch.Tensor) or list(tensor.shape) != list(shape):
            what = (
                "is missing"
                if not isinstance(tensor, torch.Tensor)
                else f"has the shape {list(tensor.shape)}, expected {list(shape)}"
            )
            raise InputError(
                f"{self._checkpoint / 'trainer'} does not fit the policy's config: a moment of '{name}' {what}."
            )
        return tensor


def open_training(
    checkpoint: Path, weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> Shards | Whole:
    """Open all that training continues with, in whichever form a checkpoint stores it. Raises InputError if it is
    damaged."""
    if (checkpoint / SHARDS).exists():
        return Shards(checkpoint)
    return Whole(checkpoint, [name for name, _ in _in_order(weights, optimizer)])


def restore_moments(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, torch.Tensor],
    read: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]],
) -> None:
    """Give AdamW the state that `read` returns for each weight by name. Rates and decays are not changed."""
    state = {
        n: _formed_as(weight, read(name, weight)) for n, (name, weight) in enumerate(_in_order(weights, optimizer))
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_order(weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    """Weights with their names, in the order in which the optimizer numbers them."""
    names = {id(weight): name for name, weight in weights.items()}
    return [(names[id(weight)], weight) for group in optimizer.param_groups for weight in group["params"]]


def _formed_as(weight: torch.Tensor, moments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Lay the moments out in the weight's memory format: AdamW's fused kernel walks through both in memory order."""
    return {kind: torch.empty_like(weight).copy_(m) if m.ndim else m for kind, m in moments.items()}


# ---- writing together ------------------------------------------------------------------------------------


class JointCheckpoints(Checkpoints):
    """The main rank creates the folder, and gives it its name once every rank has written its part into it.

    Every rank calls `write`, on any thread, in the same order. The other methods are for the main rank, except `prune`,
    which does nothing elsewhere.
    """

    def __init__(self, run_dir: Path, retention: Retention | int, group: dist.ProcessGroup) -> None:
        """group: of all ranks, used only for these checkpoints; its tensors are on the CPU."""
        super().__init__(run_dir, retention)
        self._group = group
        self._is_main = dist.get_rank(group) == 0

    def write(self, contents: Contents) -> Path:
        """Like `Checkpoints.write`. Raises OSError on every rank if one cannot write."""
        if not self._is_main:
            folder = _tell(None, self._group)
            if folder is None:
                raise OSError("the main process has not begun")
            _write_together(contents, folder, self._group)
            return self.path(contents.state.step)
        announced = _Announced(contents, self._group)
        try:
            return super().write(announced)
        finally:
            if not announced.told:
                _tell(None, self._group)

    def prune(self) -> None:
        if self._is_main:
            super().prune()


class _Announced:
    """The main rank's contents; the other ranks are told their folder once it exists."""

    def __init__(self, contents: Contents, group: dist.ProcessGroup) -> None:
        self._contents, self._group = contents, group
        self.told = False

    @property
    def state(self) -> TrainingState:
        return self._contents.state

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.told = True
        _tell(folder, self._group)
        _write_together(self._contents, folder, self._group)
        try:
            Shards(folder)
        except InputError as error:
            raise OSError(f"{error} The run's folder must be on a disk that all machines share") from None


def _tell(folder: Path | None, group: dist.ProcessGroup) -> Path | None:
    """Announce the main rank's folder to write into to all ranks; None if it has none."""
    said = [folder]
    dist.broadcast_object_list(said, src=0, group=group)
    return said[0]


def _write_together(contents: Contents, folder: Path, group: dist.ProcessGroup) -> None:
    error: Exception | None = None
    try:
        contents.write(folder)
    except Exception as raised:  # all ranks must learn of it first
        error = raised
    found: list[tuple[bool, str] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, None if error is None else (isinstance(error, OSError), str(error)), group=group)
    failed = {rank: each for rank, each in enumerate(found) if each is not None}
    if not failed:
        return
    what = "; ".join(f"process {rank}: {text}" for rank, (_, text) in failed.items())
    kind = OSError if all(of_disk for of_disk, _ in failed.values()) else RuntimeError
    raise kind(what) from error
