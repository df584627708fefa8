"""The two lines in somebody's own training script."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_wandb import FakeWandb
from local_wandb import start_run
from safetensors.torch import load_file

from atlas import registry
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy


@pytest.fixture
def run(server: FakeWandb, tmp_path: Path) -> Iterator[Any]:
    run = start_run(tmp_path / "script", name="their run")
    yield run
    run.finish()


def test_a_state_dict_goes_up_and_comes_down(run: Any, server: FakeWandb, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    assert registry.upload_model(model.state_dict(), 100)
    assert registry.upload_model({"shared": model.weight.T, "again": model.weight.T}, 200, alias="good")

    assert server.artifacts.names("their-run") == {"v0": ["step-100"], "v1": ["good", "latest", "step-200"]}
    assert server.artifacts.find("their-run", "v0").metadata["step"] == 100
    assert server.artifacts.find("their-run", "v0").metadata["parameters"] == 8
    folder = registry.download_model("their-run:step-100")
    assert torch.equal(load_file(folder / "model.safetensors")["weight"], model.weight)
    assert server.artifacts.used == [server.artifacts.find("their-run", "v0").id]
    placed = registry.download_model("wandb:somebody/atlas-vla/their-run:good", tmp_path / "here")
    assert placed == tmp_path / "here"
    assert torch.equal(load_file(placed / "model.safetensors")["again"], model.weight.T)


def test_anything_that_torch_saves_and_folders_go_up_too(run: Any, tmp_path: Path) -> None:
    assert registry.upload_model({"model": {"w": torch.ones(2)}, "step": 5}, 5, name="nested")
    loaded = torch.load(registry.download_model("nested:latest") / "model.pt", weights_only=True)
    assert loaded["step"] == 5

    folder = tmp_path / "saved"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text("w")
    assert registry.upload_model(folder, 6, name="folder")
    assert (registry.download_model("folder:latest") / "sub" / "weights").read_text() == "w"


def test_only_better_models_are_uploaded_as_best(run: Any, server: FakeWandb) -> None:
    best: dict[str, float] = {}
    losses = [0.5, 0.7, float("nan"), 0.3]
    sent = [
        registry.save_and_upload_best(torch.nn.Linear(2, 2), step, {"val/loss": loss, "x": 1.0}, "val/loss", best)
        for step, loss in enumerate(losses)
    ]
    assert sent == [True, False, False, True]
    assert best == {"val/loss": 0.3}
    assert server.artifacts.find("their-run", "best").metadata["metrics"] == {"val/loss": 0.3, "x": 1.0}

    for rate, expected in ((0.5, True), (0.4, False)):  # of successes, more is better
        metrics = {"eval/success_rate": rate}
        assert registry.save_and_upload_best({"w": torch.rand(2)}, 9, metrics, "eval/success_rate", best) is expected
    assert registry.save_and_upload_best({}, 9, {"odd": 1.0}, "odd", {"odd": 0.0}, mode="max")


def test_a_policy_is_kept_in_a_form_that_loads(run: Any, policy: ModularPolicy) -> None:
    assert registry.save_and_upload_best(policy, 3, {"val/loss": 1.0}, "val/loss", {})
    loaded = load_policy("wandb:somebody/atlas-vla/their-run:best")
    assert loaded.processor.cameras == policy.processor.cameras


def test_a_failed_upload_stops_nothing_and_is_sent_with_the_next(
    run: Any, server: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.refuse_commits = 1
    assert not registry.upload_model({"w": torch.zeros(1)}, 1)
    assert registry.upload_model({"w": torch.ones(1)}, 2)
    assert [r.levelno for r in caplog.records if r.name.startswith("atlas") and r.levelno >= logging.WARNING] == [30]
    assert server.artifacts.find("their-run", "step-1").metadata["step"] == 1
    assert server.artifacts.find("their-run", "latest").metadata["step"] == 2
    assert not list((Path(run.dir).parent / "models").rglob("*.safetensors"))


def test_an_offline_run_keeps_models_beside_its_records(server: FakeWandb, tmp_path: Path) -> None:
    run = start_run(tmp_path / "script", mode="offline")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "weights").write_text("first")
    assert registry.upload_model(tmp_path / "saved", 1)
    (tmp_path / "saved" / "weights").write_text("second")  # in place, as scripts do
    assert registry.upload_model({"w": torch.zeros(1)}, 2)
    run.finish()
    models = Path(run.dir).parent / "models"
    assert [file.read_text() for file in models.rglob("weights")] == ["first"]
    assert len(list(models.rglob("model.safetensors"))) == 1
    assert server.operations == []


def test_without_a_run_it_says_what_to_do(server: FakeWandb) -> None:
    for call in (
        lambda: registry.upload_model({}, 1),
        lambda: registry.save_and_upload_best({}, 1, {"a": 1.0}, "a", {}),
        lambda: registry.download_model("name:best"),
    ):
        with pytest.raises(InputError, match=r"wandb\.init"):
            call()


def test_a_metric_that_is_not_there_is_named(run: Any) -> None:
    with pytest.raises(InputError, match="has no 'val/los'; it has val/loss"):
        registry.save_and_upload_best({}, 1, {"val/loss": 1.0}, "val/los", {})
    with pytest.raises(InputError, match="should be a number, but is 'low'"):
        registry.save_and_upload_best({}, 1, {"val/loss": "low"}, "val/loss", {})  # type: ignore[dict-item]
