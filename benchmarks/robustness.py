"""Which perturbations a policy survives: success by perturbation and level, as tables for docs/benchmarks.md.

    python benchmarks/robustness.py --policy outputs/default [--env cubes] [--perturb all] [--episodes 20] [--workers 2]
        [--out results.json] [--plot robustness.png]

The same episodes as they are and under each perturbation and level, by `atlas eval`'s own code. `--out` keeps every
episode's outcome; `--from results.json` draws the tables of such a file again without playing anything.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from machine import describe

from atlas.drawing.robustness_figure import save_robustness
from atlas.environments.perturbations.choices import PerturbationChoice
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.robustness import RobustnessReport

MILD = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="outputs/default", help="a run, a checkpoint, or a policy's folder")
    parser.add_argument("--env", default="cubes")
    parser.add_argument("--perturb", default="all", help="as `atlas eval --perturb` takes it")
    parser.add_argument("--episodes", type=int, default=20, help="of each perturbation and level")
    parser.add_argument("--execute", type=int, default=4, help="actions of each chunk, as the default job has it")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--from", dest="kept", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    start = time.monotonic()
    report = (
        EvaluationReport.load(arguments.kept)
        if arguments.kept
        else evaluate_checkpoint(
            arguments.policy,
            arguments.env,
            arguments.episodes,
            execute=arguments.execute,
            workers=arguments.workers,
            perturb=arguments.perturb.split(","),
            perturb_episodes=arguments.episodes,
        )
    )
    minutes = (time.monotonic() - start) / 60
    found = RobustnessReport.of(report)
    assert found is not None
    if arguments.out:
        report.save(arguments.out, {"robustness": found.to_dict()})
    if arguments.plot:
        save_robustness(found, arguments.plot)
    print(f"\n{describe()}\n")
    played = len(found.plain) * (1 + len(found.perturbed))
    if not arguments.kept:
        print(f"{played} episodes in {minutes:.1f} minutes\n")
    print(tables(found))


def tables(found: RobustnessReport) -> str:
    """The rows of every perturbation, and the means that stand for all."""
    lines = [
        "| perturbation | 1 | 2 | 3 | 4 | 5 | all levels | 95% interval |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in found.rows()),
        "",
        "| mean over | success | 95% interval |",
        "|---|---|---|",
    ]
    visual = [choice for choice in found.perturbed if choice.kind.visual]
    for what, choices in (
        ("nothing: the same episodes as they are", None),
        ("visual perturbations, levels 1 to 3", [c for c in visual if c.level in MILD]),
        ("visual perturbations, all levels", visual),
        ("all perturbations, levels 1 to 3", [c for c in found.perturbed if c.level in MILD]),
        ("all perturbations, all levels", list(found.perturbed)),
    ):
        successes, episodes = _counted(found, choices)
        if episodes:
            low, high = wilson_interval(successes, episodes)
            lines.append(f"| {what} | {successes}/{episodes} ({successes / episodes:.0%}) | {low:.0%} to {high:.0%} |")
    return "\n".join(lines)


def _counted(found: RobustnessReport, choices: list[PerturbationChoice] | None) -> tuple[int, int]:
    outcomes = found.plain if choices is None else [o for choice in choices for o in found.perturbed[choice]]
    return sum(outcome.success for outcome in outcomes), len(outcomes)


if __name__ == "__main__":
    main()
