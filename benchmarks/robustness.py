"""Which perturbations a policy survives: success by perturbation and level, as tables for docs/benchmarks.md.

    python benchmarks/robustness.py --policy outputs/default [--env cubes] [--perturb all] [--episodes 20] [--workers 2]
        [--out results.json] [--plot robustness.png]

The same episodes as they are and under each perturbation and level, by `atlas eval`'s own code. `--out` is written
after each of them, and what stands in it already is not played again, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe

from atlas.drawing.robustness_figure import save_robustness
from atlas.environments.catalog import environment_spec
from atlas.environments.perturbations.choices import PerturbationChoice, choose_perturbations
from atlas.registry import resolve_policy
from atlas.rollout.actor import image_size_for
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator, load_actor
from atlas.rollout.proportions import wilson_interval
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.robustness import RobustnessReport, plan_perturbed

MILD = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="outputs/default", help="a run, a checkpoint, or a policy's folder")
    parser.add_argument("--env", default="cubes")
    parser.add_argument("--perturb", default="all", help="as `atlas eval --perturb` takes it")
    parser.add_argument("--episodes", type=int, default=20, help="of each perturbation and level")
    parser.add_argument("--execute", type=int, default=4, help="actions of each chunk, as the default job has it")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("robustness.json"))
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    start = time.monotonic()
    report = play(arguments)
    minutes = (time.monotonic() - start) / 60
    found = RobustnessReport.of(report)
    assert found is not None
    if arguments.plot:
        save_robustness(found, arguments.plot)
    print(f"\n{describe()}\n\nplayed in {minutes:.1f} minutes\n\n{tables(found)}")


def play(arguments: argparse.Namespace) -> EvaluationReport:
    """The episodes as they are, and under each perturbation and level; what `--out` has is not played again."""
    env, seed, out = arguments.env, 0, arguments.out
    choices = choose_perturbations(arguments.perturb.split(","), environment_spec(env))
    planned = plan_episodes(env, arguments.episodes, "report", seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    actor, execute = load_actor(arguments.policy, env, device, arguments.execute, None)
    with closing(Evaluator(env, image_size_for(actor), arguments.workers)) as evaluator:
        if out.exists():
            report = EvaluationReport.load(out)
        else:
            report = EvaluationReport(env, arguments.policy, tuple(evaluator.run(actor, planned)), "report", seed=seed)
        for choice in choices:
            if choice not in report.perturbed:
                again = plan_perturbed(planned, [choice])
                outcomes = tuple(evaluator.run(actor, again, title=f"{choice.name} {choice.level}"))
                report = replace(report, perturbed={**report.perturbed, choice: outcomes})
                report.save(out)
    named = tuple(f"{choice.name}:{choice.level}" for choice in report.perturbed)
    n = arguments.episodes
    protocol = Protocol(env, n, seed, "report", execute, perturb=named, perturb_episodes=n)
    report = replace(report, evidence=gather_evidence(resolve_policy(arguments.policy), protocol))
    report.save(out)
    return report


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
