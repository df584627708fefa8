"""A dataset replayed through a server: who remembers it makes no error, and who does not look is told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.errors import InputError
from atlas.serving.dry_run import dry_run
from atlas.serving.server import ServerSettings
from atlas.types import Observation
from tests.action_spaces import NO_GRIPPER
from tests.policies.test_policy import HORIZON
from tests.rollout.test_executor import acting
from tests.serving.running import TellingActor


class RememberingActor(TellingActor):
    """Does what was done in the frame whose proprio and image it is shown."""

    def __init__(self, dataset: EpisodeDataset, number: int) -> None:
        super().__init__()
        self._episode = dataset.episode(number)
        self.shown: list[int] = []

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        return {number: self._recorded(seen) for number, seen in observations.items()}

    def _recorded(self, seen: Observation) -> np.ndarray:
        same = np.flatnonzero((self._episode.proprio == seen.proprio).all(-1))
        if not len(same):  # the server asks about black images before anybody comes
            return np.zeros((HORIZON, 7), np.float32)
        frame = int(same[0])
        np.testing.assert_array_equal(seen.images["agentview"], self._episode.images("agentview", [frame])[0])
        assert seen.instruction == self._episode.instruction
        self.shown.append(frame)
        actions = self._episode.actions[frame : frame + HORIZON]
        return np.concatenate([actions, np.zeros((HORIZON - len(actions), 7), np.float32)])


def test_who_remembers_makes_no_error(cubes_dataset: Path) -> None:
    dataset = open_dataset(cubes_dataset)
    actor = RememberingActor(dataset, 0)

    found = dry_run(actor, ServerSettings(), dataset, episodes=1)

    assert found.errors["pose_l1_error"][0] == 0 < found.errors["pose_l1_error"][1]
    assert found.errors["gripper_accuracy"][0] == 1 and found.looks
    assert found.frames == len(actor.shown) and actor.shown[0] == 0 and len(set(actor.shown)) == len(actor.shown)
    assert 0 < found.latency_ms[0] <= found.latency_ms[1]


def test_who_does_not_look_is_told_and_the_worst_frame_is_named(cubes_dataset: Path) -> None:
    dataset = open_dataset(cubes_dataset)

    found = dry_run(TellingActor(), ServerSettings(execute=2), dataset, episodes=2)

    episode, frame, error = found.worst
    assert not found.looks and episode in (0, len(dataset) - 1) and 0 <= frame < dataset.lengths[episode]
    assert error >= found.errors["pose_l1_error"][0]
    assert json.loads(json.dumps(found.to_dict()))["looks"] is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cameras": ("front",)}, r"looks through \['front'\]"),
        ({"proprio_dim": 7}, "proprio has 7 numbers, the dataset's 8"),
        ({"action_spec": NO_GRIPPER}, "groups is"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(change: dict[str, object], words: str, cubes_dataset: Path) -> None:
    actor = TellingActor()
    actor.processor = replace(actor.processor, **change)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=words):
        dry_run(actor, ServerSettings(), open_dataset(cubes_dataset))


def test_the_command_says_what_it_found(
    atlas: Callable[..., int], tmp_path: Path, cubes_dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A policy that was never trained: it is no nearer to the recorded actions than their mean."""
    acting("regression").save_pretrained(tmp_path)

    code = atlas("serve", "--checkpoint", str(tmp_path), "--dry-run", str(cubes_dataset))

    said = capfd.readouterr()
    assert code == 1 and "do not let them move a robot" in said.err and "Traceback" not in said.err
    assert "pose_l1_error" in said.out and "furthest off" in said.out
