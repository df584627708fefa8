"""A policy that acts as it was validated is found to do so; what has changed since is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from atlas.checks.acting.answers_check import check_answers
from atlas.checks.acting.bug_walk import walk
from atlas.checks.acting.motion_check import check_motion
from atlas.checks.acting.start_check import check_starts
from atlas.checks.finding import Finding
from atlas.checks.numbers import count_flips
from atlas.checks.silent_bugs import BUGS, SILENT_BUGS
from atlas.config import load_config
from atlas.data.inputs import CameraSummary, TrainingInputs
from atlas.data.motion import LAGS, MotionFit
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor, Scaler
from atlas.policies.reference_answers import FILE, ReferenceAnswers
from atlas.rollout.input_recorder import InputRecorder
from atlas.training.reference_samples import keep_answers
from atlas.types import ActionSpec, Batch, Observation

SIZE, RAW = 24, 32
RNG = np.random.default_rng(0)
ACTIONS, PROPRIO = RNG.normal(0, 0.4, (200, 7)), RNG.normal(0, 1, (200, 8))
IMAGES = RNG.integers(0, 255, (6, RAW, RAW, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with its reference answers, as a checkpoint has it."""
    config = load_config(None, ["model.fusion.dim=32", "model.fusion.dropout=0.1", "model.vision.width=8"])
    proprio = PROPRIO.copy()
    proprio[:, 6:] = np.linspace(0, 0.04, 200)[:, None] * [1, -1]
    statistics = DatasetStatistics("made up", 200, 2, ColumnStatistics.of(ACTIONS), ColumnStatistics.of(proprio))
    processor = PolicyProcessor(("front",), RAW, SIZE, 8, 8, ActionSpec(), (statistics,), config.model.processor)
    torch.manual_seed(0)
    policy = ModularPolicy(config.model, processor).eval()
    with torch.no_grad():  # it has learned nothing: so that what it is told matters
        for weight in policy.head.parameters():
            weight.mul_(2)
    observations = [Observation({"front": i}, proprio[n].astype(np.float32), "lift") for n, i in enumerate(IMAGES)]
    batch = processor.batch(observations)
    batch = replace(batch, images=batch.unit_images(), key=torch.arange(len(IMAGES)))
    data = SimpleNamespace(camera_images=lambda samples: {"front": IMAGES[[i for _, i in samples]]})
    samples = [(0, i) for i in range(len(IMAGES))]
    keep_answers(policy, data, samples, batch, policy.sample(batch), 7, torch.float32, 4)  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("saved")
    policy.save_pretrained(folder)
    return folder


def wrong(findings: list[Finding]) -> set[str]:
    return {bug for finding in findings if finding.severity != "info" for bug in finding.bugs}


def test_a_policy_answers_as_it_did(saved: Path) -> None:
    policy = load_policy(saved)

    found = list(check_answers(policy))

    assert wrong(found) == set(), found
    ruled_out = {bug for finding in found for bug in finding.bugs}
    assert ruled_out >= {"unnormalised", "statistics", "average", "precision", "dropout", "words", "resize"}
    answers = policy.reference_answers
    assert answers is not None and (answers.step, answers.execute, len(answers.instructions)) == (7, 4, 6)
    assert answers.observations[2].images["front"].tolist() == IMAGES[2].tolist()


def min_max(policy: ModularPolicy) -> None:
    ends = {6: (-1.0, 1.0)}
    policy.action_scaler = Scaler([s.action for s in policy.processor.statistics], "min_max", ends)


def statistics(policy: ModularPolicy) -> None:
    policy.proprio_scaler = Scaler([ColumnStatistics.of(3 * PROPRIO + 1)], "mean_std")


def train_vision(policy: ModularPolicy) -> None:
    policy.vision.train()


def other_weights(policy: ModularPolicy) -> None:
    with torch.no_grad():
        next(policy.parameters()).mul_(1.01)


def low_precision(policy: ModularPolicy) -> None:
    sample = policy.sample
    policy.sample = lambda *a: torch.autocast("cpu", torch.bfloat16)(sample)(*a)  # type: ignore[method-assign]


def cut(policy: ModularPolicy) -> None:
    policy.language._max_length = 2
    policy.language._cache.clear()


def templated(policy: ModularPolicy) -> None:
    read = policy.language.forward
    policy.language.forward = lambda texts: read([f"In: {text} Out:" for text in texts])


def resized(policy: ModularPolicy) -> None:
    policy.processor = replace(policy.processor, image_size=SIZE - 1)


def shown(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[ModularPolicy], None]:
    """What stands before the network does something to the images."""

    def plant(policy: ModularPolicy) -> None:
        batch_of = PolicyProcessor.batch

        class Changed(PolicyProcessor):
            def batch(self, *arguments: object) -> Batch:
                batch = batch_of(self, *arguments)  # type: ignore[arg-type]
                assert batch.images is not None
                return replace(batch, images=change(batch.images).contiguous())

        policy.processor = Changed(**vars(policy.processor))

    return plant


@pytest.mark.parametrize(
    ("bug", "plant"),
    [
        ("unnormalised", min_max),
        ("statistics", statistics),
        ("average", other_weights),
        ("precision", lambda policy: policy.to(torch.bfloat16)),
        ("precision", low_precision),
        ("train_mode", train_vision),
        ("dropout", lambda policy: policy.train()),
        ("words", cut),
        ("words", templated),
        ("resize", resized),
        ("resize", shown(lambda images: images // 2)),
        ("turned", shown(lambda images: images.flip(-1))),
        ("colours", shown(lambda images: images.flip(2))),
    ],
)
def test_what_has_changed_since_is_named(bug: str, plant: Callable[[ModularPolicy], object], saved: Path) -> None:
    policy = load_policy(saved)
    plant(policy)  # type: ignore[arg-type]

    found = list(check_answers(policy))

    assert wrong(found) == {bug}, found


def test_a_checkpoint_without_answers_leaves_it_undecided(saved: Path, tmp_path: Path) -> None:
    policy = load_policy(saved)
    policy.reference_answers = None
    assert "keeps no reference answers" in [f.message for f in check_answers(policy)][-1]

    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is damaged"):
        ReferenceAnswers.load(tmp_path)
    policy.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / FILE).exists()


# ---- how the robot follows -----------------------------------------------------------------------------------

WEIGHTS = np.where(LAGS == 0, 0.006, np.where(LAGS == 1, 0.004, 0.0))
MOTION = MotionFit(WEIGHTS, 0.9, 0, 0.2, ((0, 1), (1, 1), (2, 1)), 0.9)


def rollouts(
    late: int = 0,
    times: float = 1.0,
    order: tuple[int, ...] = (0, 1, 2),
    stale: bool = False,
    gripper: float = 1.0,
    shuts: bool = True,
    execute: int = 4,
) -> InputRecorder:
    """Of a hand that does what it is told, but for what is asked for here."""
    rng, recorder = np.random.default_rng(1), InputRecorder()
    for episode in range(8):
        actions = np.repeat(rng.uniform(-1, 1, (30, 7)), 2, axis=0)
        closes = np.arange(60) > 40
        actions[:, 6] = np.where(closes, 1.0, -1.0)
        sent = np.concatenate([np.zeros((late, 7)), actions])[:60]
        moved = np.stack([np.convolve(sent[:, d], times * WEIGHTS[LAGS >= 0])[:60] for d in range(3)], 1)
        places = np.concatenate([np.zeros((1, 3)), moved.cumsum(0)])
        fingers = [0.02]
        for told in actions[:, 6]:
            moves = -0.004 * gripper * (told if shuts else -1.0)
            fingers.append(float(np.clip(fingers[-1] + moves, 0, 0.04)))
        for frame in range(0, 60, execute):
            look = frame // execute
            image = np.full((RAW, RAW, 3), look // 2 if stale else look, np.uint8)
            finger = fingers[frame]
            proprio = np.concatenate([places[frame][list(order)], np.zeros(3), [finger, -finger]])
            observation = Observation({"front": image}, proprio, "lift")
            recorder.add_observation(observation, frame == 0, ["front"], RAW, episode, episode)
            recorder.add_actions(actions[frame : frame + execute], episode)
    return recorder


def judged(recorder: InputRecorder, saved: Path) -> list[Finding]:
    inputs = TrainingInputs({}, ("lift",), None, MOTION)
    return list(check_motion(recorder, replace(PolicyProcessor.load(saved / "processor.json"), inputs=inputs)))


def test_a_robot_that_follows_is_found_to_follow(saved: Path) -> None:
    found = judged(rollouts(), saved)

    assert wrong(found) == set(), found
    assert {bug for f in found for bug in f.bugs} >= {"late_actions", "control_rate", "gripper", "stale_frames"}


@pytest.mark.parametrize(
    ("bug", "how"),
    [
        ("late_actions", {"late": 1}),
        ("late_actions", {"late": 2}),
        ("control_rate", {"times": 2.0}),
        ("control_rate", {"times": 0.5}),
        ("state_source", {"order": (1, 0, 2)}),
        ("stale_frames", {"stale": True}),
        ("gripper", {"gripper": -1.0}),
        ("gripper", {"gripper": 0.0}),
        ("gripper", {"shuts": False}),
    ],
)
def test_a_robot_that_does_not_follow_is_named(bug: str, how: dict[str, float], saved: Path) -> None:
    found = judged(rollouts(**how), saved)  # type: ignore[arg-type]

    assert bug in wrong(found) and wrong(found) <= {bug, "observation_order"}, found


# ---- how episodes begin --------------------------------------------------------------------------------------


def scene(n: int) -> np.ndarray:
    """uint8 [n, RAW, RAW, 3]: a table with things on it, in places that differ a little; no row is like the next."""
    rng = np.random.default_rng(2)
    across, down = np.meshgrid(np.arange(RAW), np.arange(RAW))
    images = np.stack([60 + 2 * across + down] * 3, -1)[None].repeat(n, 0).astype(np.uint8)
    for image in images:
        for colour, (x, y) in enumerate(((6, 8), (18, 20), (22, 6))):
            x, y = x + int(rng.integers(-1, 2)), y + int(rng.integers(-1, 2))
            image[y : y + 6, x : x + 6, colour] = 220
    return images


def begun(change: Callable[[np.ndarray], np.ndarray], proprio: float = 0.0) -> set[str]:
    """The bugs that are named of episodes that begin with these pictures."""
    summary = CameraSummary.of(scene(20), scene(20))
    inputs = TrainingInputs({"front": summary}, ("lift",), ((0.0, 0.5), (0.1, 0.5)))
    recorder = InputRecorder()
    for image in scene(10):
        observation = Observation({"front": change(image)}, np.array([0.05, 0.5 + proprio]), "lift")
        recorder.add_observation(observation, True, ["front"], RAW)
    return wrong(list(check_starts(recorder, inputs, np.array([-1.0, 0.4]), np.array([1.0, 0.6]))))


def test_how_episodes_begin_is_compared() -> None:
    def cropped(image: np.ndarray) -> np.ndarray:
        rows = np.clip((np.arange(RAW) * 0.8 + 0.1 * RAW).astype(int), 0, RAW - 1)
        return image[np.ix_(rows, rows)]

    assert begun(lambda image: image) == set()
    assert begun(cropped) == {"resize"}
    assert begun(lambda image: image[::2, ::2].repeat(2, 0).repeat(2, 1)) == {"resize"}
    assert begun(lambda image: image, proprio=0.002) == {"settling"}
    assert begun(lambda image: image, proprio=0.2) == {"state_source"}


def test_rotations_that_flip_are_counted() -> None:
    angles = np.linspace(3.0, 3.3, 40)
    smooth = np.stack([angles, 0 * angles, 0 * angles], 1)
    flipped = np.where(angles[:, None] > np.pi, smooth * (1 - 2 * np.pi / angles[:, None]), smooth)

    assert count_flips(smooth) == 0 and count_flips(flipped) == 1
    assert count_flips(np.random.default_rng(0).normal(0, 0.5, (50, 3))) == 0


# ---- the walk ------------------------------------------------------------------------------------------------


def test_a_walk_says_of_each_bug_what_is_known_and_ends_in_one_sentence() -> None:
    found = [
        Finding("view", "info", "looks as in training", bugs=("turned",)),
        Finding("lag", "warning", "the hand begins late", "Look at the delay.", bugs=("late_actions",)),
        Finding("view", "error", "red and blue are swapped", "Deliver RGB.", bugs=("colours",)),
    ]

    diagnosis = walk(found, (0, 10))

    assert [line.bug for line in diagnosis.lines] == list(SILENT_BUGS) and len(BUGS) == len(SILENT_BUGS)
    status = {line.bug.id: line.status for line in diagnosis.lines}
    assert (status["turned"], status["colours"], status["late_actions"]) == ("ok", "problem", "problem")
    assert status["dropout"] == "undecided"
    assert diagnosis.advice == "Red and blue are swapped: deliver RGB."  # the error before the warning
    assert "No known silent bug explains 10 failures" in walk([], (0, 10)).advice
    assert "Nothing needs to be done" in walk([], (10, 10)).advice


def test_layers_of_other_kinds_do_not_count_as_train_mode(saved: Path) -> None:
    policy = load_policy(saved)
    policy.extra = nn.Identity()  # which has no mode that matters

    assert wrong(list(check_answers(policy))) == set()
