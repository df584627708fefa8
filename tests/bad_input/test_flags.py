"""Flags and arguments of the commands that make no sense, alone or together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bad_input.table import SMALL, refused


@dataclass(frozen=True)
class Line:
    """A command line, and the words that its refusal must contain. DATA and HERE stand for folders."""

    arguments: str
    words: tuple[str, ...]


def line(arguments: str, *words: str) -> Line:
    return Line(arguments, words)


TRAIN = [
    line("--learning-rate 3", "--learning-rate"),
    line("--gpu 1", "--gpu", "--gpus"),
    line("--gpus two --cpu", "--gpus", "valid integer"),
    line("--gpus 0 --cpu", "--gpus", "greater than or equal to 1"),
    line("--gpus -1 --cpu", "--gpus", "greater than or equal to 1"),
    line("--gpus", "--gpus", "requires an argument"),
    line("--gpus 4096", "4096 GPUs", "found"),
    line("--mode both --cpu", "--mode", "both", "single", "multi"),
    line("--mode single --gpus 2 --cpu", "single", "gpus is 2"),
    line("--mode multi --cpu", "--mode multi", "--gpus N"),
    line("--cpu --gpu-ids 0", "cpu", "gpu_ids"),
    line("--gpu-ids 0,two", "--gpu-ids", "0,two"),
    line("--gpu-ids 0,0", "--gpu-ids 0,0", "twice"),
    line("--gpu-ids 0,4096", "--gpu-ids", "4096", "found"),
    line("--gpu-ids 0,1 --gpus 3", "gpus is 3", "names 2"),
    line("--num-nodes 0 --cpu", "--num-nodes", "equal to 1"),
    line("--num-nodes 2 --cpu", "--num-nodes 2", "--master-addr HOST"),
    line("--num-nodes 2 --node-rank 2 --master-addr 127.0.0.1 --cpu", "--node-rank 2", "0 to 1"),
    line("--node-rank 1 --cpu", "--node-rank 1", "one machine"),
    line("--master-addr 127.0.0.1 --cpu", "--master-addr 127.0.0.1", "add --num-nodes N"),
    line("--num-nodes 2 --master-addr no..host --cpu", "--master-addr no..host", "cannot be resolved"),
    line("--master-port 80 --cpu", "--master-port", "equal to 1024"),
    line("--config nowhere.yaml --cpu", "nowhere.yaml", "No such file"),
    line("--config HERE --cpu", "HERE", "Is a directory"),
    line("--resume nowhere --cpu", "nowhere", "no checkpoint"),
    line("--resume HERE --cpu", "HERE", "no checkpoint"),
    line("--resume wandb:broken --cpu", "wandb:broken", "entity/project/name"),
    line("max_steps --cpu", "max_steps", "key=value"),
    line("=5 --cpu", "=5", "key=value"),
    line("training.max_steps=[5 --cpu", "training.max_steps=[5", "not valid YAML"),
    line("seed.value=3 --cpu", "seed.value=3", "no keys below"),
    line("evaluation.env=cube --cpu", "'cube'", "Did you mean 'cubes'"),
    line("evaluation.execute=9 --cpu", "evaluation.execute is 9", "data.action_horizon is 8"),
    line("evaluation.env=cubes evaluation.delay_ms=500 --cpu", "500 ms is 10 steps at 20 Hz", "data.action_horizon"),
    line("evaluation.blend=1 --cpu", "evaluation.blend", "less than 1"),
    line("data.action_horizon=13 --cpu", "data.action_horizon is 13", "12 frames"),
    line("data.cameras=[side] --cpu", "data.cameras", "side", "agentview"),
    line("data.batch_size=auto --cpu", "data.batch_size is 'auto'", "CPUs"),
    line(
        "training.early_stopping.metric=val/los --cpu", "early_stopping.metric", "'val/los'", "Did you mean 'val/loss'"
    ),
    line("training.early_stopping.metric=eval/success_rate --cpu", "eval/success_rate", "no rollouts"),
    line("model_management.best_model_metric=val/nothing --cpu", "best_model_metric", "val/nothing"),
    line("output_dir=HERE/note.txt --cpu", "output_dir", "HERE/note.txt is a file"),
    line("output_dir=HERE/note.txt/deeper --cpu", "output_dir", "HERE/note.txt is a file"),
    line(f"run_name={'long' * 99} --cpu", "run_name", "longlonglong", "usable as a folder's name"),
    line("data.path=HERE/nowhere --cpu", "HERE/nowhere", "no dataset"),
    line("data.path=HERE --cpu", "HERE", "no episodes"),
    line("model.fusion.dim=30 --cpu", "dim is 30", "heads"),
    line("'model.vision={name: vggt, embed_dim: 6}' --cpu", "embed_dim is 6", "num_heads"),
]

OTHERS = [
    line("trian", "trian"),
    line("eval --env cubes", "--checkpoint"),
    line("eval --checkpoint HERE --env cubes", "no policy at HERE"),
    line("eval --checkpoint HERE/none --env cubes", "no policy at HERE/none"),
    line("eval --checkpoint HERE --env cubez", "cubez", "Did you mean 'cubes'"),
    line("eval --checkpoint HERE --env cubes --episodes 0", "--episodes", "equal to 1"),
    line("eval --checkpoint HERE --env cubes --seed -1", "--seed", "equal to 0"),
    line("eval --checkpoint HERE --env cubes --execute 0", "--execute", "equal to 1"),
    line("eval --checkpoint HERE --env cubes --ensemble -0.5", "--ensemble", "equal to 0"),
    line("eval --checkpoint HERE --env cubes --out HERE", "--out HERE", "is a folder"),
    line("eval --checkpoint HERE --env cubes --out HERE/note.txt/x.json", "--out", "HERE/note.txt is a file"),
    line("eval --checkpoint HERE --env cubes --video HERE/note.txt", "--video HERE/note.txt", "is a file"),
    line("eval --checkpoint HERE --env cubes --out HERE/new/outcomes.json", "no policy at HERE"),
    line("eval --checkpoint HERE --env cubes --video HERE/films", "no policy at HERE"),
    line("eval --checkpoint wandb:broken --env cubes", "wandb:broken", "entity/project/name"),
    line("eval --checkpoint hf:broken --env cubes", "hf:broken", "owner/name"),
    line("eval --policy ws://127.0.0.1:1 --env cubes", "no policy server at ws://127.0.0.1:1"),
    line("eval --policy 127.0.0.1:8000 --env cubes", "'127.0.0.1:8000' is not the address", "ws://127.0.0.1:8000"),
    line("eval --policy ws://127.0.0.1:1 --env cubez", "cubez", "Did you mean 'cubes'"),
    line("eval --policy ws://127.0.0.1:1 --checkpoint HERE --env cubes", "--checkpoint, --policy", "one of them"),
    line("eval --policy ws://127.0.0.1:1 --env cubes --diagnose", "--diagnose", "--checkpoint"),
    line("eval --policy ws://127.0.0.1:1 --env cubes --api-key-file HERE/none", "HERE/none", "No such file"),
    line("eval --policy ws://127.0.0.1:1 --env cubes --layout liber", "Did you mean 'libero'"),
    line("eval --checkpoint HERE --env cubes --layout libero", "--layout", "--policy URL"),
    line("eval --open-loop HERE --env cubes --delay-ms 50", "--delay-ms", "--checkpoint and --policy"),
    line("eval --checkpoint HERE --env cubes --blend 1", "--blend", "below 1"),
    line("serve --checkpoint HERE", "no policy at HERE"),
    line("serve --checkpoint HERE --port 70000", "--port", "65535"),
    line("serve --checkpoint HERE --protocol grot", "--protocol grot", "Did you mean 'groot'"),
    line("serve --checkpoint HERE --api-key-file HERE/note.txt", "HERE/note.txt", "at least 16"),
    line("serve --checkpoint HERE --layout HERE/note.txt", "--layout HERE/note.txt", "no such layout"),
    line("serve --checkpoint HERE --allow-kill", "--allow-kill", "groot"),
    line("serve --checkpoint HERE --json", "--dry-run"),
    line("serve --checkpoint HERE --dry-run HERE/nowhere", "HERE/nowhere", "no dataset"),
    line("bench-serve --checkpoint HERE --clients 1,none", "--clients 1,none", "such as 1,8,64"),
    line("bench-serve --checkpoint HERE --clients 0", "--clients 0", "from 1"),
    line("data inspect HERE/nowhere", "HERE/nowhere", "no dataset"),
    line("data inspect HERE --json", "HERE", "no episodes"),
    line("data record --env cubes --episodes 1 --out HERE/new", "--episodes", "1"),
    line("data record --env kitchen --episodes 4 --out HERE/new", "kitchen", "cubes"),
    line("data record --env cubes --episodes 4 --out HERE/new --image-size 8", "--image-size", "equal to 16"),
    line("data record --env cubes --episodes 4 --out HERE/note.txt", "--out", "HERE/note.txt"),
    line("data cache-features --cpu data.path=DATA --out HERE/note.txt", "--out HERE/note.txt", "is a file"),
    line("data cache-features --cpu data.path=DATA", "--out DIR", "data.feature_cache"),
    line("data cache-features --cpu data.path=DATA --out HERE/new", "vggt_pretrained"),
    line("config show training.max_step=3", "training.max_step", "Did you mean 'max_steps'"),
    line("model summary --gpu H9000", "--gpu", "H9000"),
    line("model pull HERE --out HERE/new", "no policy at HERE"),
    line("runs compare HERE", "two runs"),
    line("learn sac --env gym:CartPole-v1", "discrete actions", "gym:Pendulum-v1"),
    line("learn sac --env gym:Pendulum-v1 --actors 0", "--actors 0", "1 at least"),
    line("learn sac --env gym:Pendulum-v1 --actors 2 --role learner", "--actors", "without --role"),
    line("learn sac --env gym:Pendulum-v1 --role actor", "--role actor needs --learner HOST:PORT"),
    line("learn sac --env gym:Pendulum-v1 --role learner --learner here", "--listen HOST:PORT, not --learner"),
    line("learn sac --role actor --learner 127.0.0.1:5488", "--role actor needs --env", "settings as its learner"),
    line("learn sac", "--env is missing"),
    line("learn sac --env gym:Pendulum-v1 --listen here:5488", "--role learner or --role actor"),
    line("learn sac --env gym:Pendulum-v1 --role learner --listen here:port", "--listen 'here:port'", "127.0.0.1:5488"),
    line("learn sac --env gym:Pendulum-v1 --role actor --learner a --api-key-file HERE/none", "HERE/none"),
    line("learn sac --env gym:Pendulum-v1 learning.sac.random_steps=20000", "random_steps is 20000", "steps (10000)"),
    line("learn sac --env gym:Pendulum-v1 model.vision.name=keypoints", "model.vision.name=none"),
    line("learn sac --env gym:Pendulum-v1 model.head.name=flow_matching", "model.head.name=gaussian", "--residual"),
    line("learn grpo --env gym:Pendulum-v1 learning.grpo.keep_low=0.95", "keep_low is 0.95", "keep_high (0.9)"),
    line("learn ppo --env gym:Pendulum-v1 learning.ppo.most_divergence=1", "most_divergence", "kl_limit"),
    line("learn ppo --env state:gym:Pendulum-v1", "does not give the poses of its objects", "state:cubes"),
    line("learn sac --env cubes --checkpoint HERE", "HERE is in no run's folder"),
    line("learn sac --env cubes --residual", "--residual corrects a policy", "--checkpoint outputs/first"),
    line("learn sac --env cubes --residual --actors 2", "--residual corrects a policy", "--checkpoint outputs/first"),
    line("sweep local HERE/none.yaml", "HERE/none.yaml"),
]


def named(lines: Sequence[Line]) -> pytest.MarkDecorator:
    assert len({row.arguments for row in lines}) == len(lines), "two rows are the same"
    return pytest.mark.parametrize("bad", lines, ids=lambda row: row.arguments.replace(" ", "_").replace("/", "|")[:90])


@named(TRAIN)
def test_a_training_with_a_flag_that_cannot_be_meant_is_refused(bad: Line, place: Path, good_data: Path) -> None:
    check(bad, place, good_data, ["train", *SMALL, f"data.path={good_data}"])


@named(OTHERS)
def test_another_command_with_a_flag_that_cannot_be_meant_is_refused(bad: Line, place: Path, good_data: Path) -> None:
    check(bad, place, good_data, [])


def check(bad: Line, place: Path, good_data: Path, before: Sequence[str]) -> None:
    (place / "note.txt").write_text("a file that is there\n")
    known = {"HERE": str(place), "DATA": str(good_data)}
    for name, value in known.items():
        bad = Line(bad.arguments.replace(name, value), tuple(word.replace(name, value) for word in bad.words))
    refused(place, [*before, *shlex.split(bad.arguments)], *bad.words)
