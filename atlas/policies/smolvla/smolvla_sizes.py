"""The sizes and options of a SmolVLA network, from LeRobot's config.json and its vision-language model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.policies.published.lerobot_folder import LeRobotFolder
from atlas.registry.references import HUB
from atlas.system.documents import read_json
from atlas.system.hub import Alternative, fetch_folder

VLM_CONFIG = "vlm/config.json"  # beside a policy's config.json, where the sizes differ from those of known models
_LARGEST = 2**20

# The sizes of hub models that a published policy only names, as in their config.json.
KNOWN_VLMS: Mapping[str, Mapping[str, Any]] = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "model_type": "smolvlm",
        "scale_factor": 4,
        "text_config": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
            "rms_norm_eps": 1e-5,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
        },
    }
}


@dataclass(frozen=True)
class VisionSizes:
    width: int
    mlp: int
    layers: int
    heads: int
    image_size: int  # side of the images for which it has positions, pixels
    patch_size: int
    eps: float

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class StreamSizes:
    """The sizes of the language model or of the expert."""

    width: int
    mlp: int
    layers: int
    eps: float


@dataclass(frozen=True)
class SmolVLASizes:
    vision: VisionSizes
    text: StreamSizes
    expert: StreamSizes
    heads: int  # of queries, in both streams
    kv_heads: int
    head_dim: int
    vocabulary: int
    shuffle: int  # side of the square of patches that becomes one token
    state: int  # numbers, padded
    action: int
    joint_every: int  # every so many layers, one attends to prefix and suffix together; 0: none does, if `cross`
    cross: bool  # whether there are layers that read only the prefix
    periods: tuple[float, float]  # shortest and longest wave of the time's embedding
    # The vision-language model's config, unless it is one of KNOWN_VLMS.
    source: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def expert_every(self) -> int:
        """The number of the language model's layers for each of the expert's."""
        return self.text.layers // self.expert.layers

    def reads_prefix_alone(self, layer: int) -> bool:
        """Whether the expert's layer of this number attends only to the prefix."""
        return self.cross and not (self.joint_every > 0 and layer % self.joint_every == 0)


def read_sizes(folder: LeRobotFolder, vlm: str | None) -> SmolVLASizes:
    """The sizes of a LeRobot folder's network. vlm: a folder or a hub name with the vision-language model's config,
    instead of the model that the folder names. Raises InputError."""
    folder.refuse(
        {"add_image_special_tokens": False, "adapt_to_pi_aloha": False, "use_delta_joint_actions_aloha": False},
        "no published policy has another value",
    )
    if folder.integer("prefix_length", -1, least=-1) > 0:
        raise folder.wrong("prefix_length", "0 or -1, which means no padding")
    backbone = _Backbone(*_vlm_config(folder, vlm))
    text, vision = backbone.part("text_config"), backbone.part("vision_config")
    width, heads = text.integer("hidden_size"), text.integer("num_attention_heads")
    layers = folder.integer("num_vlm_layers", 16, most=1000)
    available = text.integer("num_hidden_layers")
    if layers > available:
        raise folder.wrong("num_vlm_layers", f"at most {available}, as many as the vision-language model has")
    expert_layers = folder.integer("num_expert_layers", -1, least=-1, most=1000)
    expert_width = int(width * folder.number("expert_width_multiplier", 0.75))
    if not 2 <= expert_width <= _LARGEST or expert_width % 2:
        raise folder.wrong("expert_width_multiplier", f"a number that makes {width} times it an even width")
    eps = text.number("rms_norm_eps")
    sizes = SmolVLASizes(
        vision=VisionSizes(
            vision.integer("hidden_size"),
            vision.integer("intermediate_size"),
            vision.integer("num_hidden_layers"),
            vision.integer("num_attention_heads"),
            vision.integer("image_size"),
            vision.integer("patch_size"),
            vision.number("layer_norm_eps", 1e-6),
        ),
        text=StreamSizes(width, text.integer("intermediate_size"), layers, eps),
        expert=StreamSizes(expert_width, expert_mlp(expert_width), expert_layers if expert_layers > 0 else layers, eps),
        heads=heads,
        kv_heads=text.integer("num_key_value_heads", heads),
        head_dim=text.integer("head_dim", width // heads),
        vocabulary=text.integer("vocab_size"),
        shuffle=backbone.integer("scale_factor"),
        state=folder.integer("max_state_dim", 32),
        action=folder.integer("max_action_dim", 32),
        joint_every=max(0, folder.integer("self_attn_every_n_layers", 2, least=-1)),
        cross=folder.text("attention_mode", "cross_attn", ("cross_attn", "self_attn")) == "cross_attn",
        periods=(folder.number("min_period", 0.004), folder.number("max_period", 4.0)),
        source=None if backbone.values in KNOWN_VLMS.values() else backbone.values,
    )
    _check(sizes, folder)
    return sizes


def expert_mlp(width: int) -> int:
    """Two thirds of the width, cut to an integer, times 4, rounded up to a multiple of 256."""
    return -(-int(2 * width / 3) * 4 // 256) * 256


def _check(sizes: SmolVLASizes, folder: LeRobotFolder) -> None:
    """Raise InputError for sizes that do not fit together."""
    if sizes.text.layers % sizes.expert.layers:
        raise folder.wrong("num_expert_layers", f"a divisor of num_vlm_layers ({sizes.text.layers})")
    every = sizes.expert_every
    mixed = [
        layer
        for layer in range(sizes.expert.layers)
        if sizes.reads_prefix_alone(layer) != sizes.reads_prefix_alone(layer * every)
    ]
    if mixed:
        raise folder.wrong(
            "num_expert_layers",
            f"a number with which the expert's layer {mixed[0]} attends as the layer {mixed[0] * every} beside it does "
            f"(self_attn_every_n_layers is {sizes.joint_every})",
        )
    if sizes.heads % sizes.kv_heads or sizes.head_dim % 2:
        raise folder.wrong(
            "vlm_model_name", "a model whose head size is even and whose heads are a multiple of its key-value heads"
        )
    if sizes.vision.width % sizes.vision.heads:
        raise folder.wrong(
            "vlm_model_name", f"a model whose {sizes.vision.heads} vision heads share {sizes.vision.width} evenly"
        )
    height, width = folder.pair("resize_imgs_with_padding")[::-1]
    cell = sizes.vision.patch_size * sizes.shuffle
    if height != width or height % cell or height > sizes.vision.image_size:
        raise folder.wrong(
            "resize_imgs_with_padding", f"a square whose side is a multiple of {cell}, up to {sizes.vision.image_size}"
        )
    if not 0 < sizes.periods[0] < sizes.periods[1]:
        raise folder.wrong("min_period", "a number above 0 and below max_period")


def _vlm_config(folder: LeRobotFolder, vlm: str | None) -> tuple[Path, Any]:
    """(source, config) of the vision-language model."""
    name = vlm if vlm is not None else folder.text("vlm_model_name")
    beside, own = folder.path / VLM_CONFIG, Path(name).expanduser() / "config.json"
    if vlm is None and beside.is_file():
        file = beside
    elif own.is_file():
        file = own
    elif name in KNOWN_VLMS:
        return Path(name), KNOWN_VLMS[name]
    else:
        key = "model.vlm" if vlm is not None else f"{folder.path / 'config.json'}: vlm_model_name"
        form = Alternative(("config.json",), lambda there: (there / "config.json").is_file())
        file = fetch_folder(name.removeprefix(HUB), key, [form], "it has no config.json") / "config.json"
    try:
        return file, read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


@dataclass(frozen=True)
class _Backbone:
    """A section of a vision-language model's config."""

    file: Path
    values: Any

    def part(self, key: str) -> _Backbone:
        return _Backbone(self.file, self.values.get(key) if isinstance(self.values, dict) else None)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise InputError(f"{self.file}: '{key}' is {value!r:.80}, expected a whole number; is it a SmolVLM?")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
            raise InputError(f"{self.file}: '{key}' is {value!r:.80}, expected a small number; is it a SmolVLM?")
        return float(value)

    def _value(self, key: str, default: float | None) -> Any:
        return self.values.get(key, default) if isinstance(self.values, dict) else None
