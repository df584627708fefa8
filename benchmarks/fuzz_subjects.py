"""What is fuzzed: small examples of every format that Atlas reads, and the product's own code that reads them."""

from __future__ import annotations

import functools
import json
import operator
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

sys.path += [str(Path(__file__).parents[1])]

from atlas.checkpoints.contents import (
    Snapshot,
    TrainingState,
    load_state,
    random_state,
    set_random_state,
    state_of_rank,
)
from atlas.checkpoints.run_folder import find_checkpoint, verify
from atlas.config import load_config
from atlas.config.reading import DEFAULT_CONFIG
from atlas.data.caches.feature_cache import CacheLayout, FeatureCache
from atlas.data.caches.frame_cache import fill_caches, frame_caches
from atlas.data.convert import Conversion, convert
from atlas.data.formats import open_dataset
from atlas.data.statistics import ColumnStatistics, DatasetStatistics, kept_statistics
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.success_report import EvaluationReport
from atlas.runs.run_directory import read_run
from atlas.sweeps.grid import grid_points, read_sweep
from atlas.system import manifest
from atlas.system.file_store import card_of, describe_files
from atlas.types import ActionSpec, Batch
from benchmarks.made_up import MadeUp
from tests.data.hdf5_files import as_robomimic
from tests.data.lerobot_folders import IMAGE, VIDEO, as_version_2, copy_fixture, edit_feature, replace_column

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.fusion={dim: 16, layers: 1}",
    "model.language={dim: 16, layers: 1}",
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
]


@dataclass(frozen=True)
class Subject:
    """make: writes the example into a folder. read: reads it, with the product's code, after one of its files was
    changed ("": none), whose name in the folder says what needs to be read; a generator may choose among ways to read.
    seal: corrects the hashes that would reveal the change."""

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path, str, random.Random], Any]
    seal: Callable[[Path], None] | None = None


# ---- configs -------------------------------------------------------------------------------------------------


def _make_configs(folder: Path) -> None:
    """The whole config, each of its sections alone, since the other values are the same then, and a sweep."""
    shutil.copyfile(DEFAULT_CONFIG, folder / "config.yaml")
    values = yaml.safe_load(DEFAULT_CONFIG.read_text())
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    sections = {"plain": plain} | {key: {key: value} for key, value in values.items() if key not in plain}
    for name, section in sections.items():
        (folder / f"section_{name}.yaml").write_text(yaml.safe_dump(section, sort_keys=False))
    (folder / "sweep.yaml").write_text(
        "method: grid\nmetric: {name: val/loss, goal: minimize}\nparameters:\n"
        "  training.learning_rate: {values: [0.001, 0.0003]}\n  seed: {value: 1}\n"
    )


def _read_configs(folder: Path, changed: str, chance: random.Random) -> None:
    for name in [changed] if changed else sorted(os.listdir(folder)):
        if name == "sweep.yaml":
            grid_points(read_sweep(folder / name))
        elif name.endswith(".yaml"):
            load_config(folder / name, ["training.max_steps=5"])


# ---- checkpoints ---------------------------------------------------------------------------------------------


def _policy() -> ModularPolicy:
    rng = np.random.default_rng(0)
    columns = [ColumnStatistics.of(rng.normal(size=(50, width))) for width in (7, 8)]
    statistics = (DatasetStatistics("cubes", 10, 2, *columns),)
    torch.manual_seed(0)
    processor = PolicyProcessor(("agentview",), 32, 32, 4, 8, ActionSpec(), statistics, load_config({}).model.processor)
    return ModularPolicy(load_config({}, SMALL).model, processor)


def _strategy() -> Any:
    from accelerate import Accelerator

    from atlas.training.parallel.strategy import Replicated

    config = load_config({}, [*SMALL, "training.ema_decay=0.9"])
    return Replicated(_policy(), config, Accelerator(cpu=True))


@cache
def _kept_strategy() -> Any:
    return _strategy()


def _make_checkpoint(folder: Path) -> None:
    strategy = _strategy()
    batch = Batch(
        images=torch.rand(2, 1, 3, 32, 32),
        proprio=torch.rand(2, 8),
        instruction=["a", "b"],
        source=torch.zeros(2, dtype=torch.int64),
        actions=torch.rand(2, 4, 7),
        action_is_pad=torch.zeros(2, 4, dtype=torch.bool),
    )
    strategy.policy(batch).loss.backward()
    strategy.optimizer.step()
    strategy.stepped(0)
    ranks = [{"random": random_state(), "sums": {"loss": torch.tensor([1.0, 2.0])}}]
    with strategy.judged() as judged:
        state = TrainingState(40, 320, 1, best_step=40, best_value=0.25)
        checkpoint = folder / "checkpoints" / "step_00000040"
        Snapshot.of(judged, strategy.policy, strategy.optimizer, state, ranks).write(checkpoint)
    manifest.seal(checkpoint)
    (folder / "config.yaml").write_text("run_name: run\ndata: {path: data/cubes}\n")


def _seal(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "step_00000040"
    (checkpoint / manifest.MANIFEST).unlink()
    manifest.seal(checkpoint)


def _read_checkpoint(folder: Path, changed: str, chance: random.Random) -> None:
    """As `--resume`, `load_policy` and `atlas model push` do."""
    checkpoint = find_checkpoint(folder)
    way = chance.randrange(3)
    if way == 0:
        verify(checkpoint)
        load_state(checkpoint)
        state = state_of_rank(_kept_strategy().load(checkpoint), 0, 1)
        if "random" in state:
            set_random_state(state["random"])
    elif way == 1:
        load_policy(checkpoint)
    else:
        describe_files(checkpoint)
        card_of(checkpoint)


# ---- policies of others --------------------------------------------------------------------------------------

LEROBOTS = ("config.json", "model.safetensors", "policy_*", "tokenizer/*", "vlm/*", "backbone.json")
# By kind: how many layers its vision tower and its other towers keep, which is as few as there are kinds of layers; and
# where the files count them.
LAYERS = {"smolvla": (1, 2), "pi05": (1, 1)}
COUNTS = {
    "smolvla": {"config.json": ("num_vlm_layers",), "vlm/config.json": ("vision_config/num_hidden_layers",)},
    "pi05": {"backbone.json": ("text/depth", "expert/depth", "vision/num_hidden_layers")},
}
_LAYER = re.compile(r"layers\.(\d+)\.")


def _make_lerobots(kind: str) -> Callable[[Path], Any]:
    """The small policy of the tests, with fewer layers, and without their answers."""

    def layers(name: str) -> int:
        return LAYERS[kind]["vision" not in name]

    def make(folder: Path) -> None:
        source = ROOT / "tests" / "fixtures" / kind
        for file in (file for pattern in LEROBOTS for file in source.glob(pattern)):
            (folder / file.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(source))
        for name, keys in COUNTS[kind].items():
            values = json.loads((folder / name).read_text())
            for key in keys:
                *parents, last = key.split("/")
                functools.reduce(operator.getitem, parents, values)[last] = layers(key)
            (folder / name).write_text(json.dumps(values, indent=1))
        weights = load_file(folder / "model.safetensors")
        kept = {n: w for n, w in weights.items() if all(int(at) < layers(n) for at in _LAYER.findall(n))}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return make


def _read_lerobots(folder: Path, changed: str, chance: random.Random) -> None:
    load_policy(folder)


# ---- datasets ------------------------------------------------------------------------------------------------


@cache
def _dataset() -> MadeUp:
    return MadeUp(2, 6, 16)


def _read_dataset(folder: Path, changed: str, chance: random.Random, instruction: str | None = None) -> None:
    dataset = open_dataset(folder / "data", instruction=instruction, skip_damaged=chance.random() < 0.3)
    if hasattr(dataset, "check_files"):
        dataset.check_files()
    dataset.fingerprint()
    for number in sorted({0, len(dataset) - 1}):
        episode = dataset.episode(number)
        assert episode.actions.shape[0] == episode.proprio.shape[0] == len(episode)
        for camera in dataset.cameras:
            images = episode.images(camera, [0, len(episode) - 1])
            assert images.dtype == np.uint8 and images.ndim == 4


def _read_untold(folder: Path, changed: str, chance: random.Random) -> None:
    _read_dataset(folder, changed, chance, instruction="lift the cube")


def _make_hdf5(folder: Path) -> None:
    convert(_dataset(), folder / "data", Conversion("libero-hdf5"), workers=1)


def _make_lerobot(codec: str) -> Callable[[Path], Any]:
    return lambda folder: convert(_dataset(), folder / "data", Conversion("lerobot", codec), workers=1)


def _make_lerobot_2(folder: Path) -> None:
    copy_fixture(VIDEO, folder / "source")
    as_version_2(folder / "source", folder / "data")
    shutil.rmtree(folder / "source")


def _make_small_arm(folder: Path) -> None:
    """An arm that LeRobot knows: its unit follows from the statistics of its episodes."""
    _make_lerobot_2(folder)
    names = [f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")]
    root = folder / "data"
    edit_feature(root, "action", names=[*names, "gripper.pos"], shape=[6])
    for file in sorted(root.glob("data/*/*.parquet")):
        actions = pq.read_table(file).column("action").to_pylist()
        replace_column(file, "action", [row[:6] for row in actions])
    bounds = {"action": {"min": [-1.0] * 6, "max": [1.0] * 6}}
    episodes = len((root / "meta" / "episodes.jsonl").read_text().splitlines())
    lines = [json.dumps({"episode_index": number, "stats": bounds}) for number in range(episodes)]
    (root / "meta" / "episodes_stats.jsonl").write_text("\n".join(lines) + "\n")
    (root / "meta" / "stats.json").unlink(missing_ok=True)


# ---- caches --------------------------------------------------------------------------------------------------


def _make_frame_cache(folder: Path) -> None:
    fill_caches(folder / "cache", _dataset(), ["agentview"], 16)


def _read_frame_cache(folder: Path, changed: str, chance: random.Random) -> None:
    for cached in frame_caches(folder / "cache", _dataset(), ["agentview"], 16):
        cached.check()
        assert cached.frame(3).shape == (1, 3, 16, 16)


def _make_feature_cache(folder: Path) -> None:
    cached = FeatureCache.create(folder / "cache", CacheLayout(12, 1, 4, 8), {"weights": "abc"})
    cached.write(0, torch.zeros(12, 1, 4, 8, dtype=torch.bfloat16))


def _read_feature_cache(folder: Path, changed: str, chance: random.Random) -> None:
    cached = FeatureCache.read(folder / "cache")
    cached.check({"weights": "abc"})
    cached.check_complete()
    cached.features(np.arange(5), np.zeros(5, np.int64))


def _numbers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)


def _make_statistics(folder: Path) -> None:
    kept_statistics(_numbers(), "")  # in the cache, which is in the folder


def _read_statistics(folder: Path, changed: str, chance: random.Random) -> None:
    found = kept_statistics(_numbers(), "")
    assert np.isfinite(np.array([found.mean, found.std, found.q01])).all() and len(found.mean) == 7


# ---- runs ----------------------------------------------------------------------------------------------------


def _make_run(folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    (folder / "run").mkdir()
    values = yaml.safe_load(DEFAULT_CONFIG.read_text())
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with mock.patch("time.time", return_value=1.7e9), SummaryWriter(str(folder / "run" / "tensorboard")) as writer:
        for step in range(5):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
    from atlas.rollout.success_report import EpisodeOutcome

    outcomes = (EpisodeOutcome(instruction="a", seed=1, success=True, reward=1.0, length=9),)
    EvaluationReport("cubes", "step_40", outcomes, "selection", 40, 0, ()).save(folder / "run" / "evaluation.json")


def _read_run(folder: Path, changed: str, chance: random.Random) -> None:
    if not changed or changed.endswith("evaluation.json"):
        EvaluationReport.load(folder / "run" / "evaluation.json")
    if not changed.endswith("evaluation.json") or chance.random() < 0.1:
        read_run(folder / "run")


SUBJECTS = (  # the fast ones first
    Subject("config and sweep (YAML)", _make_configs, _read_configs),
    Subject("frame cache", _make_frame_cache, _read_frame_cache),
    Subject("feature cache", _make_feature_cache, _read_feature_cache),
    Subject("kept statistics", _make_statistics, _read_statistics),
    Subject("run and evaluation", _make_run, _read_run),
    Subject("checkpoint", _make_checkpoint, _read_checkpoint),
    Subject("checkpoint, sealed again", _make_checkpoint, _read_checkpoint, _seal),
    Subject("LeRobot's SmolVLA", _make_lerobots("smolvla"), _read_lerobots),
    Subject("LeRobot's pi0.5", _make_lerobots("pi05"), _read_lerobots),
    Subject("LeRobot 3.0, video", _make_lerobot("h264"), _read_dataset),
    Subject("LeRobot 3.0, PNG", _make_lerobot("png"), _read_dataset),
    Subject("LeRobot 3.0, by LeRobot", lambda folder: copy_fixture(IMAGE, folder / "data"), _read_dataset),
    Subject("LeRobot 2.1, video", _make_lerobot_2, _read_dataset),
    Subject("LeRobot 2.1, a small arm", _make_small_arm, _read_dataset),
    Subject("HDF5, LIBERO", _make_hdf5, _read_dataset),
    Subject("HDF5, robomimic", lambda folder: (_make_hdf5(folder), as_robomimic(folder / "data")), _read_untold),
)
