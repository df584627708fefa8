"""Actions relative to the state at the chunk's start: what is learned, and what is executed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import load_config
from atlas.config.model_section import ProcessorConfig
from atlas.data.convert import Conversion, convert
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.relative_actions import relative_actions
from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor, scaled_well
from atlas.rotations import inverse, multiply, to_quaternion
from atlas.types import ActionGroup, ActionSpec
from tests.action_spaces import GRIPPER, LIBERO, MadeUpDataset, MadeUpEpisode
from tests.conftest import MakeOnce
from tests.policies.test_policy import SMALL, VISIONS, make_processor
from tests.robots import ROBOTS, write_robot

RELATIVE = ProcessorConfig(relative_actions=True)


class Hand(MadeUpDataset):
    """A hand whose pose is commanded, in any form; its state is the last command, then a finger."""

    def episode(self, index: int) -> MadeUpEpisode:
        rng, steps = np.random.default_rng(index), int(self.lengths[index])
        actions = rng.uniform(-0.5, 0.5, (steps + 1, self.action_spec.dim)).cumsum(0).astype(np.float32)
        actions[:, -1] = np.where(np.arange(steps + 1) > steps / 2, 1, -1)
        return MadeUpEpisode(self.tasks[index % 2], actions[1:], actions[:-1])


def hand(form: str) -> Hand:
    numbers = {"axis_angle": 3, "quaternion": 4, "rotation_6d": 6, "euler_xyz": 3}[form]
    rotation = ActionGroup("rotation", tuple("abcdef"[:numbers]), form=form)  # type: ignore[arg-type]
    return Hand(ActionSpec((ActionGroup("position", ("x", "y", "z")), rotation, GRIPPER)))


@pytest.fixture
def arm(make_once: MakeOnce) -> EpisodeDataset:
    return open_dataset(make_once("robot_so100", lambda folder: write_robot(folder, ROBOTS["so100"])))


def processor_for(dataset: EpisodeDataset, config: ProcessorConfig, horizon: int = 4) -> PolicyProcessor:
    chunks = ChunkDataset(dataset, np.arange(len(dataset)), ["front"], image_size=32, horizon=horizon)
    relative = relative_actions(dataset, config)
    return replace(
        make_processor(),
        cameras=("front",),
        proprio_dim=dataset.proprio_dim,
        action_spec=dataset.action_spec,
        statistics=tuple(scaled_well(s, config) for s in chunks.statistics(relative)),
        scaling=config,
        relative=relative,
    )


def test_joints_are_learned_from_where_they_are(arm: EpisodeDataset) -> None:
    processor = processor_for(arm, RELATIVE)
    episode = arm.episode(0)
    chunk, state = torch.from_numpy(np.array(episode.actions[3:7]))[None], torch.from_numpy(episode.proprio[3:4].copy())

    learned = processor.to_learn(chunk, state)

    torch.testing.assert_close(learned[0, :, :5], chunk[0, :, :5] - state[0, :5])
    assert torch.equal(learned[..., 5], chunk[..., 5])  # the gripper stays as it is
    torch.testing.assert_close(processor.to_execute(learned, state), chunk)
    statistics = processor.statistics[0]
    assert statistics.relative_action is not None
    assert statistics.relative_action.std[0] < statistics.action.std[0]
    assert statistics.relative_action.std[5] == pytest.approx(statistics.action.std[5], rel=0.2)


def test_statistics_are_those_of_all_steps_of_chunks_within_episodes(arm: EpisodeDataset) -> None:
    found = processor_for(arm, RELATIVE, horizon=5).statistics[0].relative_action
    expected = [
        episode.actions[frame : frame + 5, 0] - episode.proprio[frame, 0]
        for episode in map(arm.episode, range(len(arm)))
        for frame in range(len(episode))
    ]

    assert found is not None
    assert found.mean[0] == pytest.approx(float(np.concatenate(expected).mean()), abs=1e-4)
    assert found.max[0] == pytest.approx(float(np.concatenate(expected).max()), abs=1e-4)


@pytest.mark.parametrize("form", ["axis_angle", "quaternion", "rotation_6d"])
def test_a_rotation_is_the_turn_from_the_state_to_the_target(form: str) -> None:
    numbers = list(range(hand(form).action_spec.dim - 1))  # said, as eight numbers would be taken for LIBERO's
    processor = processor_for(hand(form), ProcessorConfig(relative_actions=True, relative_to=numbers))
    episode = hand(form).episode(2)
    width = len(processor.action_spec.groups[1].names)
    part = slice(3, 3 + width)
    actions, state = (torch.from_numpy(each) for each in (episode.actions[None, 2:6], episode.proprio[2:3]))

    learned = processor.to_learn(actions, state)
    executed = processor.to_execute(learned, state)

    target, own = to_quaternion(actions[..., part].double(), form), to_quaternion(state[:, None, part].double(), form)
    turn = to_quaternion(learned[..., part].double(), form)
    expected = multiply(target, inverse(own).expand_as(target))
    torch.testing.assert_close((turn * expected).sum(-1).abs(), torch.ones(1, 4, dtype=torch.float64))
    again = to_quaternion(executed[..., part].double(), form)
    torch.testing.assert_close((again * target).sum(-1).abs(), torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(executed[..., :3], actions[..., :3])


@pytest.mark.parametrize("head", ["regression", "flow_matching"])
def test_a_policy_learns_it_and_gives_targets_again(head: str, arm: EpisodeDataset, tmp_path: Path) -> None:
    """With weights that say nothing, the mean of what is learned is given: the state, and the mean step from it."""
    from atlas.policies.base import load_policy
    from atlas.policies.modular.policy import ModularPolicy

    overrides = [*SMALL, *VISIONS["keypoints"], "model.processor.relative_actions=true", f"model.head.name={head}"]
    torch.manual_seed(0)
    processor = processor_for(arm, RELATIVE)
    policy = ModularPolicy(load_config({}, overrides).model, processor).eval()
    chunks = ChunkDataset(arm, np.arange(len(arm)), ["front"], image_size=32, horizon=4)
    batch = chunks.__getitems__([(0, 5), (0, 30)])

    terms, sampled = policy.losses_and_sample(batch)
    shifted = replace(batch, actions=batch.actions + 10, proprio=batch.proprio + 10)
    policy.save_pretrained(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")

    assert torch.isfinite(terms.loss)
    spread = 6 * torch.tensor(processor.statistics[0].relative_action.std[:5]) + 1e-3
    assert bool(((sampled[..., :5] - batch.proprio[:, None, :5]).abs() < spread).all())
    learned = [processor.to_learn(each.actions, each.proprio)[..., :5] for each in (batch, shifted)]
    torch.testing.assert_close(*learned, rtol=0, atol=1e-4)
    assert again.processor.relative == processor.relative
    torch.testing.assert_close(again.sample(batch), sampled)


def test_what_is_relative_to_what_can_be_said(arm: EpisodeDataset) -> None:
    said = ProcessorConfig(relative_actions=True, relative_to=[4, 3, 2, 1, 0])

    relative = processor_for(arm, said).relative

    assert relative is not None and relative.parts[0].state == (4, 3, 2, 1, 0)


def test_quaternions_of_another_order_may_be_in_the_state() -> None:
    dataset = hand("rotation_6d")
    config = {"relative_actions": True, "relative_rotation": "quaternion_wxyz", "relative_to": [0, 1, 2, 3, 4, 5, 6]}

    relative = relative_actions(dataset, ProcessorConfig.model_validate(config))

    assert relative is not None and relative.parts[1].state == (3, 4, 5, 6)
    assert relative.parts[1].form == "quaternion_wxyz"


def test_what_cannot_be_relative_is_refused(tmp_path: Path, arm: EpisodeDataset) -> None:
    with pytest.raises(InputError, match="have no targets"):
        relative_actions(MadeUpDataset(LIBERO), RELATIVE)
    with pytest.raises(InputError, match="Euler angles, which have no difference"):
        relative_actions(hand("euler_xyz"), RELATIVE)
    with pytest.raises(InputError, match=r"relative_to is \[0, 0\], but shoulder_pan.pos, .* need 5 different"):
        relative_actions(arm, ProcessorConfig(relative_actions=True, relative_to=[0, 0]))


def test_a_state_in_other_units_is_found_out(tmp_path: Path) -> None:
    class InRadians(Hand):
        def episode(self, index: int) -> Any:
            episode = super().episode(index)
            return MadeUpEpisode(episode.instruction, episode.actions, episode.proprio * 57.3)

    with pytest.raises(InputError, match=r"the position is not near the proprio .* 'proprio_?\w*'|another unit"):
        relative_actions(InRadians(hand("axis_angle").action_spec), RELATIVE)


def test_names_that_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    class Narrow(Hand):
        def __init__(self, spec: ActionSpec) -> None:
            super().__init__(spec)
            self.proprio_dim = spec.dim - 1

    with pytest.raises(InputError, match=r"Name the 6 dimensions in model.processor.relative_to; .* 0: state 0"):
        relative_actions(Narrow(hand("axis_angle").action_spec), RELATIVE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.processor.relative_to=[0, 1]"], "relative_actions is false"),
        (["model={type: smolvla, pretrained: x}", "model.processor.relative_actions=true"], "cannot be set for"),
    ],
)
def test_contradictions_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config({}, settings)


def test_conversions_keep_what_is_absolute(tmp_path: Path) -> None:
    """What is written out is the dataset's, whatever is learned from it."""
    dataset = hand("rotation_6d")
    convert(dataset, tmp_path / "copy", Conversion("lerobot", "png"), workers=1)  # type: ignore[arg-type]

    np.testing.assert_array_equal(open_dataset(tmp_path / "copy").numbers().actions, dataset.numbers().actions)


def test_a_chunk_that_goes_on_from_the_last_one_is_of_targets_too(arm: EpisodeDataset) -> None:
    """Guided by what is left of a chunk, a policy gives targets near the state, wherever the arm is."""
    from atlas.policies.modular.policy import ModularPolicy

    overrides = [
        *SMALL,
        *VISIONS["keypoints"],
        "model.processor.relative_actions=true",
        "model.head.name=flow_matching",
    ]
    torch.manual_seed(0)
    processor = processor_for(arm, RELATIVE)
    policy = ModularPolicy(load_config({}, overrides).model, processor).eval()
    batch = ChunkDataset(arm, np.arange(len(arm)), ["front"], image_size=32, horizon=4).__getitems__([(0, 5), (0, 30)])

    chunk = policy.sample_following(batch, batch.actions[:, :2], delay=1)

    spread = 6 * torch.tensor(processor.statistics[0].relative_action.std[:5]) + 1e-3  # type: ignore[union-attr]
    assert bool(((chunk[..., :5] - batch.proprio[:, None, :5]).abs() < spread).all())
