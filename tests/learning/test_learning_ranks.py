"""PPO and GRPO on several processes: they are one process, but for the last digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's: pip install 'atlas-vla[gym]'")

from atlas.config import DistributedConfig
from atlas.errors import InputError
from atlas.learning.on_policy.on_policy_run import check_shared
from atlas.learning.rank_group import RankGroup, asked_processes
from atlas.learning.run_config import config_from_nothing, settings_of
from atlas.runs import read_scalars
from atlas.system.tensors import load_nested
from tests import warm
from tests.learning.conftest import SILENT

PENDULUM = "gym:Pendulum-v1?horizon=8"

COMMON = [*SILENT, "model.fusion.dim=16", "learning.held_out_episodes=3"]
SETTINGS = {
    "ppo": [
        "steps=128",
        "worlds=4",
        "decisions=16",
        "batch_size=31",
        "epochs=2",
        "eval_episodes=2",
        "save_interval=64",
    ],
    "grpo": ["steps=128", "groups=2", "group_size=4", "batch_size=31", "eval_episodes=2", "learning_rate=1e-3"],
}


def learner_of(run: Path) -> dict[str, torch.Tensor]:
    state = load_nested(run / "checkpoints" / "latest" / "trainer" / "learner.safetensors")
    values = state.get("value", {})
    return {**state["policy"], **{f"value.{name}": each for name, each in values.items()}}


@pytest.mark.parametrize("name", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(
    name: str, tmp_path: Path, atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"learning.{name}.{each}" for each in SETTINGS[name]]
    command = ["learn", name, "--env", PENDULUM, "--json", *COMMON, *own, f"output_dir={tmp_path}"]
    assert atlas(*command, "run_name=one") == 0
    alone = json.loads(capsys.readouterr().out)
    done = warm.atlas(*command, "run_name=two", "distributed={cpu: true, gpus: 2}")

    both = json.loads(done.stdout)
    assert both["env_steps"] == alone["env_steps"] == 128 and both["updates"] == alone["updates"] > 0
    assert both["mean_reward"]["before"] == pytest.approx(alone["mean_reward"]["before"], rel=1e-5)
    assert both["mean_reward"]["after"] == pytest.approx(alone["mean_reward"]["after"], rel=1e-3)
    torch.testing.assert_close(learner_of(tmp_path / "two"), learner_of(tmp_path / "one"), rtol=1e-3, atol=1e-4)
    boards = [read_scalars(tmp_path / run / part) for run in ("one", "two") for part in ("actor", "learner")]
    assert len(boards[2]["actor/episode_reward"]) == len(boards[0]["actor/episode_reward"]) == 16
    assert boards[3][f"{name}/kl"][-1][1] == pytest.approx(boards[1][f"{name}/kl"][-1][1], rel=0.05, abs=1e-4)


def test_what_cannot_be_shared_evenly_or_on_one_machine_is_refused() -> None:
    check_shared("learning.ppo.worlds", 4, RankGroup(1, 2))
    with pytest.raises(InputError, match=r"worlds is 3, and 2 processes share them: such as learning\.ppo\.worlds=4"):
        check_shared("learning.ppo.worlds", 3, RankGroup(1, 2))
    with pytest.raises(InputError, match=r"add distributed\.num_nodes=1"):
        asked_processes(DistributedConfig(num_nodes=2))
    with pytest.raises(InputError, match=r"add distributed\.strategy=ddp"):
        asked_processes(DistributedConfig(strategy="fsdp"))
    assert asked_processes(DistributedConfig()).processes == 1 and asked_processes(DistributedConfig()).cpu


def test_settings_of_a_file_go_on_top_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("learning: {ppo: {gamma: 0.5, kl_limit: null}}\nseed: 3\n")
    settings = settings_of(tmp_path / "more.yaml")

    config = config_from_nothing("ppo", PENDULUM, [*settings, "seed=4"])

    assert config.learning.ppo.gamma == 0.5 and config.learning.ppo.kl_limit is None and config.seed == 4
    (tmp_path / "more.yaml").write_text("nothing")
    with pytest.raises(InputError, match="holds no settings"):
        settings_of(tmp_path / "more.yaml")
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        settings_of(tmp_path / "nowhere.yaml")
