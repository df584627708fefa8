"""Folders of pi0 that are not as they should be, and settings that do not go with one: exit 2, naming what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.table import Row, each, refused, row

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAYER = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.up_proj.weight"
QUICK = ("data.action_horizon=4", "data.batch_size=2", "data.num_workers=0", "training.max_steps=2")
PREPROCESSOR = "policy_preprocessor.json"


def in_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return rewrite


def in_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return rewrite


def _rename_step(values: dict[str, Any]) -> None:
    values["steps"][2]["registry_name"] = "another_line_processor"


@row("a tokenizer that is not there", "tokenizer")
def _no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


@row("a tokenizer of another model", "the tokenizer in", "belongs to another model", "the weights have 3")
def _another_tokenizer(folder: Path) -> None:
    in_json("backbone.json", lambda values: values.update(vocab_size=3))(folder)
    in_weights(lambda w: w.update({name: w[name][:3].clone() for name in w if name.endswith("lm_head.weight")}))(folder)


FOLDERS = [
    Row(
        "another type",
        in_json("config.json", lambda values: values.update(type="act")),
        ("is a policy of the type 'act'; expected 'pi0'",),
    ),
    Row(
        "another version",
        in_json("config.json", lambda values: values.update(use_relative_actions=True)),
        ("'use_relative_actions' is True",),
    ),
    Row("a tensor missing", in_weights(lambda w: w.pop(LAYER)), (f"'{LAYER}' is missing",)),
    Row(
        "a tensor extra",
        in_weights(lambda w: w.update({"stranger": torch.zeros(1)})),
        ("'stranger' is not part of this policy",),
    ),
    Row(
        "a tensor of another shape",
        in_weights(lambda w: w.update({LAYER: w[LAYER][1:].clone()})),
        (f"'{LAYER}' has shape [63, 32], expected [64, 32]",),
    ),
    Row("weights cut off", lambda f: (f / "model.safetensors").write_bytes(b"12345678"), ("model.safetensors", "read")),
    Row("no weights", lambda f: (f / "model.safetensors").unlink(), ("model.pretrained", "lacks model.safetensors")),
    Row(
        "sizes of another network",
        in_json("backbone.json", lambda values: values["text"].update(mlp_dim=96)),
        ("has shape", "expected"),
    ),
    Row(
        "sizes that cannot be",
        in_json("backbone.json", lambda values: values["expert"].update(depth=4)),
        ("backbone.json", "depth is 3 in text and 4 in expert"),
    ),
    Row("an unknown step", in_json(PREPROCESSOR, _rename_step), (PREPROCESSOR, "'another_line_processor' is unknown")),
    _no_tokenizer,
    _another_tokenizer,
]


@pytest.fixture
def folder(place: Path) -> Path:
    ignored = shutil.ignore_patterns("golden*", "inputs*", "v044", "*shapes*")
    return Path(shutil.copytree(FIXTURES / "pi0", place / "pi0", ignore=ignored))


@each(FOLDERS)
def test_a_folder_is_refused_by_name(bad: Row, folder: Path, place: Path, good_data: Path) -> None:
    bad.spoil(folder)

    arguments = ["train", "--cpu", "model.type=pi0", f"model.pretrained={folder}", f"data.path={good_data}", *QUICK]
    refused(place, arguments, *bad.words)


SETTINGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "another type": (
        ["model.type=pi05", f"model.pretrained={FIXTURES / 'pi0'}"],
        ("is a policy of the type 'pi0'; expected 'pi05'",),
    ),
    "nothing there": (["model.pretrained=nowhere"], ("model.pretrained", "nowhere")),
    "a camera mapping that names nothing": (["model.cameras={top: agentview, rist: eye_in_hand}"], ("'rist'", "wrist")),
    "a camera mapping to nothing": (["model.cameras={top: agentview, wrist: hand}"], ("'hand'", "eye_in_hand")),
    "targets that match nothing": (["model.lora={targets: [qproj]}"], ("model.lora.targets", "'qproj'", "q_proj")),
    "two ways to train": (["model.lora={rank: 2}", "model.train_expert_only=true"], ("lora is set",)),
    "quantiles that are not there": (
        ["model.type=pi05", "model.pretrained=quantiles", "model.statistics=checkpoint"],
        ("lack q01 and q99", "quantiles"),
    ),
    "more action dimensions than the weights have": (["model.pretrained=narrow"], ("7 numbers", "take 5")),
    "another tokenizer": (["model.tokenizer=nowhere"], ("model.tokenizer", "nowhere")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do_not_go_with_a_folder_are_refused(
    name: str, folder: Path, place: Path, good_data: Path
) -> None:
    settings, words = SETTINGS[name]
    if "model.pretrained=narrow" in settings:
        _narrow(folder, place / "narrow")
    if "model.pretrained=quantiles" in settings:
        _without_quantiles(place / "quantiles")

    arguments = ["train", "--cpu", "model.type=pi0", f"model.pretrained={folder}", f"data.path={good_data}", *QUICK]
    refused(place, [*arguments, *settings], *words)


def _narrow(folder: Path, to: Path) -> None:
    """Weights that take five numbers of an action."""
    shutil.copytree(folder, to)
    in_json("config.json", lambda values: values.update(max_action_dim=5))(to)

    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["action_in_proj.weight"] = weights["action_in_proj.weight"][:, :5].clone()
        for name in ("action_out_proj.weight", "action_out_proj.bias"):
            weights[name] = weights[name][:5].clone()

    in_weights(cut)(to)


def _without_quantiles(to: Path) -> None:
    shutil.copytree(FIXTURES / "pi05", to, ignore=shutil.ignore_patterns("golden*", "inputs*", "v044"))
    for file in to.glob("policy_*.safetensors"):
        kept = {name: t for name, t in load_file(file).items() if not name.rpartition(".")[2].startswith("q")}
        save_file(kept, file)
