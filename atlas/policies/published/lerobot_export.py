"""Writes a policy as LeRobot's folder: config.json, processor files with statistics, tokenizer, weights.

The processor files have the form that both release 0.4.4 and main read. A folder that Atlas has read comes back with
the changes of training: cameras, the widths of state and actions, horizon and statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atlas.data.statistics import ColumnStatistics
from atlas.policies.published.camera_slots import EMPTY_CAMERA
from atlas.policies.published.lerobot_card import lerobot_card
from atlas.policies.published.lerobot_folder import ACTION, IMAGES, POSTPROCESSOR, PREPROCESSOR, STATE, feature_name
from atlas.policies.published.processor_files import MODES
from atlas.policies.published.tokenized_prompt import TOKENIZER
from atlas.registry.lerobot_policies import CONFIG_JSON, WEIGHTS
from atlas.system.files import atomic_path, write_text
from atlas.system.tensors import save_tensors

if TYPE_CHECKING:
    from atlas.policies.published.flow_policy import FlowPolicy

_NORMALIZED = "policy_preprocessor_step_{}_normalizer_processor.safetensors"
_UNNORMALIZED = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
# Options of newer releases, with the values at which they do nothing; they are left out, as 0.4.4 refuses unknown keys.
NEWER_OPTIONS: Mapping[str, Any] = {
    "pretrained_revision": None,
    "use_relative_actions": False,
    "relative_exclude_joints": ["gripper"],
    "action_feature_names": None,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "memory_frames": 6,
    "memory_stride": 30,
    "memory_temporal_attention_every": 4,
    "rtc_training_max_delay": 0,
}
_DEVICE: dict[str, Any] = {"device": "cpu", "float_dtype": None}


def export_lerobot(policy: FlowPolicy, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write all files from which LeRobot loads a policy, each atomically, and a card. Weights keep their precision.

    facts: see `lerobot_card`.
    """
    write_description(policy, folder)
    write_text(folder / "README.md", lerobot_card(policy, facts))
    weights = {name: tensor.detach() for name, tensor in policy.named_for_lerobot().items()}
    with atomic_path(folder / WEIGHTS) as partial:
        save_tensors(partial, weights, {"format": "pt"})


def write_description(policy: FlowPolicy, folder: Path) -> None:
    """Write all of the folder but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    features = _features(policy)
    _write(folder / CONFIG_JSON, _config(policy, features))
    for name, extra in policy.extra_files().items():
        _write(folder / name, extra)
    steps = _before(policy, features)
    place = next(i for i, step in enumerate(steps) if step["registry_name"] == "normalizer_processor")
    steps[place]["state_file"] = _NORMALIZED.format(place)
    _write(folder / PREPROCESSOR, {"name": "policy_preprocessor", "steps": steps})
    _write(folder / POSTPROCESSOR, {"name": "policy_postprocessor", "steps": _after(policy, features)})
    statistics = _statistics(policy)
    for file in (_NORMALIZED.format(place), _UNNORMALIZED):
        with atomic_path(folder / file) as partial:
            save_tensors(partial, statistics)
    if policy.prompt_tokenizer is not None:
        policy.prompt_tokenizer.save(folder / TOKENIZER)
        _let_transformers_4_read(folder / TOKENIZER / "tokenizer_config.json")


def _let_transformers_4_read(file: Path) -> None:
    """Put a tokenizer's config in words of transformers 4, which LeRobot 0.4 asks for. transformers 5 reads them too,
    but names the class and the list of additional tokens otherwise in what it writes."""
    config = json.loads(file.read_text()) if file.is_file() else {}
    was = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config != was:
        _write(file, config)


def _features(policy: FlowPolicy) -> dict[str, dict[str, Any]]:
    """{feature: its type and shape} of inputs and actions."""
    processor, was = policy.processor, policy.description.folder
    side = processor.camera_size
    shapes = was.camera_shapes
    cameras = [name for name, _ in policy.slots.present] + list(policy.slots.absent)
    if processor.inputs is not None:  # trained by Atlas, on images of other sizes than in the folder
        shapes = {name: shape for name, shape in shapes.items() if name in policy.slots.absent}
    found: dict[str, dict[str, Any]] = {
        feature_name(name): {"type": "VISUAL", "shape": list(shapes.get(name, (3, side, side)))}
        for name in sorted(cameras, key=_order(was.cameras))
    }
    if processor.proprio_dim:
        state = {STATE: {"type": "STATE", "shape": [processor.proprio_dim]}}
        empty = {name: found.pop(name) for name in list(found) if name.startswith(IMAGES + EMPTY_CAMERA)}
        found |= state | empty
    return found | {ACTION: {"type": "ACTION", "shape": [processor.action_spec.dim]}}


def _order(names: tuple[str, ...]) -> Callable[[str], int]:
    """A sort key: the config's order, with new names at the end."""
    return lambda name: names.index(name) if name in names else len(names)


def _config(policy: FlowPolicy, features: Mapping[str, Any]) -> dict[str, Any]:
    """The config that was read, with the changes of training."""
    horizon = policy.processor.action_horizon
    was = policy.description.folder.config
    config = {key: value for key, value in was.items() if key not in NEWER_OPTIONS or value != NEWER_OPTIONS[key]}
    config["input_features"] = {name: feature for name, feature in features.items() if name != ACTION}
    config["output_features"] = {ACTION: features[ACTION]}
    config["n_action_steps"] = min(config.get("n_action_steps") or horizon, horizon)
    config["chunk_size"] = horizon
    config["normalization_mapping"] = _norm_map(policy)
    return config | dict(policy.lerobot_options())


def _norm_map(policy: FlowPolicy) -> dict[str, str]:
    names = {mode: name for name, mode in MODES.items()}
    modes = policy.description.files.modes
    return {"VISUAL": "IDENTITY", "STATE": names[modes["STATE"]], "ACTION": names[modes["ACTION"]]}


def _before(policy: FlowPolicy, features: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The preprocessor's steps, in the type's order."""
    step, eps = policy.tokenizer_step, policy.description.files.eps
    known: dict[str, dict[str, Any]] = {
        "rename_observations_processor": {"rename_map": {}},
        "tokenizer_processor": {
            "max_length": step.max_length,
            "task_key": "task",
            "padding_side": "right",
            "padding": step.padding,
            "truncation": step.truncation,
            "tokenizer_name": _tokenizer_name(policy),
        },
        "device_processor": _DEVICE,
        "normalizer_processor": {"eps": eps, "features": dict(features), "norm_map": _norm_map(policy)},
    }
    return [{"registry_name": name, "config": dict(known.get(name, {}))} for name in policy.lerobot_steps]


def _tokenizer_name(policy: FlowPolicy) -> str:
    """A hub name stays, which every release reads; otherwise the name of the folder beside, which main reads."""
    name = policy.tokenizer_step.name
    return name if name.count("/") == 1 and not name.startswith((".", "~")) else TOKENIZER


def _after(policy: FlowPolicy, features: Mapping[str, Any]) -> list[dict[str, Any]]:
    config = {
        "eps": policy.description.files.eps,
        "features": {ACTION: features[ACTION]},
        "norm_map": _norm_map(policy),
    }
    step = {"registry_name": "unnormalizer_processor", "config": config, "state_file": _UNNORMALIZED}
    return [step, {"registry_name": "device_processor", "config": _DEVICE}]


def _statistics(policy: FlowPolicy) -> dict[str, torch.Tensor]:
    """{feature.statistic: float32 [D]} of the source whose statistics scale rollouts."""
    processor = policy.processor
    source = processor.statistics[processor.source_for()]
    found = {}
    modes = policy.description.files.modes
    for feature, kind, columns in ((ACTION, "ACTION", source.action), (STATE, "STATE", source.proprio)):
        for name in _known(columns, modes[kind]):
            found[f"{feature}.{name}"] = torch.tensor(getattr(columns, name), dtype=torch.float32)
    return found


def _known(columns: ColumnStatistics, mode: str) -> list[str]:
    """The names of known statistics. Quantiles that equal minimum and maximum, and that no mode uses, only fill gaps,
    see `columns_of`; they are left out."""
    quantiles = mode == "quantiles" or columns.q01 != columns.min or columns.q99 != columns.max
    return ["mean", "std", "min", "max", *(["q01", "q99"] if quantiles else [])]


def _write(file: Path, values: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(values, indent=4) + "\n")
