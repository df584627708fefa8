"""LeRobot's processor files: the steps that observations pass before a policy, and actions after it.

policy_preprocessor.json and policy_postprocessor.json name steps with their settings, and files beside them hold the
statistics. Atlas never runs these steps: it compares them with those that it knows, and reads their settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from atlas.errors import InputError
from atlas.policies.published.lerobot_folder import (
    ACTION,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    LeRobotFolder,
    camera_name,
)
from atlas.system.documents import read_json
from atlas.system.paths import inside

MODES = {"MEAN_STD": "mean_std", "QUANTILES": "quantiles", "MIN_MAX": "min_max", "IDENTITY": "identity"}
_RENAME, _TOKENIZER = "rename_observations_processor", "tokenizer_processor"
_NORMALIZER, _UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_PLAIN = {"to_batch_processor", "device_processor", _RENAME, _TOKENIZER, _NORMALIZER, _UNNORMALIZER}
_OFF = {"relative_actions_processor", "absolute_actions_processor"}  # accepted where they are not enabled
_Statistics = Mapping[str, torch.Tensor]
_LARGEST_STATISTICS = 65536  # numbers of a feature


@dataclass(frozen=True)
class TokenizerStep:
    """The step in which instructions become token ids."""

    name: str  # a folder beside the files, or a model of the hub
    max_length: int
    padding: str  # max_length or longest
    truncation: bool = True


@dataclass(frozen=True)
class ProcessorFiles:
    """The contents of a folder's processor files."""

    modes: Mapping[str, str]  # {"STATE": one of MODES' values, "ACTION": …}
    eps: float = 1e-8
    statistics: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)  # {feature: {mean: [D], …}}
    tokenizer: TokenizerStep | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)  # {camera of a dataset: the policy's}
    steps: tuple[str, ...] = ()  # of the preprocessor, in order; empty where there are no files

    @property
    def present(self) -> bool:
        return bool(self.steps)


def read_processor_files(
    folder: LeRobotFolder, own_steps: Sequence[str], usual: Mapping[str, str] | None = None
) -> ProcessorFiles:
    """Read both files. own_steps: the preprocessor's steps that only this type has; all must be there. usual: the
    normalization_mapping where config.json has none.

    Without files the modes are those of config.json, and there are no statistics. Raises InputError, which names it,
    for an unknown step or a wrong value.
    """
    mapping = folder.config.get("normalization_mapping", usual)
    if mapping is None:
        raise folder.wrong("normalization_mapping", "a mode for each kind of feature")
    modes = _modes(folder.path / "config.json", mapping)
    before, after = (folder.path / name for name in (PREPROCESSOR, POSTPROCESSOR))
    if not before.exists() and not after.exists():
        return ProcessorFiles(modes)
    steps = _steps(before, own_steps)
    names = tuple(name for name, _ in steps)
    for step in (*own_steps, _TOKENIZER, _NORMALIZER):
        if step not in names:
            raise InputError(f"{before}: the step '{step}', which a policy of type {folder.kind} needs, is missing.")
    settings = dict(steps)
    back = dict(_steps(after, ()))
    if _UNNORMALIZER not in back:
        raise InputError(f"{after}: the step '{_UNNORMALIZER}' is missing.")
    normalizer, unnormalizer = settings[_NORMALIZER], back[_UNNORMALIZER]
    modes = _modes(before, normalizer["config"].get("norm_map"))
    out = _modes(after, unnormalizer["config"].get("norm_map"))
    if out["ACTION"] != modes["ACTION"]:
        raise InputError(f"{after}: actions are scaled by {out['ACTION']}, but by {modes['ACTION']} in {before.name}.")
    statistics = _statistics(before, normalizer)
    _check_same(before, after, statistics.get(ACTION), _statistics(after, unnormalizer).get(ACTION))
    return ProcessorFiles(
        modes,
        _eps(before, normalizer["config"].get("eps", 1e-8)),
        {name: found for name, found in statistics.items() if name in (STATE, ACTION)},
        _tokenizer_step(before, settings[_TOKENIZER]),
        _renamed(before, settings.get(_RENAME)),
        names,
    )


def _steps(file: Path, own_steps: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """(name, settings and file of statistics) of each step."""
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise InputError(f"{file} is missing, though its counterpart is there.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{file} is not a processor of LeRobot: it has no list of steps.")
    found = []
    for step in steps:
        said, config = step.get("registry_name", step.get("class")), step.get("config", {})
        name = said if isinstance(said, str) else f"{said!r:.80}"
        if not isinstance(config, dict):
            raise InputError(
                f"{file}: the settings of the step '{name}' are {config!r:.80}, expected settings by name."
            )
        if name in _OFF and config.get("enabled", False):
            raise InputError(f"{file}: the step '{name}' is enabled, but Atlas does not have it.")
        if name not in _PLAIN | _OFF | {*own_steps}:
            known = ", ".join(sorted({*_PLAIN, *_OFF, *own_steps}))
            raise InputError(f"{file}: the step '{name}' is unknown, and Atlas skips no step. Known: {known}.")
        found.append((name, {"config": config, "state_file": step.get("state_file")}))
    return found


def _modes(file: Path, mapping: Any) -> dict[str, str]:
    """{"STATE": …, "ACTION": …} from a normalisation mapping; identity where it has no entry."""
    if not isinstance(mapping, dict):
        raise InputError(f"{file}: the normalisation is {mapping!r:.80}, expected a mode for each kind of feature.")
    modes = {}
    for kind in ("STATE", "ACTION"):
        mode = mapping.get(kind, "IDENTITY")
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"{file}: {kind} is normalised by {mode!r:.80}; Atlas knows {', '.join(MODES)}.")
        modes[kind] = MODES[mode]
    if mapping.get("VISUAL", "IDENTITY") != "IDENTITY":
        found = f"{mapping['VISUAL']!r:.80}"
        raise InputError(f"{file}: VISUAL is normalised by {found}; Atlas only knows IDENTITY for it.")
    return modes


def _statistics(file: Path, step: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """{feature: {statistic: float32 [D]}} of a step's tensors; empty where it has none."""
    name = step["state_file"]
    if name is None:
        return {}
    path = inside(file.parent, str(name), where=f"{file}: ", follow_links=True)
    found: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():
                feature, _, statistic = key.rpartition(".")
                value = tensors.get_tensor(key)
                if feature in (STATE, ACTION) and value.numel() <= _LARGEST_STATISTICS:
                    found.setdefault(feature, {})[statistic] = value.float().flatten().clone()
                else:
                    found.setdefault(feature, {})
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {file.name} names it as the file of its statistics.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}).") from None
    return found


def _check_same(before: Path, after: Path, first: _Statistics | None, second: _Statistics | None) -> None:
    """Raise InputError where the two files scale actions by different statistics."""
    if bool(first) != bool(second):
        raise InputError(f"Only one of {before.name} and {after.name} in {before.parent} has statistics of actions.")
    for name, values in (first or {}).items():
        other = (second or {}).get(name)
        if other is not None and not other.equal(values):
            raise InputError(f"{after}: '{name}' of actions differs from that in {before.name}.")


def _eps(file: Path, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise InputError(f"{file}: eps is {value!r}, expected a small number.")
    return float(value)


def _tokenizer_step(file: Path, step: Mapping[str, Any]) -> TokenizerStep:
    config = step["config"]
    name, length, padding = (config.get(key) for key in ("tokenizer_name", "max_length", "padding"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{file}: the tokenizer has no name.")
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= 65536:
        raise InputError(f"{file}: the tokenizer's max_length is {length!r}, expected a number of tokens.")
    if padding not in ("max_length", "longest"):
        raise InputError(f"{file}: the tokenizer's padding is {padding!r}, expected max_length or longest.")
    for key, expected in (("padding_side", "right"), ("task_key", "task")):
        if config.get(key, expected) != expected:
            raise InputError(f"{file}: the tokenizer's {key} is {config[key]!r}; Atlas only knows '{expected}'.")
    return TokenizerStep(name, length, padding, bool(config.get("truncation", True)))


def _renamed(file: Path, step: Mapping[str, Any] | None) -> dict[str, str]:
    names = {} if step is None else step["config"].get("rename_map") or {}
    if not isinstance(names, dict) or not all(isinstance(n, str) for pair in names.items() for n in pair):
        raise InputError(f"{file}: the rename_map is {names!r:.80}, expected names by name.")
    return {camera_name(old): camera_name(new) for old, new in names.items()}
