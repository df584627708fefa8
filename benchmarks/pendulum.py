"""How well and how fast learning by reward solves a small world, beside Stable-Baselines3.

    python benchmarks/pendulum.py [--algorithms sac,ppo] [--seeds 0,1,2] [--steps 10000] [--env gym:Pendulum-v1]
                                  [--sb3 PYTHON] [--out DIR] [key=value ...]

--sb3 names the Python of an environment that has `stable-baselines3` and gymnasium; pendulum_sb3.py runs there, with
Atlas's settings, and Atlas without what the other lacks (`ALIKE`). Returns are of the last policy (Atlas's: of the best
that it looked at), on the same 20 held-out starts. Learning's seconds are those of playing and updates alone; minutes
and CPU seconds are of the whole process: its start and Atlas's evaluations are in them. Prints a table for
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe

from atlas.config import Config, load_config

ATLAS = [sys.executable, "-m", "atlas.cli"]
STARTS = 20
# What Stable-Baselines3 does not do, and is switched off beside it.
ALIKE = {
    "sac": ["learning.sac.layer_norm=false"],
    "ppo": ["learning.ppo.anneal=false", "learning.ppo.scale_rewards=false"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", default="sac,ppo")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--env", default="gym:Pendulum-v1")
    parser.add_argument("--sb3", default=None, metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", help="of Atlas's runs, such as learning.sac.utd_ratio=2")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="atlas-pendulum-"))
    print(describe())
    print("| | seed | steps | mean return | learning's seconds | minutes | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.algorithms.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            print(row(f"Atlas {name}", seed, arguments.steps, with_atlas(name, seed, arguments, out)), flush=True)
            if arguments.sb3 is not None:
                found = with_sb3(name, seed, arguments, out)
                print(row(f"Stable-Baselines3 {name}", seed, arguments.steps, found), flush=True)


def row(name: str, seed: int, steps: int, found: dict[str, float]) -> str:
    cells = [name, seed, f"{steps:,}", f"{found['return']:.1f}", f"{found['seconds']:.0f}"]
    cells += [f"{found['minutes']:.1f}", f"{found['cpu']:.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


def with_atlas(name: str, seed: int, arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    settings = [f"learning.{name}.steps={arguments.steps}", f"learning.held_out_episodes={STARTS}", f"seed={seed}"]
    settings += [f"output_dir={out}", f"run_name={name}-{seed}", *(ALIKE[name] if arguments.sb3 else [])]
    settings += arguments.overrides
    found, minutes, cpu = timed([*ATLAS, "learn", name, "--env", arguments.env, "--json", *settings])
    return {"return": found["mean_reward"]["after"], "seconds": found["seconds"], "minutes": minutes, "cpu": cpu}


def with_sb3(name: str, seed: int, arguments: argparse.Namespace, out: Path) -> dict[str, float]:
    """In the other Python, on the starts that Atlas's policy was evaluated on."""
    outcomes = json.loads((out / f"{name}-{seed}" / "evaluations" / "after.json").read_text())["outcomes"]
    starts = ",".join(str(outcome["seed"]) for outcome in outcomes)
    settings = json.dumps(theirs(name, load_config(out / f"{name}-{seed}" / "config.yaml")))
    script = Path(__file__).with_name("pendulum_sb3.py")
    world = arguments.env.removeprefix("gym:")
    found, minutes, cpu = timed([arguments.sb3, script, name, world, str(seed), str(arguments.steps), starts, settings])
    return {"return": found["return"], "seconds": found["seconds"], "minutes": minutes, "cpu": cpu}


def theirs(name: str, config: Config) -> dict[str, Any]:
    """The settings of an Atlas run as Stable-Baselines3 calls them; "worlds": how many are played side by side."""
    network = config.model.model_dump()["fusion"]
    actor = [network["dim"]] * network["layers"]
    if name == "sac":
        sac = config.learning.sac
        return {
            "worlds": 1,
            "learning_rate": sac.learning_rate,
            "buffer_size": sac.replay_capacity,
            "learning_starts": sac.training_starts,
            "batch_size": sac.batch_size,
            "tau": sac.tau,
            "gamma": sac.gamma,
            "ent_coef": f"auto_{sac.temperature}",
            "policy_kwargs": {"net_arch": {"pi": actor, "qf": [sac.width] * sac.layers}},
        }
    ppo = config.learning.ppo
    return {
        "worlds": ppo.worlds,
        "learning_rate": ppo.learning_rate,
        "n_steps": ppo.decisions,
        "batch_size": ppo.batch_size,
        "n_epochs": ppo.epochs,
        "gamma": ppo.gamma,
        "gae_lambda": ppo.trace,
        "policy_kwargs": {"net_arch": {"pi": actor, "vf": [ppo.width] * ppo.layers}},
    }


def timed(command: Sequence[str | Path], cwd: Path | None = None) -> tuple[dict[str, Any], float, float]:
    """The JSON that a command prints, its minutes, and the CPU seconds of it and all that it started."""
    before, begun = os.times(), time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout), (time.monotonic() - begun) / 60, cpu


if __name__ == "__main__":
    main()
