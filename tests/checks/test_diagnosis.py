"""`atlas eval --diagnose` and `--open-loop`: what differs from training is named; what does not is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas.checks.acting.diagnosis import diagnose
from atlas.checks.finding import Finding
from atlas.checks.numbers import LIBERO_ROTATION
from atlas.config import Config, load_config
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.inputs import TrainingInputs, summarise_inputs
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.input_recorder import InputRecorder
from atlas.rollout.recorded_actions import evaluate_recorded
from atlas.rollout.success_report import EpisodeOutcome
from atlas.types import Observation
from tests.conftest import MakeLibero
from tests.test_vertical_slice import run_atlas

SIZE = 32
Change = Callable[[Observation], Observation]


@pytest.fixture(scope="module")
def good(cubes_dataset: Path) -> EpisodeDataset:
    return open_dataset(cubes_dataset)


def processor_for(dataset: EpisodeDataset, config: Config = Config()) -> PolicyProcessor:
    """The processor of a policy that was trained on the first six episodes."""
    episodes = np.arange(6)
    read = [dataset.episode(int(i)) for i in episodes]
    statistics = DatasetStatistics(
        source="cubes",
        frames=sum(map(len, read)),
        episodes=len(read),
        action=ColumnStatistics.of(np.concatenate([e.actions for e in read])),
        proprio=ColumnStatistics.of(np.concatenate([e.proprio for e in read])),
        environment="cubes",
    )
    return PolicyProcessor(
        cameras=tuple(dataset.cameras),
        camera_size=SIZE,
        image_size=SIZE,
        action_horizon=config.data.action_horizon,
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=(statistics,),
        scaling=config.model.processor,
        inputs=summarise_inputs(dataset, episodes, dataset.cameras, SIZE),
    )


def watched(
    dataset: EpisodeDataset, change: Change = lambda o: o, act: Callable[[np.ndarray], np.ndarray] = lambda a: a
) -> InputRecorder:
    """An evaluation in which the policy does what was done in the last two episodes, which it was not trained on."""
    recorder = InputRecorder()
    for number in (3, 7):
        episode = dataset.episode(number)
        for frame in range(0, len(episode), 4):
            images = {camera: episode.images(camera, [frame])[0] for camera in dataset.cameras}
            observation = change(Observation(images, episode.proprio[frame], episode.instruction))
            recorder.add_observation(observation, frame == 0, dataset.cameras, SIZE, seed=number)
            recorder.add_actions(act(episode.actions[frame : frame + 4].copy()))
    return recorder


def pictures(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda o: replace(o, images={c: np.ascontiguousarray(change(i)) for c, i in o.images.items()})


def unlike(findings: list[Finding]) -> dict[str, str]:
    """{check: message} for everything except infos."""
    return {f.check: f.message for f in findings if f.severity != "info"}


def test_an_evaluation_like_training_is_found_to_be_like_it(good: EpisodeDataset) -> None:
    found = diagnose(watched(good), processor_for(good), "cubes")

    assert unlike(found) == {}, found
    assert {f.check for f in found} == {"view", "stats", "language", "actions", "gripper", "starts", "timing"}


@pytest.mark.parametrize(
    ("check", "words", "change"),
    [
        ("view", "but upside down", pictures(lambda i: i[::-1])),
        ("view", "but rotated by 180 degrees", pictures(lambda i: i[::-1, ::-1])),
        ("view", "but rotated by 90 degrees", pictures(lambda i: i.swapaxes(0, 1)[::-1])),
        ("view", "other lighting", pictures(lambda i: (i / 255).astype(np.uint8))),
        ("view", "other lighting", pictures(lambda i: (i * 0.5).astype(np.uint8))),
        ("view", "other lighting", pictures(lambda i: i * 0)),
        ("view", "red and blue swapped", pictures(lambda i: i[..., ::-1])),
        ("stats", "start outside training's proprio", lambda o: replace(o, proprio=o.proprio + 1)),
        ("language", "never read: azure, grasp", lambda o: replace(o, instruction="grasp the azure cube")),
    ],
)
def test_inputs_that_are_unlike_training_are_named(
    check: str, words: str, change: Change, good: EpisodeDataset
) -> None:
    found = diagnose(watched(good, change), processor_for(good), "cubes")

    assert unlike(found).keys() == {check}, found
    assert any(words in f.message and f.severity == "error" for f in found), found


def test_swapped_cameras_are_named(good: EpisodeDataset) -> None:
    def swapped(o: Observation) -> Observation:
        return replace(o, images=dict(zip(o.images, reversed(o.images.values()), strict=True)))

    found = diagnose(watched(good, swapped), processor_for(good), "cubes")

    assert "camera 'eye_in_hand' shows what 'agentview' showed" in unlike(found)["view"]


@pytest.mark.parametrize(
    ("check", "words", "act"),
    [
        ("actions", "hardly varies its actions in ['dx', 'dy', 'dz'", lambda a: a * 0.01),
        ("actions", "outside training's range", lambda a: a * 3),
        ("gripper", "keeps the gripper open", lambda a: np.hstack([a[:, :6], a[:, 6:] * 0.5 - 0.6])),
    ],
)
def test_answers_that_are_unlike_training_are_named(
    check: str, words: str, act: Callable[[np.ndarray], np.ndarray], good: EpisodeDataset
) -> None:
    found = diagnose(watched(good, act=act), processor_for(good), "cubes")

    assert unlike(found).keys() == {check}, found
    assert words in unlike(found)[check]


def test_an_instruction_that_is_not_the_episodes_own_is_named(good: EpisodeDataset) -> None:
    meant = [good.episode(number).instruction for number in (3, 7)]
    assert meant[0] != meant[1]
    outcomes = [EpisodeOutcome(said, seed, True, 1.0, 9) for seed, said in zip((3, 7), meant, strict=True)]

    own = diagnose(watched(good), processor_for(good), "cubes", outcomes)
    all_alike = diagnose(
        watched(good, lambda o: replace(o, instruction=meant[0])), processor_for(good), "cubes", outcomes
    )

    assert unlike(own) == {} and "one_instruction" in {bug for f in own for bug in f.bugs}
    told = f"in 1 of 2 episodes the policy was told another task than was scored, such as '{meant[0]}' for '{meant[1]}'"
    (named,) = [f for f in all_alike if "one_instruction" in f.bugs]
    assert named.severity == "error" and named.message == f"{told}; all were told the same"


def test_chunks_that_are_executed_otherwise_than_validated_are_named(good: EpisodeDataset) -> None:
    as_meant = diagnose(watched(good), processor_for(good), "cubes", execute=4)
    whole = diagnose(watched(good), processor_for(good), "cubes", execute=2)

    assert unlike(as_meant) == {} and "whole_chunk" in {bug for f in as_meant for bug in f.bugs}
    assert unlike(whole) == {"timing": "4 actions of each chunk are executed, and 2 were where it was validated"}
    (named,) = [f for f in whole if "whole_chunk" in f.bugs]
    assert named.fix == "Evaluate with --execute 2, or validate with evaluation.execute=4."


def test_rotations_that_flip_in_rollouts_are_named(good: EpisodeDataset) -> None:
    """The hand points down, half a turn from upright, where an axis-angle has two forms."""
    looks = iter(range(10**6))

    def flipped(o: Observation) -> Observation:
        proprio = o.proprio.copy()
        proprio[LIBERO_ROTATION] = np.array([3.1, 0.0, 0.0]) * (-1) ** next(looks)
        return replace(o, proprio=proprio)

    def of_flips(found: list[Finding]) -> list[str]:
        return [f.severity for f in found if "rotation_flip" in f.bugs and "jump" in f.message]

    assert of_flips(diagnose(watched(good), processor_for(good), "cubes")) == ["info"]
    found = diagnose(watched(good, flipped), processor_for(good), "cubes")
    assert of_flips(found) == ["error"]
    assert any("in 2 of 2 episodes: axis-angle flips" in f.message for f in found)


def test_what_was_shown_in_training_is_saved_with_the_policy(good: EpisodeDataset, tmp_path: Path) -> None:
    processor = processor_for(good)

    processor.save(tmp_path / "processor.json")
    loaded = PolicyProcessor.load(tmp_path / "processor.json")

    assert isinstance(loaded.inputs, TrainingInputs) and loaded.inputs.instructions == tuple(good.tasks)
    assert unlike(diagnose(watched(good), loaded, "cubes")) == {}
    older = json.loads((tmp_path / "processor.json").read_text())
    del older["inputs"]
    (tmp_path / "processor.json").write_text(json.dumps(older))
    found = diagnose(watched(good), PolicyProcessor.load(tmp_path / "processor.json"), "cubes")
    assert unlike(found) == {} and "keeps no summary" in found[0].message


def test_recorded_actions_reach_what_imitation_could(good: EpisodeDataset, make_libero: MakeLibero) -> None:
    report = evaluate_recorded(good, "cubes", episodes=2)

    assert report.success_rate == 1.0 and report.probes == ("open_loop",)
    assert [outcome.seed for outcome in report.outcomes] == [0, 7]
    with pytest.raises(InputError, match="does not know the instruction 'open the drawer'"):
        evaluate_recorded(open_dataset(make_libero()), "cubes")


@pytest.mark.slow
def test_the_verb_diagnoses_a_policy_and_plays_recorded_actions(
    good: EpisodeDataset, cubes_dataset: Path, tmp_path: Path
) -> None:
    config = load_config(None, ["data.image_size=32", "model.fusion.dim=32"])
    ModularPolicy(config.model, processor_for(good, config)).save_pretrained(tmp_path / "policy")
    common = ["eval", "--env", "cubes", "--json", "--episodes", "2"]

    untrained = json.loads(run_atlas([*common, "--checkpoint", str(tmp_path / "policy"), "--diagnose"]).stdout)
    recorded = json.loads(run_atlas([*common, "--open-loop", str(cubes_dataset)]).stdout)
    neither = run_atlas(common, check=False)

    assert {f["check"] for f in untrained["findings"]} >= {"view", "stats", "language"}
    assert not [f for f in untrained["findings"] if f["severity"] == "error"] and untrained["success_rate"] == 0.0
    assert recorded["success_rate"] == 1.0 and "findings" not in recorded
    assert (
        neither.returncode == 2
        and "--checkpoint, --policy with" in neither.stderr
        and "or --open-loop" in neither.stderr
    )
