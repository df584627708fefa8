"""pi0 and pi0.5 go back to LeRobot, adapters and all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from atlas.errors import InputError
from atlas.policies.exporting import export_policy
from atlas.policies.model_card import model_card
from atlas.policies.pi.pi_names import TABLE, TIED_TABLE, UNUSED
from atlas.policies.published.lerobot_card import lerobot_card
from atlas.policies.published.lerobot_export import NEWER_OPTIONS
from tests.policies.golden_pi import FOLDER, KINDS, golden
from tests.policies.pi_policies import batch_of, build, load


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_goes_there_and_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    out = export_policy(FOLDER / kind, "lerobot", tmp_path / "out").folder

    found = load_file(out / "model.safetensors")
    names = json.loads((FOLDER / kind / "names_as_lerobot_saves_them.json").read_text())["main"]["tensors"]
    assert {name: list(tensor.shape) for name, tensor in found.items()} == names
    stored = golden(kind).weights
    assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in stored.items())
    assert torch.equal(found[f"model.{TABLE}"], stored[TIED_TABLE])
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER / kind, out))
    assert now == {key: value for key, value in was.items() if key in now}
    assert {*was} - {*now} <= {*NEWER_OPTIONS}  # which do nothing, and which 0.4.4 does not know
    before = {file: json.loads((FOLDER / kind / file).read_text()) for file in ("backbone.json",)}["backbone.json"]
    assert {k: v for k, v in before.items() if k != "note"} == json.loads((out / "backbone.json").read_text())
    policy = load(out)
    actions = policy.sample_chunk(batch_of(policy, kind), golden(kind).inputs["sample_noise"])
    first = load(FOLDER / kind)
    assert torch.equal(actions, first.sample_chunk(batch_of(first, kind), golden(kind).inputs["sample_noise"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_what_is_known_of_origin_and_licence(kind: str) -> None:
    policy = build(kind)
    policy.config.pretrained = f"hf:lerobot/{kind}_base"
    facts = {"data": "hf:lab/drawers", "success": {"env": "cubes", "episodes": 50, "success_rate": 0.5}}

    about = yaml.safe_load(lerobot_card(policy, facts).split("---\n")[1])

    assert about["license"] == "gemma" and "Gemma terms" in lerobot_card(policy)
    assert (about["base_model"], about["datasets"]) == (f"lerobot/{kind}_base", ["lab/drawers"])
    own = yaml.safe_load(model_card(policy).split("---\n")[1])
    assert (own["license"], own["base_model"]) == ("gemma", f"lerobot/{kind}_base")
    assert about["model-index"][0]["results"][0]["dataset"]["name"] == "cubes"
    policy.config.weights = "random"
    assert "base_model" not in lerobot_card(policy) and "model-index" not in lerobot_card(policy)


@pytest.mark.parametrize("kind", KINDS)
def test_processor_files_are_those_of_the_release_before(kind: str, tmp_path: Path) -> None:
    """Which main reads too."""
    out = export_policy(FOLDER / kind, "lerobot", tmp_path / "out").folder

    for name in ("policy_preprocessor", "policy_postprocessor"):
        was, now = (json.loads((folder / f"{name}.json").read_text()) for folder in (FOLDER / kind / "v044", out))
        tokenizers = [step["config"].pop("tokenizer_name", None) for step in (*was["steps"], *now["steps"])]
        assert "tokenizer" in tokenizers or name == "policy_postprocessor"
        assert now == was
    for file in (FOLDER / kind / "v044").glob("*.safetensors"):
        was, now = load_file(file), load_file(out / file.name)
        used = {name for name in was if name.startswith(("action.", "observation.state.")) and name in now}
        assert len(used) >= 8 and all(torch.equal(was[name].flatten(), now[name]) for name in used)


def test_a_table_that_was_trained_is_both(tmp_path: Path) -> None:
    policy = build("pi0").eval()
    with torch.no_grad():
        policy.network.words.weight.add_(1)
    policy.save_pretrained(tmp_path / "policy")

    found = load_file(export_policy(tmp_path / "policy", "lerobot", tmp_path / "out").folder / "model.safetensors")

    table = golden("pi0").weights[TIED_TABLE] + 1
    assert torch.equal(found[f"model.{TABLE}"], table) and torch.equal(found[f"model.{TIED_TABLE}"], table)
    assert torch.equal(found[f"model.{UNUSED}"], golden("pi0").weights[UNUSED])


@pytest.fixture
def adapted(tmp_path: Path) -> Callable[[str], Path]:
    """A saved policy with adapters that have learned something."""

    def save(precision: str) -> Path:
        policy = build("pi0", lora={"rank": 2}, precision=precision).eval()
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        policy.save_pretrained(tmp_path / precision)
        return tmp_path / precision

    return save


def test_adapters_are_merged_where_that_is_asked_for(adapted: Callable[[str], Path], tmp_path: Path) -> None:
    saved = adapted("float32")
    with pytest.raises(InputError, match="--merge-lora"):
        export_policy(saved, "lerobot", tmp_path / "out")

    out = export_policy(saved, "lerobot", tmp_path / "out", merge_lora=True).folder

    with_adapters, merged = load(saved), load(out)
    start = golden("pi0").inputs["sample_noise"]
    batch = batch_of(merged, "pi0")
    actions = merged.sample_chunk(batch, start)
    assert (actions - with_adapters.sample_chunk(batch, start)).abs().max() < 1e-4
    assert (actions - golden("pi0").of("full")["sample.actions"]).abs().max() > 1e-2
    with pytest.raises(InputError, match="has no adapters"):
        export_policy(out, "lerobot", tmp_path / "again", merge_lora=True)


def test_what_is_frozen_in_bfloat16_is_written_in_it(tmp_path: Path) -> None:
    build("pi0", train_expert_only=True, precision="bfloat16").save_pretrained(tmp_path / "policy")
    out = export_policy(tmp_path / "policy", "lerobot", tmp_path / "out").folder

    found = load_file(out / "model.safetensors")
    language = "model.paligemma_with_expert.paligemma.model.language_model.layers.0."
    assert found[f"{language}self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert found[f"{language}input_layernorm.weight"].dtype == torch.float32
    assert found[f"model.{TABLE}"].dtype == torch.bfloat16
    assert load(out).sample(batch_of(load(out), "pi0")).isfinite().all()


def test_what_is_merged_is_float32_whatever_it_was_held_in(adapted: Callable[[str], Path], tmp_path: Path) -> None:
    out = export_policy(adapted("bfloat16"), "lerobot", tmp_path / "out", merge_lora=True).folder

    found = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    rounded = golden("pi0").weights[TIED_TABLE].bfloat16().float()
    assert torch.equal(found[f"model.{TABLE}"], rounded)
    assert load(out).sample(batch_of(load(out), "pi0")).isfinite().all()
