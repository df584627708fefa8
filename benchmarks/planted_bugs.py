"""The known silent bugs as small changes: of a policy, of what it sees, of what its actions do, and of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from changed_data import Changed
from torch import nn

from atlas.checkpoints.contents import load_trained_weights
from atlas.data.formats import open_dataset
from atlas.data.image_fit import fit_images
from atlas.data.statistics import ColumnStatistics
from atlas.policies.base import Policy
from atlas.policies.processor import Scaler
from atlas.rollout.actor import Actor
from atlas.system.files import follow
from atlas.types import Observation

See = Callable[[Observation, dict[str, Any]], Observation]  # the second is what the episode keeps
Do = Callable[[np.ndarray, dict[str, Any]], np.ndarray]

MOST_STEPS = 120  # of an episode; those that succeed have some 55
POSITION, ROTATION, FINGERS, GRIPPER = slice(0, 3), slice(3, 6), slice(6, 8), 6


@dataclass(frozen=True)
class Plant:
    """bugs: one of these names is the right one; none for a policy as it is."""

    name: str
    bugs: tuple[str, ...]
    policy: Callable[[Policy], None] | None = None
    see: See | None = None  # between the environment and the policy
    do: Do | None = None  # between the policy and the environment
    execute: int | None = None


class Planted:
    """An actor between which and the environment something is wrong."""

    def __init__(self, actor: Actor, plant: Plant) -> None:
        self._actor, self._plant = actor, plant
        self.processor = actor.processor
        self._kept: dict[int, dict[str, Any]] = {}

    def reset(self, episode: int, seed: int) -> None:
        self._kept[episode] = {}
        self._actor.reset(episode, seed)

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        see, do = self._plant.see, self._plant.do
        over = [n for n in observations if self._kept[n].get("steps", 0) >= MOST_STEPS]
        observations = {n: observation for n, observation in observations.items() if n not in over}
        ended = {n: np.empty((0, self.processor.action_spec.dim), np.float32) for n in over}
        if not observations:
            return ended
        if see is not None:
            observations = {n: see(observation, self._kept[n]) for n, observation in observations.items()}
        planned = self._actor.plan(observations)
        planned = planned if do is None else {n: do(actions, self._kept[n]) for n, actions in planned.items()}
        for n, actions in planned.items():
            self._kept[n]["steps"] = self._kept[n].get("steps", 0) + len(actions)
        return planned | ended


def plants(run: Path) -> list[Plant]:
    """Those of rollouts."""
    return [
        Plant("axis-angle flips at pi", ("rotation_flip",), see=proprio(flipped)),
        Plant("state in another order", ("state_source",), see=proprio(lambda p: p[[6, 7, 0, 1, 2, 3, 4, 5]])),
        Plant("state: x and y swapped", ("state_source",), see=proprio(lambda p: p[[1, 0, 2, 3, 4, 5, 6, 7]])),
        Plant("state from the robot's base", ("state_source",), see=proprio(from_base)),
        Plant("un-normalised by min and max", ("unnormalised",), policy=by_min_and_max),
        Plant("centre crop of 90%", ("resize",), see=pictures(lambda i: cropped(i, 0.9))),
        Plant("padded, not cropped", ("resize",), see=pictures(padded)),
        Plant("resized without antialiasing", ("resize",), see=pictures(nearest)),
        Plant("images rotated by 180 degrees", ("turned",), see=pictures(lambda i: i[::-1, ::-1])),
        Plant("images mirrored", ("turned",), see=pictures(lambda i: i[:, ::-1])),
        Plant("BGR for RGB", ("colours",), see=pictures(lambda i: i[..., ::-1])),
        Plant("cameras swapped", ("cameras",), see=cameras_swapped),
        Plant("gripper: sign", ("gripper",), do=gripper(lambda g: -g)),
        Plant("gripper: 0 to 1", ("gripper",), do=gripper(lambda g: (g + 1) / 2)),
        Plant("gripper: a threshold beyond its range", ("gripper",), do=gripper(lambda g: np.where(g > 1, 1.0, -1.0))),
        Plant("actions one step late", ("late_actions",), do=late),
        Plant("the whole chunk executed", ("whole_chunk",), execute=8),
        Plant("observed before the last action", ("observation_order",), do=observed_early),
        Plant("20 Hz in a 10 Hz world", ("control_rate",), do=lambda a, _: np.repeat(a, 2, axis=0)),
        Plant("one instruction for all", ("one_instruction",), see=one_instruction),
        Plant("instructions cut at 12 bytes", ("words",), policy=cut),
        Plant("instructions in another template", ("words",), policy=templated),
        Plant("statistics of another dataset", ("statistics", "unnormalised"), policy=other_statistics),
        Plant("weights of training, not their average", ("average",), policy=lambda p: not_averaged(p, run)),
        Plant("bfloat16 instead of float32", ("precision",), policy=in_bfloat16),
        Plant("dropout left on", ("dropout",), policy=dropout_on),
        Plant("vision in train mode", ("train_mode",), policy=lambda p: void(p.get_submodule("vision").train())),
        Plant("the same image twice", ("stale_frames",), see=stale),
    ]


UNSETTLED = Plant("settling steps left out", ("settling",))


# ---- of what is seen -----------------------------------------------------------------------------------------


def void(_: object) -> None:
    return None


def pictures(change: Callable[[np.ndarray], np.ndarray]) -> See:
    """change: of an image uint8 [H, W, 3]."""

    def see(o: Observation, _: dict[str, Any]) -> Observation:
        return replace(o, images={c: np.ascontiguousarray(change(i)) for c, i in o.images.items()})

    return see


def proprio(change: Callable[[np.ndarray], np.ndarray]) -> See:
    return lambda o, _: replace(o, proprio=np.asarray(change(o.proprio.copy()), np.float32))


def flipped(p: np.ndarray) -> np.ndarray:
    """Rotations by more than half a turn as those by less about the opposite axis."""
    length = float(np.linalg.norm(p[ROTATION]))
    if length > np.pi:
        p[ROTATION] *= (length - 2 * np.pi) / length
    return p


def from_base(p: np.ndarray) -> np.ndarray:
    p[0] += 0.56
    p[2] -= 0.912
    return p


def cropped(image: np.ndarray, share: float) -> np.ndarray:
    size = image.shape[0]
    cut = round(size * (1 - share) / 2)
    return fit_images(image[None, cut : size - cut, cut : size - cut], size)[0].permute(1, 2, 0).numpy()


def padded(image: np.ndarray) -> np.ndarray:
    """As a picture of 4:3 that is fitted in with black above and below."""
    size = image.shape[0]
    high = round(size * 0.75)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None],
        (high, size),
        mode="bilinear",
        antialias=True,
    )
    whole = np.zeros_like(image)
    first = (size - high) // 2
    whole[first : first + high] = small[0].permute(1, 2, 0).numpy()
    return whole


def nearest(image: np.ndarray) -> np.ndarray:
    """Made smaller by leaving out pixels, and larger again."""
    return image[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)


def cameras_swapped(o: Observation, _: dict[str, Any]) -> Observation:
    return replace(o, images=dict(zip(o.images, reversed(o.images.values()), strict=True)))


def one_instruction(o: Observation, _: dict[str, Any]) -> Observation:
    return replace(o, instruction="pick up the red cube")


def stale(o: Observation, kept: dict[str, Any]) -> Observation:
    """Every second look shows the pictures of the one before."""
    kept["looks"] = kept.get("looks", 0) + 1
    if kept["looks"] % 2:
        kept["images"] = o.images
    return replace(o, images=kept["images"])


# ---- of what is done -----------------------------------------------------------------------------------------


def gripper(change: Callable[[np.ndarray], np.ndarray]) -> Do:
    def do(actions: np.ndarray, _: dict[str, Any]) -> np.ndarray:
        changed = actions.copy()
        changed[:, GRIPPER] = change(actions[:, GRIPPER])
        return changed

    return do


def late(actions: np.ndarray, kept: dict[str, Any]) -> np.ndarray:
    """The last action of each plan is executed first after the next one; in the beginning nothing is."""
    still = np.zeros_like(actions[:1])
    still[:, GRIPPER] = -1.0
    sent = np.concatenate([kept.get("last", still), actions[:-1]])
    kept["last"] = actions[-1:]
    return sent


def observed_early(actions: np.ndarray, kept: dict[str, Any]) -> np.ndarray:
    """The policy looks one step before its plan is over: the first plan is a step shorter, and each after it begins
    with the action that was left."""
    if "left" not in kept:
        kept["left"] = actions[-1:]
        return actions[:-1]
    sent = np.concatenate([kept["left"], actions[:-1]])
    kept["left"] = actions[-1:]
    return sent


# ---- of the policy -------------------------------------------------------------------------------------------


def by_min_and_max(policy: Policy) -> None:
    spec = policy.processor.action_spec
    ends = {dimension: (group.open, group.closed) for dimension, group in spec.grippers}
    policy.action_scaler = Scaler([s.action for s in policy.processor.statistics], "min_max", ends)


def other_statistics(policy: Policy) -> None:
    """Of a dataset whose robot reaches further."""

    def other(columns: ColumnStatistics) -> ColumnStatistics:
        shifted = {
            k: tuple(m + 0.4 * s for m, s in zip(getattr(columns, k), columns.std, strict=True)) for k in _PLACES
        }
        return replace(columns, **shifted, std=tuple(1.5 * s for s in columns.std))

    statistics = [replace(s, proprio=other(s.proprio)) for s in policy.processor.statistics]
    policy.processor = replace(policy.processor, statistics=tuple(statistics))
    scaling = policy.processor.scaling.proprio_normalization
    policy.proprio_scaler = Scaler([s.proprio for s in statistics], scaling)


_PLACES = ("mean", "min", "max", "q01", "q99")


def cut(policy: Policy) -> None:
    language: Any = policy.get_submodule("language")
    language._max_length = 12
    language._cache.clear()


def templated(policy: Policy) -> None:
    language: Any = policy.get_submodule("language")
    read = language.forward
    language.forward = lambda texts: read([f"In: What should the robot do to {text}? Out:" for text in texts])


def not_averaged(policy: Policy, run: Path) -> None:
    weights = load_trained_weights(follow(run / "checkpoints" / "best"))
    assert weights is not None, "the run keeps no average"
    policy.load_own_state_dict(weights)


def in_bfloat16(policy: Policy) -> None:
    sample = policy.sample

    def low(batch: Any, generator: Any = None) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return sample(batch, generator)

    policy.sample = low  # type: ignore[method-assign]


def dropout_on(policy: Policy) -> None:
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.1
    policy.train()


# ---- of data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataPlant:
    name: str
    bugs: tuple[str, ...]
    changed: Mapping[str, Any] | None = None  # arguments of `Changed`

    def planted(self, dataset: Any, episodes: np.ndarray) -> Changed:
        return Changed(dataset, order=episodes.tolist(), **(self.changed or {}))


def _moved(frames: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a[np.clip(np.arange(len(a)) - frames, 0, len(a) - 1)]


def _gripper(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: np.concatenate([a[:, :GRIPPER], change(a[:, GRIPPER:])], axis=1)


def _flips(p: np.ndarray) -> np.ndarray:
    return np.stack([flipped(row) for row in p])


def _stale(_: str, images: np.ndarray) -> np.ndarray:
    return images[np.arange(len(images)) // 2 * 2]


DATA_PLANTS = (
    DataPlant("axis-angle flips at pi", ("rotation_flip",), {"proprio": _flips}),
    DataPlant("state in another order", ("state_source",), {"proprio": lambda p: p[:, [1, 0, 2, 3, 4, 5, 6, 7]]}),
    DataPlant("images rotated by 180 degrees", ("turned",), {"images": lambda _, i: i[:, ::-1, ::-1]}),
    DataPlant("images mirrored", ("turned",), {"images": lambda _, i: i[:, :, ::-1]}),
    DataPlant("BGR for RGB", ("colours",), {"images": lambda _, i: i[..., ::-1]}),
    DataPlant("cameras swapped", ("cameras",), {"cameras": {"agentview": "eye_in_hand", "eye_in_hand": "agentview"}}),
    DataPlant("gripper: sign", ("gripper",), {"actions": _gripper(lambda g: -g)}),
    DataPlant("gripper: 0 to 1", ("gripper",), {"actions": _gripper(lambda g: (g + 1) / 2)}),
    DataPlant("actions one frame late", ("late_actions",), {"actions": _moved(1)}),
    DataPlant("observed after the action", ("observation_order",), {"actions": _moved(-1)}),
    DataPlant("every second frame left out", ("control_rate",), {"keep": slice(None, None, 2)}),
    DataPlant("one instruction for all", ("one_instruction",), {"instruction": "pick up the red cube"}),
    DataPlant("the same image twice", ("stale_frames",), {"images": _stale}),
)


def clean_datasets(whole: Any, few: np.ndarray, others: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Sets in which nothing is planted: some of the default data, two that LeRobot has written, and others."""
    yield "nothing (cubes)", Changed(whole, order=few.tolist())
    fixtures = Path(__file__).parents[1] / "tests" / "fixtures"
    for folder in (fixtures / "lerobot_v30_image", fixtures / "lerobot_v30_video", *others):
        dataset = open_dataset(folder)
        some = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), len(few))).round().astype(int))
        yield f"nothing ({folder.name})", Changed(dataset, order=some.tolist())
