"""The settings of a pi0 or pi0.5 network and its inputs, from LeRobot's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from atlas.errors import InputError
from atlas.policies.pi.pi_network import PiShape
from atlas.policies.pi.pi_sizes import GEMMA, SO400M, BackboneSizes
from atlas.policies.published.flow_pieces import FlowTime, check_beta
from atlas.policies.published.lerobot_folder import LeRobotFolder
from atlas.registry.lerobot_policies import CONFIG_JSON
from atlas.system.documents import read_json

BACKBONE_FILE = "backbone.json"  # sizes, where they differ from those of the variants that config.json names
_WORDS = {"pi0": 48, "pi05": 200}  # tokens of the prompt, where config.json does not say
_NORMALIZATION = {"pi0": "MEAN_STD", "pi05": "QUANTILES"}
# Options that change the numbers; they are off in published policies, and Atlas only supports them off.
_OFF: dict[str, object] = {
    "use_relative_actions": False,
    "rtc_training_max_delay": 0,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "n_obs_steps": 1,
}


@dataclass(frozen=True)
class PiSettings:
    """The settings of one policy."""

    sizes: BackboneSizes
    shape: PiShape
    resolution: tuple[int, int]  # height and width of the vision tower's images, pixels
    words: int  # tokens of a prompt
    steps: int  # of Euler's method
    time: FlowTime  # the distribution of training times
    cameras: tuple[str, ...]  # in the weights' order

    @classmethod
    def of(cls, folder: LeRobotFolder, sizes: BackboneSizes | None = None) -> PiSettings:
        """sizes: used instead of the folder's. Raises InputError for a wrong value."""
        kind: Literal["pi0", "pi05"] = "pi05" if folder.kind == "pi05" else "pi0"
        folder.refuse(_OFF, "published policies have no other value")
        sizes = sizes or read_sizes(folder)
        side = sizes.vision.image_size
        resolution = folder.pair("image_resolution", (224, 224))
        if resolution != (side, side):
            raise folder.wrong("image_resolution", f"[{side}, {side}], for which the vision tower has positions")
        alpha, beta = (
            folder.number(f"time_sampling_beta_{name}", usual) for name, usual in (("alpha", 1.5), ("beta", 1.0))
        )
        where = str(folder.path / CONFIG_JSON)
        return cls(
            sizes,
            PiShape(
                kind,
                folder.integer("chunk_size", 50),
                folder.integer("max_state_dim", 32),
                folder.integer("max_action_dim", 32),
                folder.number("min_period", 4e-3),
                folder.number("max_period", 4.0),
            ),
            resolution,
            folder.integer("tokenizer_max_length", _WORDS[kind]),
            folder.integer("num_inference_steps", 10),
            FlowTime(
                check_beta(alpha, beta, where),
                folder.number("time_sampling_scale", 0.999),
                folder.number("time_sampling_offset", 0.001),
            ),
            folder.cameras,
        )


def default_normalization(kind: str) -> dict[str, str]:
    """LeRobot's default for a config.json without normalization_mapping, such as that of the published bases."""
    return {"VISUAL": "IDENTITY", "STATE": _NORMALIZATION[kind], "ACTION": _NORMALIZATION[kind]}


def read_sizes(folder: LeRobotFolder) -> BackboneSizes:
    """The sizes in the folder's backbone.json, else those of the variants that its config.json names. Raises
    InputError."""
    file = folder.path / BACKBONE_FILE
    try:
        values: Any = read_json(file)
    except FileNotFoundError:
        return named_sizes(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is {type(values).__name__}, expected sizes by name.")
    try:
        return BackboneSizes(**{name: value for name, value in values.items() if name not in ("note", "source")})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file} does not hold the sizes of a backbone: {where or 'all'}: {first['msg']}.") from None


def named_sizes(folder: LeRobotFolder) -> BackboneSizes:
    """The sizes of the variants that the folder's config.json names, with images of its resolution. Raises
    InputError."""
    height, width = folder.pair("image_resolution", (224, 224))
    if height != width:
        raise folder.wrong("image_resolution", "the same number twice")
    text = folder.text("paligemma_variant", "gemma_2b", one_of=list(GEMMA))
    expert = folder.text("action_expert_variant", "gemma_300m", one_of=list(GEMMA))
    return BackboneSizes(text=GEMMA[text], expert=GEMMA[expert], vision=replace(SO400M, image_size=height))
