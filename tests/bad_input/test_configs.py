"""Config files that make no sense: misspelt, of the wrong type, contradictory, or not YAML at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas.config import DEFAULT_CONFIG
from tests.bad_input.table import Row, each, refused

GOOD = DEFAULT_CONFIG.read_text(encoding="utf-8")


def text(name: str, content: str | bytes, *words: str) -> Row:
    """The whole file."""
    data = content.encode() if isinstance(content, str) else content
    return Row(name, lambda file: file.write_bytes(data), ("bad.yaml", *words))


def swap(name: str, old: str, new: str, *words: str) -> Row:
    """A place in the good file."""
    assert old in GOOD
    return Row(name, lambda file: file.write_text(GOOD.replace(old, new, 1)), ("bad.yaml", *words))


ROWS = [
    text(
        "cut off in the middle of a list", GOOD.split("\ndata:")[0] + "\ndata: {cameras: [agentview", "not valid YAML"
    ),
    text("bytes that are no text", b"\xff\xfe\x00\x01run_name", "not a text file"),
    text("a control character", "run_name: a\x01b", "not valid YAML"),
    text("a list instead of sections", "- data\n- model\n", "must hold sections", "a list"),
    text("a sentence", "train a policy please", "must hold sections", "train a policy please"),
    text("brackets without end", "data: " + "[" * 3000, "too deep"),
    text("Python objects", "run_name: !!python/object/apply:os.system ['true']", "python/object"),
    text("a tab as indentation", "data:\n\tpath: x", "not valid YAML"),
    text("a section twice", f"{GOOD}\ntraining:\n  max_steps: 5\n", "'training' occurs twice"),
    text("a key twice", "training:\n  max_steps: 5\n  max_steps: 6\n", "'max_steps' occurs twice", "line 3"),
    text("a section without keys", "training:\n", "'training'", "should be a section"),
    text("a section that is a number", "training: 5", "'training'", "should be a section", "given: 5"),
    text("a key that is a number", "1: data", "'1'"),
    text("a run name that is a number", "run_name: 5", "'run_name'", "valid string"),
    swap("a misspelt section", "\ntraining:", "\ntrainig:", "'trainig'", "Did you mean 'training'"),
    swap("a misspelt key", "learning_rate:", "lerning_rate:", "training.lerning_rate", "Did you mean 'learning_rate'"),
    swap("a number that is none", "learning_rate: ", "learning_rate: fast  #", "training.learning_rate", "fast"),
    swap("infinity", "learning_rate: ", "learning_rate: .inf  #", "training.learning_rate", "finite"),
    swap("a fraction of a step", "max_steps: ", "max_steps: 1.5  #", "training.max_steps", "1.5"),
    swap("no steps", "max_steps: ", "max_steps: 0  #", "training.max_steps", "greater than or equal to 1"),
    swap("two lengths", "num_epochs: null", "num_epochs: 2", "max_steps and num_epochs", "both are set"),
    swap("a batch size in words", "batch_size: 64", "batch_size: big", "data.batch_size", "or be 'auto'", "big"),
    swap("an image of one pixel", "image_size: ", "image_size: 1  #", "image_size", "greater than or equal to 16"),
    swap("another orientation", "orientation: auto", "orientation: sideways", "data.orientation", "rotated_180"),
    swap("another strategy", "strategy: ddp", "strategy: zero3", "distributed.strategy", "fsdp"),
    swap("a port for administrators", "master_port: 29500", "master_port: 80", "distributed.master_port", "1024"),
    swap("early stopping on a training loss", "early_stopping: null", "early_stopping: {metric: train/loss}", "metric"),
    swap("early stopping on nothing", "early_stopping: null", "early_stopping: {patience: 3}", "early_stopping.metric"),
    swap("a profile of no steps", "profile: null", "profile: {start: 3, steps: 0}", "training.profile.steps"),
    swap("an unknown encoder", "name: keypoints", "name: resnet", "model.vision", "resnet", "vggt_pretrained"),
    swap("a folder as run name", "run_name: null", "run_name: ../elsewhere", "run_name", "../elsewhere"),
]


@each(ROWS)
def test_a_config_file_that_is_wrong_is_refused(bad: Row, place: Path, good_data: Path) -> None:
    bad.spoil(place / "bad.yaml")

    refused(place, ["train", "--cpu", "--config", "bad.yaml", f"data.path={good_data}"], *bad.words)


def keys_of(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


@pytest.mark.parametrize("seed", range(8))
def test_any_key_misspelt_or_with_a_value_of_another_kind_is_named(seed: int, place: Path, good_data: Path) -> None:
    """Twelve keys per seed, out of all there are."""
    rng = random.Random(seed)
    keys = [key for key in keys_of(yaml.safe_load(GOOD)) if key != "distributed.cpu"]  # which --cpu sets
    assert len(keys) > 100
    for key in rng.sample(keys, 6):
        refused(place, ["train", "--cpu", f"data.path={good_data}", f"{key}={{not: {{such: thing}}}}"], key)
    for key in rng.sample(keys, 6):
        letter = rng.randrange(len(key) - len(key.rpartition(".")[2]), len(key))
        misspelt = f"{key[:letter]}x{key[letter:]}"
        refused(place, ["train", "--cpu", f"data.path={good_data}", f"{misspelt}=1"], misspelt)
