"""Which perturbations a policy survives: success by perturbation and level, as tables for docs/benchmarks.md.

    python benchmarks/robustness.py --policy outputs/default [--env cubes] [--perturb all] [--episodes 20] [--workers 2]
        [--out results.json] [--plot robustness.png]
    python benchmarks/robustness.py --recipe DIR [--perturb visual:1-3] [--episodes 20] [key=value ...]

The same episodes as they are and under each perturbation and level, by `atlas eval`'s own code. `--out` is written
after each of them, and what stands in it already is not played again, so that an interrupted run goes on.

With `--recipe` the default job, and atlas/configs/cubes_sturdy.yaml on demonstrations in scenes that differ, are
trained in DIR, unless they are there, and stand side by side: success, and how long each took to record and train.
`visual` stands for all perturbations of pictures alone. key=value: config keys of both trainings.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from default_job import ATLAS, run
from machine import describe

from atlas.drawing.robustness_figure import save_robustness
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.choices import PERTURBATIONS, PerturbationChoice, choose_perturbations
from atlas.registry import resolve_policy
from atlas.rollout.actor import image_size_for
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator, load_actor
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.robustness import RobustnessReport, mean_interval, plan_perturbed

MILD = (1, 2, 3)
VISUAL = "visual"
DEMONSTRATIONS = 320  # of the recipe, as docs/evaluation.md has it
RECIPE = Path(__file__).resolve().parents[1] / "atlas" / "configs" / "cubes_sturdy.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="outputs/default", help="a run, a checkpoint, or a policy's folder")
    parser.add_argument("--env", default="cubes")
    parser.add_argument("--recipe", type=Path, default=None, metavar="DIR", help="train both there, and compare")
    parser.add_argument("--demonstrations", type=int, default=DEMONSTRATIONS, help="of the recipe")
    parser.add_argument("--perturb", default=None, help="as `atlas eval --perturb` takes it, or visual[:LEVEL]")
    parser.add_argument("--episodes", type=int, default=20, help="of each perturbation and level")
    parser.add_argument("--execute", type=int, default=4, help="actions of each chunk, as the default job has it")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("robustness.json"))
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        compare_recipe(arguments)
        return
    arguments.perturb = arguments.perturb or "all"
    start = time.monotonic()
    report = play(arguments)
    minutes = (time.monotonic() - start) / 60
    found = RobustnessReport.of(report)
    assert found is not None
    if arguments.plot:
        save_robustness(found, arguments.plot)
    print(f"\n{describe()}\n\nplayed in {minutes:.1f} minutes\n\n{tables(found)}")


def chosen(perturb: str, spec: EnvironmentSpec) -> list[PerturbationChoice]:
    """`visual[:LEVEL]` stands for all of a world's that change pictures alone."""
    asked = []
    for text in perturb.split(","):
        name, colon, levels = text.partition(":")
        kinds = {each: PerturbationChoice(each, 1).kind for each in PERTURBATIONS.names()}
        visual = [each for each, kind in kinds.items() if kind.visual and kind.missing(spec) is None]
        asked += [f"{each}{colon}{levels}" for each in visual] if name == VISUAL else [text]
    return choose_perturbations(asked, spec)


def compare_recipe(arguments: argparse.Namespace) -> None:
    """Trains what is not there yet, plays both, and prints them side by side."""
    folder = arguments.recipe.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    minutes = {name: trained(folder, name, arguments) for name in ("default", "sturdy")}
    found = {}
    for name in minutes:
        theirs = {"policy": str(folder / "outputs" / name), "out": folder / f"{name}.json"}
        theirs |= {"perturb": arguments.perturb or f"{VISUAL}:1-3"}
        found[name] = RobustnessReport.of(play(argparse.Namespace(**(vars(arguments) | theirs))))
    ratio = minutes["sturdy"] / minutes["default"]
    both = " and ".join(f"{each:.1f}" for each in minutes.values())
    print(f"\n{describe()}\n\nRecorded and trained in {both} minutes: {ratio:.2f}\n")
    print("| | default | sturdy |\n|---|---|---|")
    first, second = found.values()
    assert first is not None and second is not None
    names = list(dict.fromkeys(choice.name for choice in first.perturbed))
    of_name = {name: [choice for choice in first.perturbed if choice.name == name] for name in names}
    mild = [choice for choice in first.perturbed if choice.kind.visual and choice.level in MILD]
    rows = {"as they are": None, **{f"`{name}`": of for name, of in of_name.items()}, "visual, levels 1 to 3": mild}
    for name, choices in rows.items():
        if choices or choices is None:
            print(f"| {name} | {_share(first, choices)} | {_share(second, choices)} |")


def trained(folder: Path, name: str, arguments: argparse.Namespace) -> float:
    """The minutes that recording and training a run take, or took."""
    took = folder / f"{name}_minutes.json"
    if took.exists():
        return float(json.loads(took.read_text()))
    start = time.monotonic()
    training = [*ATLAS, "train", f"run_name={name}"]
    if name == "sturdy":
        data = ["--out", "data/sturdy", "--episodes", str(arguments.demonstrations), "--randomize", "all:1-3"]
        run([*ATLAS, "data", "record", "--env", "cubes", "--image-size", "64", *data], cwd=folder)
        training += ["--config", str(RECIPE)]
    run([*training, *arguments.overrides], cwd=folder)
    took.write_text(json.dumps((time.monotonic() - start) / 60))
    return float(json.loads(took.read_text()))


def _share(found: RobustnessReport, choices: list[PerturbationChoice] | None) -> str:
    outcomes = _played(found, choices)
    successes, episodes = _counted(outcomes)
    low, high = mean_interval(outcomes)
    return f"{successes}/{episodes} ({successes / episodes:.0%}, {low:.0%} to {high:.0%})"


def play(arguments: argparse.Namespace) -> EvaluationReport:
    """The episodes as they are, and under each perturbation and level; what `--out` has is not played again."""
    env, seed, out = arguments.env, 0, arguments.out
    choices = chosen(arguments.perturb, environment_spec(env))
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
        outcomes = _played(found, choices)
        successes, episodes = _counted(outcomes)
        if episodes:
            low, high = mean_interval(outcomes)
            lines.append(f"| {what} | {successes}/{episodes} ({successes / episodes:.0%}) | {low:.0%} to {high:.0%} |")
    return "\n".join(lines)


def _played(found: RobustnessReport, choices: list[PerturbationChoice] | None) -> list[tuple[EpisodeOutcome, ...]]:
    return [found.plain] if choices is None else [found.perturbed[choice] for choice in choices]


def _counted(played: list[tuple[EpisodeOutcome, ...]]) -> tuple[int, int]:
    outcomes = [outcome for way in played for outcome in way]
    return sum(outcome.success for outcome in outcomes), len(outcomes)


if __name__ == "__main__":
    main()
