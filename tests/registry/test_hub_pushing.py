"""Policies on the Hugging Face hub, which here is a server on this machine that the hub's own client talks to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import atlas as package
from atlas.policies.modular.policy import ModularPolicy
from tests.data.local_hub import COMMIT, NAME, LocalHub, serving_models

Atlas = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with serving_models(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_run_s_best_policy_is_pushed_and_loaded_from_there(
    hub: LocalHub, atlas: Atlas, run_dir: Path, policy: ModularPolicy
) -> None:
    pushed = atlas("model", "push", run_dir, f"hf:{NAME}", "--private", "--json")

    assert pushed.code == 0, pushed.err
    assert pushed.json == {"reference": f"hf:{NAME}", "commit": f"{hub.url}/{NAME}/commit/{COMMIT}"}
    assert hub.made[0]["name"] == NAME.split("/")[1] and hub.made[0]["visibility"] == "private"
    card = (hub.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: atlas-vla\n") and f'load_policy("hf:{NAME}")' in card
    assert "| optimizer steps | 40 |" in card
    assert not (hub.folder / "trainer").exists()  # the optimizer's state is for resuming, here
    loaded = package.load_policy(f"hf:{NAME}")
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_hub_is_told_of_the_dataset_and_of_success(
    hub: LocalHub, atlas: Atlas, run_dir: Path, policy: ModularPolicy
) -> None:
    """Of the checkpoint that the run's last evaluation was of, and of no other."""
    (run_dir / "config.yaml").write_text("run_name: first\ndata: {path: 'hf:lab/drawers'}\n")
    told = {"env": "cubes", "episodes": 20, "success_rate": 0.65, "successes": 13}
    for best, known in (("step_00000040", True), ("step_00000020", False)):
        results = {"best_checkpoint": f"/elsewhere/checkpoints/{best}", "final_evaluation": told}
        (run_dir / "results.json").write_text(json.dumps(results))
        assert atlas("model", "push", run_dir, f"hf:{NAME}").code == 0

        card = (hub.folder / "README.md").read_text()
        about = yaml.safe_load(card.split("---\n")[1])
        assert about["datasets"] == ["lab/drawers"] and about["library_name"] == "atlas-vla"
        assert ("| success in cubes | 65% of 20 episodes |" in card) is known is ("model-index" in about)
    (results,) = describe_hub({"data": "data/local", "run_name": "first", "success": told})["model-index"]
    assert results["name"] == "first" and results["results"][0]["metrics"][0]["value"] == 0.65
    assert describe_hub({"data": "data/local"}) == {}


def describe_hub(facts: dict[str, Any]) -> dict[str, Any]:
    from atlas.policies.model_card import hub_facts

    return hub_facts(facts, "a policy")


def test_a_folder_in_lerobot_s_form_is_pushed_as_it_is(hub: LocalHub, atlas: Atlas, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"type": "smolvla"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("---\nlibrary_name: lerobot\n---\n# A policy\n")

    assert atlas("model", "push", folder, f"hf:{NAME}").code == 0

    assert {f.name: f.read_bytes() for f in hub.folder.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.mark.parametrize(("status", "said"), [(401, "hf auth login"), (403, "may not write"), (500, "refused")])
def test_a_hub_that_refuses_is_explained(status: int, said: str, hub: LocalHub, atlas: Atlas, run_dir: Path) -> None:
    hub.refuses = status
    ended = atlas("model", "push", run_dir, f"hf:{NAME}")
    assert ended.code == 2 and said in ended.err and f"hf:{NAME}" in ended.err
    assert "hf_secret" not in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hf:owner",), "hf:owner/name"),
        (("owner/name",), "hf:owner/name"),
        (("hf:owner/name", "--alias", "prod"), "--alias"),
        (("--private",), "--private"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], said: str, hub: LocalHub, atlas: Atlas, run_dir: Path
) -> None:
    ended = atlas("model", "push", run_dir, *arguments)
    assert ended.code == 2 and said in ended.err and not hub.made
