"""The `atlas` command: its flags, its messages and its exit codes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas.config import Config, load_config
from atlas.errors import InputError
from atlas.launch import Plan
from atlas.training.prepared_run import PreparedRun

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config of defaults only."""
    file = tmp_path / "my config.yaml"
    file.write_text("seed: 3\n")
    return file


class FakeTrain(types.ModuleType):
    """Stands in for atlas.train, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__("atlas.train")
        self.calls: list[str] = []
        self.config = Config()  # that was run
        self.checkpoint: Path | None = None  # that was run
        self.error: BaseException | None = None

    def load_run_config(self, config: str | None, overrides: list[str], resume: str | None) -> Config:
        return load_config(config, overrides)

    def prepare(self, config: Config, resume: str | None, locks: Any = None) -> PreparedRun:
        self.calls.append("prepare")
        return PreparedRun(load_config(config, ["run_name=prepared"]), Path("found", resume) if resume else None)

    def run(self, prepared: PreparedRun) -> None:
        self.calls.append("run")
        self.config, self.checkpoint = prepared.config, prepared.checkpoint
        if self.error:
            raise self.error


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    module = FakeTrain()
    monkeypatch.setitem(sys.modules, "atlas.train", module)
    monkeypatch.setattr("atlas.prepare.prepare", module.prepare)
    # What `atlas train` sets for its own process goes again after the test.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("atlas.launch.count_gpus", lambda distributed: 0)
    return module


# ---- help and wrong input --------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['atlas', '--help']; from atlas.cli import main\n"
    code += "try: main()\nexcept SystemExit: print([m for m in ('torch', 'numpy', 'h5py') if m in sys.modules])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stdout.endswith("[]\n")
    for verb in ("train", "eval", "data", "model", "config"):
        assert f"\n  {verb} " in result.stdout
    assert "rank" not in result.stdout
    # In time of the processor, whatever else the machine is busy with.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_version(atlas: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert atlas("--version") == 0
    assert capsys.readouterr().out == "atlas 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--gpuz", "2"], ["--gpuz", "--gpus"]),
        (["train", "--mode", "both"], ["--mode", "both", "single", "multi"]),
        (["train", "--gpu-ids", "0;2"], ["--gpu-ids", "0;2"]),
        (["train", "--gpus", "0"], ["--gpus"]),
        (["train", "--config", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["train", "--config", "CONFIG", "training.max_stepz=3"], ["training.max_stepz", "max_steps"]),
        (["train", "--config", "CONFIG", "max_steps"], ["'max_steps'", "key=value"]),
        (["train", "--config", "CONFIG", "training.max_steps=many"], ["training.max_steps", "many"]),
        (["train", "--config", "CONFIG", "--gpus", "8"], ["8 GPUs", "no GPU was found"]),
        (["train", "--config", "CONFIG", "--mode", "single", "--gpus", "2", "--cpu"], ["mode", "single", "gpus"]),
        (["train", "--config", "CONFIG", "--cpu", "--node-rank", "2"], ["--node-rank 2", "--num-nodes"]),
        (["train", "--config", "CONFIG", "--cpu", "--num-nodes", "2"], ["--num-nodes 2", "--master-addr"]),
        (["train", "--config", "CONFIG", "--master-port", "80"], ["--master-port", "1024"]),
        (["config", "show", "--config", "CONFIG", "dato.path=x"], ["dato", "data"]),
        (["eval", "--env", "cubes"], ["--checkpoint"]),
        (["data", "record", "--env", "cube", "--episodes", "2", "--out", "x"], ["cubes", "cube"]),
        (["evaluate"], ["evaluate"]),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    atlas: Callable[..., int],
    training: FakeTrain,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    assert atlas(*[str(config_file) if a == "CONFIG" else a for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert training.calls == []


# ---- train -----------------------------------------------------------------------------------------------


def test_flags_become_config(atlas: Callable[..., int], training: FakeTrain, config_file: Path) -> None:
    flags = ["--wandb", "--wandb-project", "a: b", "--wandb-entity", "e", "--wandb-name", "名 #1", "--cpu"]
    assert atlas("train", "--config", str(config_file), *flags, "--resume", "auto", "training.max_steps=7") == 0
    config = training.config
    assert training.calls == ["prepare", "run"]
    assert (config.run_name, training.checkpoint) == ("prepared", Path("found/auto"))
    assert config.seed == 3
    assert config.training.max_steps == 7
    assert config.wandb.enabled
    assert (config.wandb.project, config.wandb.entity, config.wandb.name) == ("a: b", "e", "名 #1")
    assert config.distributed.cpu


@pytest.mark.parametrize("length", ["training.max_steps=2000", "training={max_steps: null, num_epochs: 3}"])
def test_debug_is_small_and_without_wandb(
    atlas: Callable[..., int], training: FakeTrain, config_file: Path, length: str
) -> None:
    assert atlas("train", "--config", str(config_file), "--debug", "--wandb", length, "evaluation.episodes=0") == 0
    config = training.config
    assert (config.training.max_steps, config.training.num_epochs) == (5, None)
    assert config.training.val_interval <= 5 and config.checkpoint.save_interval <= 5
    assert config.evaluation.final_episodes == 2
    assert config.evaluation.episodes == 0  # what was asked to be off stays off
    assert not config.wandb.enabled


def test_several_processes_are_prepared_then_launched(
    atlas: Callable[..., int], training: FakeTrain, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[list[str], Plan]] = []

    def launch_ranks(arguments: list[str], plan: Plan) -> int:
        launched.append((arguments, plan))
        return 143

    monkeypatch.setattr("atlas.launch.launch_ranks", launch_ranks)
    flags = ["--cpu", "--mode", "multi", "--gpus", "2", "--resume", "auto", "output_dir=my runs"]
    assert atlas("train", "--config", str(config_file), *flags) == 143
    assert training.calls == ["prepare"]
    assert launched == [(["rank", "my runs/prepared", "--resume", "found/auto"], Plan(2, cpu=True))]


def test_under_torchrun_nothing_is_launched_and_the_first_rank_prepares(
    atlas: Callable[..., int], training: FakeTrain, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)

    assert atlas("train", "--config", str(config_file), "--cpu", "--gpus", "8", "--mode", "multi") == 0
    assert training.calls == ["prepare", "run"]


def test_a_rank_reads_the_prepared_config(atlas: Callable[..., int], training: FakeTrain, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run_name": "prepared"}))
    assert atlas("rank", str(tmp_path), "--resume", "elsewhere") == 0
    assert training.calls == ["run"]
    assert (training.config.run_name, training.checkpoint) == ("prepared", Path("elsewhere"))


def test_what_training_raises_becomes_an_exit_code(
    atlas: Callable[..., int], training: FakeTrain, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(BaseException):
        exit_code = 143

    def run(error: BaseException) -> tuple[int, str]:
        training.error = error
        return atlas("train", "--config", str(config_file)), capsys.readouterr().err

    assert run(InputError("data.path is empty")) == (2, "data.path is empty\n")
    assert run(Stopped("stopped at step 12")) == (143, "stopped at step 12\n")
    assert run(KeyboardInterrupt()) == (130, "")
    code, err = run(ValueError("a defect"))
    assert code == 1
    assert err.startswith("Traceback") and err.endswith("ValueError: a defect\n")


# ---- the other verbs -------------------------------------------------------------------------------------

REPORT: dict[str, Any] = {
    "env": "cubes",
    "checkpoint": "runs/[a]",
    "episodes": 10,
    "successes": 9,
    "success_rate": 0.9,
    "ci95": [0.596, 0.982],
    "mean_episode_length": 41.5,
    "per_instruction": {"pick up the red cube": {"episodes": 10, "successes": 9, "success_rate": 0.9}},
}


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for atlas.rollout.evaluation; gives the arguments of the call."""
    given: dict[str, Any] = {}

    def evaluate_checkpoint(**arguments: Any) -> Any:
        given.update(arguments)
        print("a library that talks")
        os.write(1, b"a library that talks, in C\n")
        return types.SimpleNamespace(to_dict=lambda: REPORT)

    module = types.ModuleType("atlas.rollout.evaluation")
    module.evaluate_checkpoint = evaluate_checkpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "atlas.rollout.evaluation", module)
    return given


def test_eval_json_is_alone_on_stdout(
    atlas: Callable[..., int], evaluation: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--episodes",
        "10",
        "--seed",
        "5",
        "--execute",
        "2",
        "--ensemble",
        "0.1",
        "--blind",
        "--instruction-shuffle",
    ]
    assert atlas("eval", "--checkpoint", "runs/[a]", "--env", "cubes", *flags, "--video", "v", "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == REPORT
    assert "a library that talks\n" in err and "in C\n" in err
    assert evaluation == {
        "checkpoint": "runs/[a]",
        "env": "cubes",
        "episodes": 10,
        "seed": 5,
        "execute": 2,
        "ensemble": 0.1,
        "instruction_shuffle": True,
        "blind": True,
        "video": Path("v"),
        "workers": None,
        "recorder": None,
    }


def test_eval_table(atlas: Callable[..., int], evaluation: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert atlas("eval", "--checkpoint", "runs/[a]", "--env", "cubes") == 0
    out = capfd.readouterr().out
    for words in ("runs/[a] in cubes", "pick up the red cube", "90.0%", "59.6% to 98.2%", "41.5 steps"):
        assert words in out


def test_inspect(
    atlas: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "format": "libero",
        "read_as": ["left joints: elbow"],
        "episodes": 2,
        "frames": 80,
        "fps": 20.0,
        "tasks": {"stack [all] cubes": 2},
        "cameras": {"agentview": [64, 64]},
        "action_dim": 2,
        "action_spec": {
            "groups": [
                {"kind": "joints", "arm": "left", "names": ["elbow"]},
                {"kind": "gripper", "arm": None, "names": ["hand"]},
            ]
        },
        "proprio_dim": 8,
        "action_min": [-1.0, float("nan")],
        "action_max": [1.0, 0.25],
        "warnings": ["an action is not a number"],
    }
    module = types.ModuleType("atlas.checks.inspection")
    module.inspect_dataset = lambda dataset: found  # type: ignore[attr-defined]
    monkeypatch.setattr("atlas.cli.commands.data_commands.open_source", lambda *arguments: None)
    monkeypatch.setitem(sys.modules, "atlas.checks.inspection", module)
    assert atlas("data", "inspect", "somewhere", "--json") == 0
    assert json.loads(capsys.readouterr().out) == found | {"action_min": [-1.0, None]}  # JSON has no NaN
    assert atlas("data", "inspect", "somewhere") == 0
    out = capsys.readouterr().out
    for words in (
        "libero",
        "80",
        "agentview 64x64",
        "stack [all] cubes",
        "elbow",
        "left joints",
        "0.25",
        "an action is not a number",
    ):
        assert words in out


def test_config_show_and_schema(
    atlas: Callable[..., int], config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atlas("config", "show", "--config", str(config_file), "data.batch_size=5") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["data"]["batch_size"]) == (3, 5)
    assert atlas("config", "show", "--config", str(config_file), "data.batch_size=5", "--json") == 0
    assert json.loads(capsys.readouterr().out) == shown
    assert atlas("config", "schema") == 0
    assert "training" in json.loads(capsys.readouterr().out)["properties"]


def test_importing_atlas_is_light() -> None:
    code = "import sys, atlas; print(atlas.__version__, {'torch', 'atlas.train'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "0.1.0 set()\n"


def test_train_is_found_when_it_is_asked_for(training: FakeTrain, monkeypatch: pytest.MonkeyPatch) -> None:
    import atlas as package

    monkeypatch.delitem(vars(package), "train", raising=False)  # another test may have imported it
    assert package.train is training
