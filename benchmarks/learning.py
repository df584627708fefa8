"""What a policy learns from its own experience in the cubes world, beside as many steps of plain imitation.

    python benchmarks/learning.py [--out DIR] [--demonstrations 24] [--steps 1000] [--algorithms dagger,rft,residual]
                                  [key=value ...]

Records few demonstrations, trains a policy on them that often fails, and has it improved by each algorithm
(`atlas learn`). The policies before and after, and the control, are evaluated on the same 100 held-out starts. Prints a
table for docs/benchmarks.md. With --out it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe
from pendulum import timed

ATLAS = [sys.executable, "-m", "atlas.cli"]
BY_REWARD = ("residual", "ppo", "grpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("--demonstrations", type=int, default=24)
    parser.add_argument("--steps", type=int, default=1000, help="of the policy that is improved")
    parser.add_argument("--algorithms", default="dagger,rft", help="also residual, ppo and grpo")
    parser.add_argument("overrides", nargs="*", help="of the learning, such as learning.dagger.rounds=2")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-learning-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)

    base = [
        "run_name=base",
        f"data.record.episodes={arguments.demonstrations}",
        f"training.max_steps={arguments.steps}",
    ]
    base += ["evaluation.episodes=0", "evaluation.final_episodes=0"]
    if not (out / "outputs" / "base" / "results.json").exists():
        subprocess.run([*ATLAS, "train", *base, "--resume", "auto"], cwd=out, check=True)
    rows = [row(name, arguments.overrides, out) for name in arguments.algorithms.split(",")]

    print(describe())
    print("| | episodes (steps) | before | control | after | gained / lost (p) | against the control | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def row(name: str, overrides: list[str], out: Path) -> str:
    """Learn, and say in a row of the table what came of it."""
    algorithm = ["sac", "--residual"] if name == "residual" else [name]
    base = out / "outputs" / "base" / "checkpoints" / "latest"  # after all its steps, without a choice
    command = [*ATLAS, "learn", *algorithm, "--checkpoint", str(base), "--env", "cubes", "--json"]
    places = [f"output_dir={out / 'outputs'}", f"run_name=base-{name}"]
    found, minutes, cpu = timed([*command, *places, *overrides], cwd=out)
    if name in BY_REWARD:
        return row_by_reward(name, found, minutes, cpu)
    reached = {what: f"{part['successes']}/{part['episodes']}" for what, part in found["success"].items()}
    changes = [f"{c['gained']} / {c['lost']} ({c['p']:.3f})" for c in (found["over_before"], found["over_control"])]
    played = f"{found['episodes']} ({found['env_steps']:,})"
    cells = [name, played, reached["before"], reached["control"], reached["after"], *changes, f"{minutes:.1f}"]
    return f"| {' | '.join(cells)} |"


def _starts(change: dict[str, Any] | None) -> str:
    """None: nobody has succeeded."""
    change = change or {"gained": 0, "lost": 0, "p": 1.0}
    return f"{change['gained']} / {change['lost']} ({change['p']:.3f})"


def row_by_reward(name: str, found: dict[str, Any], minutes: float, cpu: float) -> str:
    """Without a control where the run had none."""
    success = {when: f"{share:.0%}" for when, share in found["success_rate"].items()}
    control = found["control"]
    played = f"{found['episodes']} ({found['env_steps']:,})"
    cells = [
        name,
        played,
        success["before"],
        "" if control is None else f"{control['success_rate']:.0%}",
        success["after"],
        _starts(found["starts"]),
        "" if control is None else _starts(control["starts"]),
        f"{minutes:.1f} ({cpu / 60:.1f} of CPU)",
    ]
    if found["ended_early"]:
        cells[0] += f", which ended early: {found['ended_early']}"
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
