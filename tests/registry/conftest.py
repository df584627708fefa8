"""A run with a real checkpoint, a fake wandb server, and the `atlas` command in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))

pytest.importorskip("wandb")

from fake_wandb import FakeWandb
from local_wandb import fake_wandb_here

from atlas.config import load_config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.types import ActionSpec

SMALL = [
    "model.fusion={dim: 32, layers: 1}",
    "model.language={dim: 16, layers: 1}",
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeWandb]:
    with fake_wandb_here(tmp_path / "home") as server:
        yield server


@pytest.fixture(scope="session")
def policy() -> ModularPolicy:
    rng = np.random.default_rng(0)
    columns = [ColumnStatistics.of(rng.normal(size=(50, width))) for width in (7, 8)]
    statistics = (DatasetStatistics("cubes", 10, 2, *columns),)
    scaling = load_config({}).model.processor
    torch.manual_seed(0)
    processor = PolicyProcessor(("agentview",), 32, 32, 4, 8, ActionSpec(), statistics, scaling)
    return ModularPolicy(load_config({}, SMALL).model, processor)


@pytest.fixture
def run_dir(tmp_path: Path, policy: ModularPolicy) -> Path:
    """A run's folder with one checkpoint, of step 40, which is the best."""
    run_dir = tmp_path / "outputs" / "my run"
    checkpoint = run_dir / "checkpoints" / "step_00000040"
    policy.save_pretrained(checkpoint / "policy")
    (checkpoint / "trainer").mkdir()
    state = {"step": 40, "samples_seen": 320, "world_size": 1, "best_step": 40, "best_value": 0.25, "wandb_id": "abcd"}
    (checkpoint / "trainer" / "state.json").write_text(json.dumps(state))
    (checkpoint / "trainer" / "optimizer.pt").write_bytes(b"moments")
    (run_dir / "config.yaml").write_text("run_name: my run\ndata: {path: data/cubes}\n")
    for link in ("latest", "best"):
        (run_dir / "checkpoints" / link).symlink_to(checkpoint.name)
    return run_dir


@pytest.fixture
def checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step_00000040"


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        return dict(json.loads(self.out))


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a verb as the command line does, in this process."""
    import atlas.cli
    import atlas.cli.commands.registry_commands  # registers its verbs

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["atlas", *map(str, arguments)])
        capfd.readouterr()
        code = atlas.cli._run()
        return Ended(code, *capfd.readouterr())

    return run
