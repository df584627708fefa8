"""What PPO and GRPO make of a policy from state that few demonstrations have begun, in a world without rendering.

    python benchmarks/state_learning.py [--env state:metaworld-push] [--demonstrations 10] [--steps 1000]
                                        [--algorithms ppo,grpo] [--out DIR] [key=value ...]

Records demonstrations of the world's scripted expert, imitates them with a small network that sees the proprio and
where the objects are, and goes on by reward (`atlas learn`). The policies before and after play the same 100 held-out
starts. Prints a table for docs/benchmarks.md; minutes are those of the whole command, with its evaluations. With --out
it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from default_job import ATLAS, run
from machine import describe
from pendulum import timed

# Deviations of a fifth of an action's range, the same in every state.
HEAD = "model.head={name: gaussian, squashed: false, deviation: free, log_std: -1.5}"
FROM_STATE = ["model.vision={name: none}", "model.fusion={name: mlp, dim: 256, layers: 2}", HEAD]
FROM_STATE += ["data.action_horizon=4", "evaluation.execute=4", "evaluation.episodes=0", "evaluation.final_episodes=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="state:metaworld-push")
    parser.add_argument("--demonstrations", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000, help="of imitation")
    parser.add_argument("--algorithms", default="ppo,grpo")
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", help="of the learning, such as learning.ppo.steps=300000")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-state-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)

    if not (out / "outputs" / "base" / "results.json").exists():
        recorded = ["--episodes", str(arguments.demonstrations), "--out", "demonstrations"]
        run([*ATLAS, "data", "record", "--env", arguments.env, *recorded], cwd=out)
        settings = ["run_name=base", "data.path=demonstrations", f"training.max_steps={arguments.steps}", *FROM_STATE]
        if "cubes" not in arguments.env:
            settings.append("model.language={name: none}")  # one task: nothing to be told
        run([*ATLAS, "train", *settings, "--resume", "auto"], cwd=out)
    rows = [row(name, arguments, out) for name in filter(None, arguments.algorithms.split(","))]

    print(describe())
    print("| | episodes (steps) | success before | control | after | gained / lost (p) | minutes | CPU minutes |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def row(name: str, arguments: argparse.Namespace, out: Path) -> str:
    """Learn, and say in a row of the table what came of it."""
    command = [*ATLAS, "learn", name, "--checkpoint", str(out / "outputs" / "base"), "--env", arguments.env, "--json"]
    found, minutes, cpu = timed([*command, f"output_dir={out / 'outputs'}", *arguments.overrides], cwd=out)
    told: dict[str, Any] = found
    success = {when: f"{share:.0%}" for when, share in told["success_rate"].items()}
    starts = told["starts"] or {"gained": 0, "lost": 0, "p": 1.0}
    changed = f"{starts['gained']} / {starts['lost']} ({starts['p']:.3f})"
    played = f"{told['episodes']:,} ({told['env_steps']:,})"
    control = "" if told["control"] is None else f"{told['control']['success_rate']:.0%}"
    cells = [name, played, success["before"], control, success["after"], changed, f"{minutes:.1f}", f"{cpu / 60:.1f}"]
    if told["ended_early"]:
        cells[0] += f", which ended early: {told['ended_early']}"
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
