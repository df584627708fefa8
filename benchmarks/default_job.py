"""The default job from scratch: how long it takes, and how well its policy does on episodes nobody has seen.

    python benchmarks/default_job.py [--vision vggt] [--episodes 100] [--seeds 1] [--out DIR] [key=value ...]

Runs `atlas train` (with the demonstrations recorded again), `atlas report`, which is timed, then `atlas eval` three
times: normally, with the instructions exchanged, and blind. With more seeds it trains again with each, on the same
demonstrations, and evaluates each result normally. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", default=None, help="another vision encoder than the default config's")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1, help="trainings, each with its own seed")
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-benchmark-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    overrides = list(arguments.overrides)
    if arguments.vision:
        overrides.append(f"model.vision.name={arguments.vision}")

    start = time.monotonic()
    run([*ATLAS, "train", "run_name=seed_0", *overrides], cwd=out)
    minutes = (time.monotonic() - start) / 60
    start = time.monotonic()
    run([*ATLAS, "report", "outputs/seed_0", "--out", "page.html"], cwd=out, capture=True)
    seconds, page = time.monotonic() - start, (out / "page.html").stat().st_size / 1e6
    rows = []
    for name, flags in (
        ("as it is", []),
        ("instructions exchanged", ["--instruction-shuffle"]),
        ("blind", ["--blind"]),
    ):
        rows.append(row(name, evaluate(out, 0, arguments.episodes, flags)))
    for seed in range(1, arguments.seeds):
        run([*ATLAS, "train", f"run_name=seed_{seed}", f"seed={seed}", *overrides], cwd=out)
        rows.append(row(f"trained with seed {seed}", evaluate(out, seed, arguments.episodes, [])))

    print(f"\n{describe()}\n")
    print(f"Recording, training and evaluating: {minutes:.1f} minutes\n")
    print(f"`atlas report` of the finished run: {seconds:.1f} s, start-up included; the page has {page:.1f} MB\n")
    print("| episodes | success | 95% interval | by instruction | mean length |\n|---|---|---|---|---|")
    print("\n".join(rows))


ATLAS = [sys.executable, "-m", "atlas.cli"]


def evaluate(out: Path, seed: int, episodes: int, flags: list[str]) -> dict[str, Any]:
    """The report of `atlas eval` on a training's best checkpoint."""
    command = [*ATLAS, "eval", "--checkpoint", f"outputs/seed_{seed}", "--env", "cubes", "--json", *flags]
    found: dict[str, Any] = json.loads(run([*command, "--episodes", str(episodes)], cwd=out, capture=True))
    return found


def run(command: list[str], cwd: Path, capture: bool = False) -> str:
    """Run a command with this checkout's atlas and show its progress; with `capture`, returns what it printed."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=cwd,
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        env=os.environ | {"PYTHONPATH": path},
    )
    return done.stdout or ""


def tried(name: str, policy: Any, execute: int, episodes: int) -> str:
    """The row of a policy in memory: episodes of the default world that nothing has used before."""
    from atlas.rollout.chunk_executor import ChunkExecutor
    from atlas.rollout.episode_plan import plan_episodes
    from atlas.rollout.evaluation import Evaluator
    from atlas.rollout.success_report import EvaluationReport

    evaluator = Evaluator("cubes", policy.processor.camera_size)
    outcomes = evaluator.run(ChunkExecutor(policy, execute), plan_episodes("cubes", episodes, "report", 0))
    evaluator.close()
    return row(name, EvaluationReport("cubes", name, tuple(outcomes)).to_dict())


def row(name: str, found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    parts = ", ".join(f"{k}: {v['successes']}/{v['episodes']}" for k, v in found["per_instruction"].items())
    return (
        f"| {name} | {found['successes']}/{found['episodes']} | {100 * low:.0f} to {100 * high:.0f}% | {parts} "
        f"| {found['mean_episode_length']:.0f} |"
    )


if __name__ == "__main__":
    main()
