"""Which checkpoints of a run go to wandb, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas.config import Config, load_config
from atlas.policies.modular.policy import ModularPolicy
from atlas.training.publishing import Publisher, config_hash, git_commit, run_facts


class Listener:
    """Takes what the tracker would be told."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []

    def log_model(self, path: Path, name: str, aliases: Any, metadata: Any, step: int, description: str = "") -> None:
        self.models.append(
            {"path": path, "name": name, "aliases": aliases, "metadata": metadata, "step": step, "card": description}
        )


def publisher(*overrides: str) -> tuple[Publisher, Listener]:
    config = load_config({"run_name": "my run"}, list(overrides))
    listener = Listener()
    facts = {"run_name": "my run", "config_hash": config_hash(config), "git_commit": None}
    return Publisher(config, listener, facts), listener  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "bests", "expected"),
    [
        ("{upload_frequency: 1}", "----", [1, 2, 3, 4]),
        ("{upload_frequency: 2}", "----", [2, 4]),
        ("{upload_frequency: 2}", "b---", [1, 2, 4]),
        ("{upload_frequency: 2, save_best_models: false}", "b---", [2, 4]),
        ("{upload_frequency: 0}", "-b-b", [2, 4]),
        ("{upload_frequency: 0, save_best_models: false}", "bbbb", []),
    ],
)
def test_every_nth_checkpoint_and_the_best_ones_are_due(
    settings: str, bests: str, expected: list[int], checkpoint: Path
) -> None:
    publishing, listener = publisher(f"model_management={settings}")
    due = [step for step, best in enumerate(bests, 1) if publishing.after_save(checkpoint, step, step, {}, best == "b")]
    assert due == expected
    assert [model["step"] for model in listener.models] == expected
    assert [("best" in model["aliases"]) for model in listener.models] == [bests[step - 1] == "b" for step in expected]


@pytest.mark.parametrize(
    ("conditions", "metrics", "good"),
    [
        ("{val/pose_l2_error: {max: 0.05}}", {"val/pose_l2_error": 0.05}, True),
        ("{val/pose_l2_error: {max: 0.05}}", {"val/pose_l2_error": 0.051}, False),
        ("{eval/success_rate: {min: 0.8}}", {"eval/success_rate": 0.8}, True),
        ("{eval/success_rate: {min: 0.8}}", {"eval/success_rate": 0.79}, False),
        ("{val/loss: {min: 0.1, max: 0.2}}", {"val/loss": 0.15}, True),
        ("{val/loss: {min: 0.1, max: 0.2}}", {"val/loss": 0.05}, False),
        ("{min_success_rate: 0.8}", {"eval/success_rate": 0.9}, True),
        ("{min_success_rate: 0.8}", {"eval/success_rate": 0.7}, False),
        ("{min_reward_threshold: 0.5}", {"eval/mean_reward": 0.5}, True),
        ("{min_reward_threshold: 0.5}", {"eval/mean_reward": 0.4}, False),
        ("{min_success_rate: 0.8, val/loss: {max: 1}}", {"eval/success_rate": 0.9, "val/loss": 2}, False),
        ("{min_success_rate: 0.8, val/loss: {max: 1}}", {"eval/success_rate": 0.9, "val/loss": 1}, True),
        ("{min_success_rate: 0.8}", {}, False),
        ("{val/loss: {max: 1}}", {"val/loss": float("nan")}, False),
    ],
)
def test_only_what_meets_every_condition_is_uploaded(
    conditions: str, metrics: dict[str, float], good: bool, checkpoint: Path
) -> None:
    publishing, listener = publisher(f"model_management.upload_conditions={conditions}")
    assert publishing.after_save(checkpoint, 1, 1, metrics, best=True) is good
    assert len(listener.models) == good


def test_a_metric_without_a_value_is_said_once(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    publishing, _ = publisher("model_management.upload_conditions={min_success_rate: 0.8, val/loss: {max: 1}}")
    for step in (1, 2, 3):
        publishing.after_save(checkpoint, step, step, {"train/loss": 1.0}, best=False)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("no value yet" in line for line in said)
    assert "eval/success_rate" in said[0] and "val/loss" in said[1]


def test_a_model_says_where_it_comes_from(checkpoint: Path) -> None:
    publishing, listener = publisher("model_management.aliases=[mine]", "wandb={entity: lab, project: atlas-vla}")
    metrics = {"train/loss": 9.0, "train/epoch": 1.5, "val/loss": 0.25, "eval/success_rate": 0.75, "perf/mfu": 0.1}
    publishing.after_save(checkpoint, 1, 40, metrics, best=True)

    (model,) = listener.models
    assert (model["path"], model["name"], model["step"]) == (checkpoint, "my-run", 40)
    assert model["aliases"] == ["latest", "step-40", "best", "mine"]
    metadata = model["metadata"]
    assert (metadata["step"], metadata["epoch"], metadata["run_name"]) == (40, 1.5, "my run")
    assert metadata["metrics"] == {"eval/success_rate": 0.75, "val/loss": 0.25}
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    assert metadata["file_size_mb"] == pytest.approx(size / 1e6, abs=2e-3)
    card = model["card"]
    assert card.startswith("# Atlas policy") and "library_name" not in card
    assert 'load_policy("wandb:lab/atlas-vla/my-run:step-40")' in card
    assert "| optimizer steps | 40 |" in card and "| `val/loss` | 0.25 |" in card


def test_the_facts_of_a_run(policy: ModularPolicy, make_libero: Callable[..., Path]) -> None:
    from atlas.data.formats import open_dataset

    config = load_config({"run_name": "my run"})
    dataset = open_dataset(make_libero())
    facts = run_facts(config, policy, dataset)
    assert facts["parameters"] == facts["trainable_parameters"] == sum(p.numel() for p in policy.parameters())
    assert (facts["data"], facts["dataset_fingerprint"]) == (str(dataset.path), dataset.fingerprint())
    commit = git_commit()
    assert facts["git_commit"] == commit and (commit is None or len(commit.removesuffix("+changes")) == 40)


def test_the_configs_hash_is_of_what_makes_the_model() -> None:
    def hashed(*overrides: str) -> str:
        config: Config = load_config({}, list(overrides))
        return config_hash(config)

    assert hashed("run_name=a", "wandb.enabled=true", "output_dir=x") == hashed()
    assert hashed("training.learning_rate=0.5") != hashed()
