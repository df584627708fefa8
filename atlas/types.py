"""The nouns every room shares: what an action means, an observation, a batch, the terms of a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of one action mean; carried by datasets, environments and saved policies.

    The default is LIBERO's: seven numbers at 20 Hz, a position delta (1 = 0.05 m), an axis-angle
    rotation delta (1 = 0.5 rad), both in the robot's base frame, and a gripper (-1 open, +1 close).
    """

    names: tuple[str, ...] = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
    position: tuple[int, int] = (0, 3)  # first and one past last dimension of the position
    rotation: tuple[int, int] = (3, 6)  # likewise; an empty range where there is no rotation
    gripper: int = 6
    position_unit_m: float = 0.05
    rotation_unit_rad: float = 0.5
    rotation_form: str = "axis_angle"
    delta: bool = True
    control_hz: float = 20.0

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def pose(self) -> slice:
        """The dimensions that move the end effector: position and rotation, without the gripper."""
        return slice(self.position[0], max(self.position[1], self.rotation[1]))

    @property
    def pose_dim(self) -> int:
        return self.pose.stop - self.pose.start

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionSpec:
        """Build a spec from `to_dict`'s form, with lists (as JSON has them) made tuples again."""
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**read)


@dataclass
class Observation:
    """What a policy sees at one step.

    images: {camera: uint8 [H, W, 3]}, upright, RGB; proprio: float32 [P]; instruction: the task in words.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    instruction: str


@dataclass
class Batch:
    """B samples, as the data workers deliver them and policies take them.

    `actions` and `action_is_pad` are absent (None) when a policy is only asked for actions.
    """

    # uint8 [B, V, 3, H, W]; float in [0, 1] once on the device. V = cameras x frames. None where `features` are there.
    images: torch.Tensor | None
    proprio: torch.Tensor  # float32 [B, P]
    instruction: list[str]
    source: torch.Tensor  # int64 [B], which dataset of a mixture: its statistics apply
    actions: torch.Tensor | None = None  # float32 [B, H, A], in the ActionSpec's units
    action_is_pad: torch.Tensor | None = None  # bool [B, H], true past the end of the episode
    key: torch.Tensor | None = None  # int64 [B], what each sample's random numbers follow from; see data/randomness.py
    features: torch.Tensor | None = None  # bfloat16 [B, N, D], what a frozen encoder said of the images

    def __len__(self) -> int:
        return len(self.instruction)

    def unit_images(self) -> torch.Tensor:
        """The images as float32 [B, V, 3, H, W] in [0, 1], with a channel's pixels next to each other in memory,
        whatever order they have come in."""
        assert self.images is not None
        if self.images.is_floating_point():  # they are already
            return self.images
        return self.images.contiguous().float().div_(255)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that GPUs read by themselves; torch's loader calls it."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that are there, by their names."""
        return {f.name: value for f in fields(self) if hasattr(value := getattr(self, f.name), "pin_memory")}

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


@dataclass
class LossTerms:
    """What a policy's forward returns; every term is a mean over `n_valid` action steps (0-d tensors)."""

    loss: torch.Tensor
    pose_loss: torch.Tensor
    gripper_loss: torch.Tensor
    n_valid: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
