"""The known silent bugs, each planted alone: which tool names it, and what it costs in success.

    python benchmarks/planted.py RUN [--data data/cubes] [--clean DIR ...] [--episodes 40] [--out planted.json]
                                 [--only NAME ...]

RUN is a finished run of the default job. Bugs are planted in the policy that is loaded, between policy and environment,
and in the data. `atlas eval --diagnose` looks at the rollouts with each of the first two kinds, `atlas data check` at
the data with each of the third; training is prepared with files of such data, by the run's settings, and what it says
before its first step is noted beside it. First comes the policy as it is, with several seeds, and data sets as they
are, where nothing must be named. Prints tables for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from planted_bugs import DATA_PLANTS, UNSETTLED, DataPlant, Plant, Planted, clean_datasets, plants

from atlas.checks.acting.diagnosis import diagnose
from atlas.checks.context import CheckContext
from atlas.checks.data_check import CHECKS, run_checks
from atlas.checks.finding import Finding
from atlas.config import load_config
from atlas.data.convert import Conversion, convert
from atlas.data.formats import open_dataset
from atlas.data.inputs import summarise_inputs
from atlas.data.proprio import LIBERO_PROPRIO
from atlas.data.sampling.loader import make_loader
from atlas.data.sampling.split import split_episodes
from atlas.data.training_data import split_data
from atlas.environments.catalog import make_environment
from atlas.errors import InputError
from atlas.policies.base import Policy, load_policy
from atlas.prepare import prepare
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator
from atlas.rollout.input_recorder import InputRecorder, RecordedActor
from atlas.rollout.proportions import wilson_interval
from atlas.system.files import follow
from atlas.training.reference_samples import keep_answers
from atlas.types import ActionSpec

_SEEDS = (0, 1, 2)
ROOT = Path(__file__).parents[1]


@dataclass
class Result:
    """What one plant came to. named: {tool: what it said}; expected: the bugs of which one has to be named."""

    name: str
    expected: tuple[str, ...]
    successes: int | None = None
    episodes: int | None = None
    named: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # what was named beside it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="data/cubes")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--data-episodes", type=int, default=24, help="of the data, that are looked at")
    parser.add_argument("--out", type=Path, help="a JSON file with all that was found")
    parser.add_argument("--only", nargs="*", help="plants of these names alone")
    parser.add_argument("--clean", nargs="*", type=Path, default=[], help="more datasets in which nothing is wrong")
    parser.add_argument("--without-data", action="store_true")
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    wanted = lambda name: not arguments.only or name in arguments.only  # noqa: E731
    found = [*rollouts(arguments, wanted), *([] if arguments.without_data else data_checks(arguments, wanted))]
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(result) for result in found], indent=1))
    print_tables(found)


# ---- rollouts ------------------------------------------------------------------------------------------------


def prepared_policy(run: Path, data: str) -> Policy:
    """The best checkpoint, with what a run of today would have kept beside it, should it be of an older one."""
    checkpoint = follow(run / "checkpoints" / "best")
    policy = load_policy(checkpoint)
    config = load_config(run / "config.yaml", [f"data.path={data}"])
    dataset = open_dataset(data)
    split = split_data(config, dataset, list(policy.processor.cameras))
    if policy.processor.inputs is None or policy.processor.inputs.starts is None:
        size = policy.processor.image_size
        inputs = summarise_inputs(dataset, split.train.episodes, policy.processor.cameras, size)
        policy.processor = replace(policy.processor, inputs=inputs)
    if policy.reference_answers is None:
        samples = [(0, i) for i in range(0, len(split.val), max(1, len(split.val) // 64))][:64]
        batch = next(iter(make_loader(split.val, [samples], 0, pin_memory=False)))
        batch = replace(batch, images=batch.unit_images())
        _, sampled = policy.losses_and_sample(batch)
        execute = config.evaluation.execute
        keep_answers(policy, split.val, samples, batch, sampled, 0, torch.float32, execute)
    return policy


def rollouts(arguments: argparse.Namespace, wanted: Any) -> list[Result]:
    torch.set_num_threads(1)
    execute = load_config(arguments.run / "config.yaml").evaluation.execute
    found = []
    size = load_policy(follow(arguments.run / "checkpoints" / "best")).processor.camera_size
    with closing(Evaluator("cubes", size, None)) as evaluator:
        for seed in _SEEDS:
            if wanted("clean"):
                policy = prepared_policy(arguments.run, arguments.data)
                plant = Plant(f"nothing, seed {seed}", ())
                found.append(play(plant, policy, evaluator, execute, arguments.episodes, seed))
        for plant in plants(arguments.run):
            if wanted(plant.name):
                policy = prepared_policy(arguments.run, arguments.data)
                found.append(play(plant, policy, evaluator, execute, arguments.episodes, _SEEDS[0]))
    if wanted(UNSETTLED.name):
        found.append(play_unsettled(arguments, size, execute))
    return found


def play(plant: Plant, policy: Policy, evaluator: Evaluator, execute: int, episodes: int, seed: int) -> Result:
    if plant.policy is not None:
        plant.policy(policy)
    recorder = InputRecorder()
    recorder.policy = policy
    actor = ChunkExecutor(policy, plant.execute or execute, None, "cubes")
    planted = Planted(RecordedActor(actor, recorder), plant)
    planned = plan_episodes("cubes", episodes, "report", seed)
    outcomes = [played.outcome for played in evaluator.play(planted, planned, title=None)]
    findings = diagnose(recorder, policy.processor, "cubes", outcomes, execute)
    result = judged(plant.name, plant.bugs, {"atlas eval --diagnose": findings})
    result.successes, result.episodes = sum(outcome.success for outcome in outcomes), episodes
    say(result)
    return result


def play_unsettled(arguments: argparse.Namespace, size: int, execute: int) -> Result:
    """In worker processes whose world does not wait until the scene has settled."""
    with tempfile.TemporaryDirectory() as folder:
        text = "import atlas.environments.cubes as cubes\ncubes.SETTLE_STEPS = 0\n"
        (Path(folder) / "sitecustomize.py").write_text(text)
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT), before])
        try:
            with closing(Evaluator("cubes", size, None)) as evaluator:
                policy = prepared_policy(arguments.run, arguments.data)
                return play(UNSETTLED, policy, evaluator, execute, arguments.episodes, _SEEDS[0])
        finally:
            os.environ["PYTHONPATH"] = before


# ---- data ----------------------------------------------------------------------------------------------------


def data_checks(arguments: argparse.Namespace, wanted: Any) -> list[Result]:
    found = []
    whole = open_dataset(arguments.data)
    few = np.unique(np.linspace(0, len(whole) - 1, min(len(whole), arguments.data_episodes)).round().astype(int))
    size = min(whole.image_size(camera)[0] for camera in whole.cameras)
    with closing(make_environment("cubes", size)) as env:
        if wanted("clean"):
            for name, dataset in clean_datasets(whole, few, arguments.clean):
                world = env if dataset.environment == "cubes" else None
                found.append(check(DataPlant(name, ()), dataset, world, arguments.run))
        for plant in DATA_PLANTS:
            if wanted(plant.name):
                found.append(check(plant, plant.planted(whole, few), env, arguments.run))
    return found


def check(plant: DataPlant, dataset: Any, env: Any, run: Path) -> Result:
    train, val = split_episodes(dataset.task_of, 0.05, 0)
    context = CheckContext(dataset, list(dataset.cameras), train, val, env, None, 2)
    checks = [(name, each) for name, each in CHECKS if name != "replay"]
    findings = run_checks(context, checks)
    of_training, refusal = said_by_training(dataset, run)
    named = {"atlas data check": findings, "training": of_training}
    result = judged(f"data: {plant.name}", plant.bugs, named)
    if refusal is not None and plant.bugs:
        result.named["training"] = f"refuses: {refusal}"
    elif refusal is not None:
        result.others.append(f"refused: {refusal}")
    say(result)
    return result


def said_by_training(dataset: Any, run: Path) -> tuple[list[Finding], str | None]:
    """What training says of such data before its first step, or with which words it refuses to begin: the data is
    written as files, and prepared by the run's settings as `./train.sh` prepares any."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as locks:
        data = Path(folder) / "data"
        convert(dataset, data, _fitting_form(dataset), workers=1)
        places = [f"data.path={data}", "data.datasets=null", f"output_dir={folder}", "run_name=prepared"]
        settings = ["data.cameras=null", "data.features=null", "data.feature_cache=null", "data.frame_cache=null"]
        config = load_config(run / "config.yaml", [*places, *settings, "evaluation.env=none"])
        horizon = min(config.data.action_horizon, int(dataset.lengths.min()))
        config = config.model_copy(update={"data": config.data.model_copy(update={"action_horizon": horizon})})
        try:
            prepared = prepare(config, locks=locks)
        except InputError as refusal:
            return [], str(refusal)
        return [finding for _, finding in prepared.findings], None


def _fitting_form(dataset: Any) -> Conversion:
    """LIBERO's files where they can hold it, otherwise a LeRobot dataset."""
    fits = dataset.action_spec == ActionSpec() and dataset.proprio_dim == len(LIBERO_PROPRIO)
    return Conversion("libero-hdf5") if fits else Conversion("lerobot", "png")


# ---- what came out -------------------------------------------------------------------------------------------


def judged(name: str, expected: Sequence[str], tools: dict[str, list[Finding]]) -> Result:
    result = Result(name, tuple(expected))
    for tool, findings in tools.items():
        wrong = [f for f in findings if f.severity != "info" and f.bugs]
        right = [f for f in wrong if set(f.bugs) & set(expected)]
        if right:
            result.named[tool] = right[0].message
        others = [f"{'/'.join(f.bugs)}: {f.message}" for f in wrong if not set(f.bugs) & set(expected)]
        result.others += [other for other in others if other not in result.others]
    return result


def say(result: Result) -> None:
    success = "" if result.episodes is None else f"{result.successes}/{result.episodes} "
    print(f"{result.name}: {success}{result.named or ('clean' if not result.expected else 'NOT NAMED')}", flush=True)
    for other in result.others:
        print(f"    also: {other}", flush=True)


def print_tables(found: Sequence[Result]) -> None:
    print("\n| planted | success | 95% interval | named by | also named |\n|---|---|---|---|---|")
    for result in found:
        success = interval = "-"
        if result.episodes:
            low, high = wilson_interval(result.successes or 0, result.episodes)
            success, interval = f"{result.successes}/{result.episodes}", f"{low:.0%} to {high:.0%}"
        tools = ", ".join(f"`{tool}`" if tool != "training" else tool for tool in result.named)
        others = ", ".join(sorted({other.partition(":")[0] for other in result.others}))
        named = tools or ("nothing" if not result.expected else "**nobody**")
        print(f"| {result.name} | {success} | {interval} | {named} | {others or '-'} |")
    planted, clean = [r for r in found if r.expected], [r for r in found if not r.expected]
    if planted:
        print(f"\nNamed: {sum(bool(r.named) for r in planted)} of {len(planted)}.")
    if clean:
        print(f"Named where nothing is planted: {sum(bool(r.others) for r in clean)} of {len(clean)}.")


if __name__ == "__main__":
    main()
