"""pi0 and pi0.5 are trained as LeRobot trains them, saved, and loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import atlas as package
from atlas.config import TrainingConfig
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.pi.pi_names import published_name
from atlas.policies.pi.pi_policy import PiPolicy
from atlas.policies.pi.pi_section import Pi0Config, Pi05Config
from atlas.policies.published import flow_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.training.optimizer import learning_rate, make_optimizer, warmup_for
from atlas.types import Observation
from tests.conftest import MakeLibero
from tests.data.local_hub import NAME, serving_models
from tests.policies.golden_pi import FOLDER, KINDS, golden
from tests.policies.pi_policies import batch_of, build
from tests.rollout.sites import install

Run = Callable[..., int]

WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "expert": {"train_expert_only": True},
    "expert in bfloat16": {"train_expert_only": True, "precision": "bfloat16"},
    "all but vision": {"freeze_vision_encoder": True},
    "adapters": {"lora": {"rank": 2, "alpha": 4}},
    "adapters in bfloat16": {"lora": {"rank": 2, "targets": ["q_proj", "fc1"]}, "precision": "bfloat16"},
}


def facts(kind: str) -> dict[str, Any]:
    return json.loads((FOLDER / kind / "facts.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_golden(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, numbers = build(kind).train(), golden(kind).inputs
    monkeypatch.setattr(flow_policy, "draw_training", lambda *_: (numbers["noise"], numbers["time"]))

    policy(batch_of(policy, kind)).loss.backward()

    known = {name.removeprefix("model."): norm for name, norm in facts(kind)["grad_norm"].items()}
    wrong, none = {}, set()
    for name, p in policy.network.named_parameters():
        norm = known[published_name(name)]
        if p.grad is None:
            none.add(name)
            assert not p.requires_grad and (norm is None or norm < 1e-6)
        elif norm is None or norm < 1e-6 or abs(float(p.grad.norm()) - norm) > 1e-4 * max(1.0, norm):
            wrong[name] = (float(p.grad.norm()), norm)
    assert wrong == {}
    assert none == {name for name, p in policy.network.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("section", [Pi0Config, Pi05Config])
def test_learning_rates_are_golden(section: type[Pi0Config]) -> None:
    for length, rates in facts("pi0")["lr"].items():
        config = TrainingConfig(**section.training_preset(), max_steps=int(length))
        warmup = warmup_for(config, int(length))
        found = {step: learning_rate(int(step), int(length), warmup, config) for step in rates}
        assert found == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_learns_and_comes_back(kind: str, way: str, tmp_path: Path) -> None:
    policy = build(kind, **WAYS[way]).train()
    batch = batch_of(policy, kind, padding=True)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = make_optimizer(policy, TrainingConfig(learning_rate=1e-2, ema_decay=0))

    for seed in range(3):
        torch.manual_seed(seed)
        policy(batch).loss.backward()
        assert {n for n, p in policy.named_parameters() if p.grad is not None} == trained(policy)
        optimizer.step()
        optimizer.zero_grad()

    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained(policy)
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)
    policy.eval().save_pretrained(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert not again.training
    start = golden(kind).inputs["sample_noise"]
    assert torch.equal(again.sample_chunk(batch, start), policy.sample_chunk(batch, start))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained(policy)


def trained(policy: torch.nn.Module) -> set[str]:
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def test_a_saved_policy_has_what_was_trained_and_names_the_rest(tmp_path: Path) -> None:
    for way in ("all", "expert", "adapters"):
        build("pi0", **WAYS[way]).save_pretrained(tmp_path / way)

    names = {way: set(load_file(tmp_path / way / "model.safetensors")) for way in ("all", "expert", "adapters")}

    assert {name.split(".")[1] for name in names["expert"]} == {
        "expert",
        "state_proj",
        *("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"),
    }
    added = names["adapters"] - names["expert"]
    assert added and all("lora_" in name for name in added)
    assert not any("expert" in name for name in added)
    depth = golden("pi0").sizes.text.depth
    assert f"network.language.layers.{depth - 1}.mlp.up_proj.weight" in names["all"]


def test_a_policy_that_is_trained_whole_needs_no_other_file(tmp_path: Path) -> None:
    base = shutil.copytree(FOLDER / "pi0", tmp_path / "base", ignore=shutil.ignore_patterns("golden*", "v044"))
    policies = {way: build("pi0", folder=base, **WAYS[way]).eval() for way in ("all", "adapters")}
    for way, policy in policies.items():
        policy.save_pretrained(tmp_path / way, full=way == "adapters")
    shutil.rmtree(base)
    start = golden("pi0").inputs["sample_noise"]

    for way, policy in policies.items():
        batch = batch_of(policy, "pi0")
        again = load_policy(tmp_path / way)
        assert isinstance(again, PiPolicy)
        assert torch.equal(again.sample_chunk(batch, start), policy.sample_chunk(batch, start))


def test_another_backbone_than_that_trained_with_is_refused(tmp_path: Path) -> None:
    base = shutil.copytree(FOLDER / "pi0", tmp_path / "base", ignore=shutil.ignore_patterns("golden*", "v044"))
    build("pi0", folder=base, train_expert_only=True).save_pretrained(tmp_path / "policy")
    weights = load_file(base / "model.safetensors")
    name = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias"
    save_file(weights | {name: weights[name] + 1}, base / "model.safetensors")

    with pytest.raises(InputError, match="other frozen backbone weights"):
        load_policy(tmp_path / "policy")


def test_saved_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    build("pi0").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights, whole = load_file(file), file.read_bytes()
    name = "network.action_out_proj.bias"
    wrong: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "missing": ({n: t for n, t in weights.items() if n != name}, f"'{name}' is missing"),
        "extra": (weights | {"stranger": weights[name].clone()}, "'stranger' is not part of this policy"),
        "shape": (weights | {name: weights[name][1:].clone()}, f"'{name}' has shape"),
        "values": (weights | {name: weights[name] * torch.nan}, f"'{name}' holds values that are not finite"),
    }
    for changed, said in wrong.values():
        save_file(changed, file, {"format": "pt", "frozen": "{}"})
        with pytest.raises(InputError) as error:
            load_policy(tmp_path)
        assert said in str(error.value)
    file.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="may be truncated"):
        load_policy(tmp_path)


@pytest.mark.parametrize(("kind", "way"), [("pi0", "adapters"), ("pi05", "expert"), ("pi05", "all")])
def test_a_run_trains_saves_goes_on_and_acts(
    kind: str, way: str, make_libero: MakeLibero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atlas: Run
) -> None:
    """It goes on, acts, is evaluated, exported and pushed where the folder that it began with is gone."""
    base = shutil.copytree(FOLDER / kind, tmp_path / "base", ignore=shutil.ignore_patterns("golden*", "v044"))
    settings = [
        *(f"model.type={kind}", f"model.pretrained={base}", "model.statistics=dataset"),  # first: it begins anew
        *(f"model.{key}={json.dumps(value)}" for key, value in WAYS[way].items()),
        *("model.sampling_steps=2", f"data.path={make_libero({'open': [4, 5, 4]})}", "data.batch_size=2"),
        *("data.num_workers=0", "data.action_horizon=4", "data.val_fraction=0.5"),
        *("training.max_steps=4", "training.warmup_steps=1", "training.log_interval=1", "training.val_interval=4"),
        *("training.ema_decay=0.9", "checkpoint.save_interval=2", f"output_dir={tmp_path}", "distributed.cpu=true"),
    ]

    def train(name: str, resume: str | None = None) -> dict[str, float]:
        return dict(package.train({}, [*settings, f"run_name={name}"], resume=resume).metrics)  # type: ignore[operator]

    metrics = train("run")
    assert {"train/pose_loss", "train/gripper_loss", "val/pose_l1_error"} <= metrics.keys()
    expected = load_file(tmp_path / "run" / "checkpoints" / "step_00000004" / "policy" / "model.safetensors")
    again = shutil.copytree(tmp_path / "run", tmp_path / "again", symlinks=True) / "checkpoints"
    shutil.rmtree(again / "step_00000004")
    for link in again.iterdir():
        if link.is_symlink():
            link.unlink()
    shutil.rmtree(base)

    train("again", resume=str(again / "step_00000002"))

    found = load_file(again / "step_00000004" / "policy" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    policy = load_policy(tmp_path / "again")
    assert isinstance(policy, PiPolicy)
    policy.export_lerobot(tmp_path / "for_lerobot")
    assert (tmp_path / "for_lerobot" / "tokenizer" / "tokenizer.json").is_file()
    actor = ChunkExecutor(policy, execute=2)
    image = np.zeros((48, 64, 3), np.uint8)
    seen = Observation({"agentview": image, "eye_in_hand": image}, np.zeros(8, np.float32), "open")
    actor.reset(0, 0)
    assert actor.plan({0: seen})[0].shape == (2, 7)
    if way == "all":
        assert not list(tmp_path.rglob("lerobot/model.safetensors"))  # nothing of it is needed
        return
    run = str(tmp_path / "again")
    install(tmp_path, monkeypatch, "drift", "atlas.environments", "drift = tests.rollout.drift_world:WORLD")
    assert atlas("eval", "--checkpoint", run, "--env", "drift", "--episodes", "1", "--workers", "1") == 0
    merged = ["--merge-lora"] if way == "adapters" else []
    assert atlas("model", "export", run, "--to", "lerobot", "--out", str(tmp_path / "out"), *merged) == 0
    with serving_models(tmp_path, monkeypatch):
        assert atlas("model", "push", run, f"hf:{NAME}") == 0
        pushed = load_policy(f"hf:{NAME}")
    mine, theirs = policy.state_dict(), pushed.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    first, *rest = (tmp_path / "run" / "checkpoints").glob("step_*/policy/lerobot/model.safetensors")
    assert len(rest) == 1 and first.samefile(rest[0]) and first.samefile(tmp_path / "run" / "pretrained" / first.name)
