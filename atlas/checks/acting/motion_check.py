"""`timing`: do the actions of rollouts move the robot as those of training did: when, how far, along which axes.

Proprio is seen once a decision, and a decision has several actions. What each should have moved is known from training
(`MotionFit`: so many metres a frame, so many frames after the action); summed over the steps between two looks it is
what the hand should have moved then. It is compared with what it did, for actions that are shifted in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from atlas.checks.finding import Finding
from atlas.data.hdf5.gripper_values import CLEAR, fingers_follow, map_gripper
from atlas.data.motion import LAGS, MotionFit, tail_of
from atlas.data.proprio import LIBERO_PROPRIO
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.input_recorder import InputRecorder, PlayedDecisions

_SHIFTS = range(-3, 5)  # steps by which actions may come too late
_FEWEST, _FEWEST_MOVES = 30, 20  # pairs of looks
_EXPLAINED = 0.5  # of the motion's variance, from where on something can be said
_CLEARLY = 0.02  # by which another shift explains more
_FASTER, _SLOWER = 1.35, 0.74  # times as far as in training
_FEWEST_TOLD, _MOVES_FINGERS = 6, 0.15  # looks; of the range of training, at least once
_FIRST_LOOKS = 10  # of an episode: what follows may push against something
_MOVED_M = 0.01
_STALE = 0.1  # of the looks at which the hand has moved


@dataclass(frozen=True)
class Answer:
    """The explanation of the motion by shifted actions. by_shift: {steps: (R^2, metres per expected metre)}."""

    by_shift: dict[int, tuple[float, float]]

    @property
    def best(self) -> int:
        return max(self.by_shift, key=lambda shift: self.by_shift[shift][0])


def check_motion(shown: InputRecorder, processor: PolicyProcessor) -> Iterator[Finding]:
    """Compare the robot's motion with its actions, and find out whether pictures follow."""
    yield from _stale(shown)
    yield from _gripper(shown, processor)
    trained = processor.inputs.motion if processor.inputs is not None else None
    if trained is None:
        return
    ((_, part),) = processor.action_spec.spans("position")
    answer = explain(shown.episodes, trained, part)
    if answer is None:
        yield Finding("timing", "info", "too few decisions to say how the robot follows the actions")
        return
    yield from _judge(answer, shown, trained, part)


def explain(
    episodes: Sequence[PlayedDecisions],
    trained: MotionFit,
    position: slice,
    axes: Sequence[tuple[int, int]] | None = None,
) -> Answer | None:
    """None for too few decisions. position: the dimensions of the actions; axes: as those of `MotionFit`."""
    axes = trained.axes if axes is None else axes
    moved: list[np.ndarray] = []
    expected: dict[int, list[np.ndarray]] = {shift: [] for shift in _SHIFTS}
    for episode in episodes:
        looks = [decision for decision in episode.decisions if decision.actions is not None][:_FIRST_LOOKS]
        if len(looks) < 2:
            continue
        steps = np.cumsum([0, *(len(decision.actions) for decision in looks if decision.actions is not None)])
        actions = np.concatenate([d.actions for d in looks if d.actions is not None])[:, position]
        turned = np.stack([sign * actions[:, source] for source, sign in axes], 1)  # [T, 3]
        moved.append(np.diff(np.stack([decision.proprio[:3] for decision in looks]), axis=0))
        for shift in _SHIFTS:
            frames = _moves(turned, trained, shift)
            whole = np.concatenate([np.zeros((1, 3)), frames.cumsum(0)])
            expected[shift].append(np.diff(whole[steps[: len(looks)]], axis=0))
    if sum(map(len, moved)) < _FEWEST:
        return None
    y = np.concatenate(moved)
    return Answer({shift: _fit(np.concatenate(parts), y) for shift, parts in expected.items()})


def _moves(actions: np.ndarray, trained: MotionFit, shift: int) -> np.ndarray:
    """The motion [T, 3] of each step that actions [T, 3] should cause where they come `shift` steps late. Before the
    first there are none; for those that come early the last one goes on."""
    place = np.arange(len(actions))
    moves = np.zeros_like(actions)
    for lag, weight in zip(LAGS, trained.weights, strict=True):
        if lag >= 0:
            source = place - lag - shift
            taken = actions[np.clip(source, 0, len(actions) - 1)] * (source >= 0)[:, None]
            moves += weight * taken
    if trained.tail:
        source = np.clip(place - shift, 0, len(actions) - 1)
        moved_by = tail_of(actions)[source] * (place >= shift)[:, None, None]  # [T, parts, 3]
        moves += np.einsum("p,tpa->ta", np.array(trained.tail), moved_by)
    return moves


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    size = float((x**2).sum())
    if size < 1e-12:
        return 0.0, 0.0
    slope = float((x * y).sum()) / size
    return 1 - float(((y - slope * x) ** 2).sum()) / max(1e-12, float((y**2).sum())), slope


def _judge(answer: Answer, shown: InputRecorder, trained: MotionFit, part: slice) -> Iterator[Finding]:
    best = answer.best
    r2, slope = answer.by_shift[best]
    evidence = {
        "r2_by_shift": {shift: round(value, 3) for shift, (value, _) in answer.by_shift.items()},
        "times_as_far": round(slope, 3),
    }
    if r2 < _EXPLAINED or slope <= 0:
        yield _not_followed(r2, shown, trained, part, evidence)
        return
    if best != 0 and r2 > answer.by_shift[0][0] + _CLEARLY:
        when = f"{abs(best)} step{'s' if abs(best) > 1 else ''} {'late' if best > 0 else 'early'}"
        yield Finding(
            "timing",
            "error",
            f"the robot's motion fits actions that come {when} (R2 {r2:.2f}, and {answer.by_shift[0][0]:.2f} as they "
            "were planned), compared with training: actions are delayed, or observations are of another step",
            "Execute each action at the step it was planned for, and observe after the last action and not before it.",
            evidence,
            bugs=("late_actions", "observation_order"),
        )
    else:
        message = f"the robot moves when the actions say, as in training (R2 {r2:.2f})"
        yield Finding(
            "timing", "info", message, None, evidence, bugs=("late_actions", "observation_order", "state_source")
        )
    if not _SLOWER < slope < _FASTER:
        yield Finding(
            "timing",
            "error",
            f"an action moves the robot {slope:.2f} times as far as in training: the world runs at another rate, or "
            "takes actions in another unit",
            f"Run the world at the rate of the data{_rate(slope)}, and look at the controller's scale.",
            evidence,
            bugs=("control_rate",),
        )
    else:
        message = f"an action moves the robot {slope:.2f} times as far as in training"
        yield Finding("timing", "info", message, None, evidence, bugs=("control_rate",))


def _rate(slope: float) -> str:
    return f" ({slope:.0f} steps of it go by in one of the world's)" if slope > 1.5 else ""


def _not_followed(
    r2: float, shown: InputRecorder, trained: MotionFit, part: slice, evidence: dict[str, object]
) -> Finding:
    """Other axes may explain the motion: then proprio is in another order."""
    for places in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            axes = tuple(zip(places, signs, strict=True))
            other = explain(shown.episodes, trained, part, axes)
            if axes != trained.axes and other is not None and other.by_shift[other.best][0] > max(_EXPLAINED, r2 + 0.2):
                moves = ", ".join(
                    f"{'-' if sign < 0 else ''}{'xyz'[source]} moves proprio {i}"
                    for i, (source, sign) in enumerate(axes)
                )
                return Finding(
                    "timing",
                    "error",
                    f"the actions' axes are not those of proprio, as they were in training: {moves}",
                    "Compare the order and the frame of proprio in the dataset and in the environment.",
                    evidence,
                    bugs=("state_source",),
                )
    return Finding(
        "timing",
        "warning",
        f"proprio does not follow the actions as it did in training (R2 {r2:.2f}, and {trained.axes_r2:.2f} there)",
        "Compare what proprio is made of, its units and order, in the dataset and in the environment.",
        evidence,
        bugs=("state_source",),
    )


def _stale(shown: InputRecorder) -> Iterator[Finding]:
    """Pictures that stay the same while the hand moves. Proprio that begins with no position moves somehow, too."""
    moved = same = 0
    for episode in shown.episodes:
        looks = episode.decisions[:_FIRST_LOOKS]  # later the robot may have left a camera's sight
        for before, after in itertools.pairwise(looks):
            if np.abs(after.proprio[:3] - before.proprio[:3]).max() > _MOVED_M:
                moved += 1
                same += any(a == b for a, b in zip(before.pictures, after.pictures, strict=True))
    if moved < _FEWEST_MOVES:
        return
    evidence = {"looks": moved, "the_same": same}
    if same > _STALE * moved:
        yield Finding(
            "timing",
            "error",
            f"at {same / moved:.0%} of the looks a camera shows the same picture as before, and the robot has moved",
            "Wait for a new image at each step; look at the camera's rate and its buffer.",
            evidence,
            bugs=("stale_frames",),
        )
    else:
        message = f"pictures change whenever the robot moves ({moved} looks)"
        yield Finding("timing", "info", message, None, evidence, bugs=("stale_frames",))


def _gripper(shown: InputRecorder, processor: PolicyProcessor) -> Iterator[Finding]:
    """Whether the fingers do what the policy tells them."""
    for dimension, gripper in processor.action_spec.grippers:
        commanded, proprio = [], []
        for episode in shown.episodes:
            looks = [decision for decision in episode.decisions if decision.actions is not None]
            if len(looks) > 1:
                means = [d.actions[:, dimension].mean() for d in looks if d.actions is not None]
                commanded.append(map_gripper(np.array(means), gripper.open, gripper.closed))
                proprio.append(np.stack([decision.proprio for decision in looks]))
        if not commanded or np.ptp(np.concatenate(commanded)) < 1.0:
            continue  # it was told one thing only: `diagnosis` says so
        agreement = fingers_follow(commanded, proprio)
        if agreement is None:
            agreement = 0.0 if _fingers_rest(proprio) else None
        if agreement is None:
            continue
        evidence = {"correlation": round(agreement, 3)}
        never = _never_moved(commanded, proprio, processor)
        if agreement <= CLEAR and never is not None:
            yield Finding(
                "gripper",
                "error",
                f"the {gripper.label} never {never}, though the policy tells it to",
                "Compare the gripper's range and threshold where actions are executed: -1 is open and +1 closed.",
                evidence,
                bugs=("gripper",),
            )
        elif agreement > CLEAR:
            yield Finding(
                "gripper",
                "error",
                f"the {gripper.label} opens where the policy closes it (correlation {agreement:.2f})",
                "Negate the gripper's action, or say what is open and what is closed, where actions are executed.",
                evidence,
                bugs=("gripper",),
            )
        elif agreement > -CLEAR:
            yield Finding(
                "gripper",
                "warning",
                f"the fingers do not follow the {gripper.label}'s action (correlation {agreement:.2f})",
                "Compare the gripper's range and threshold where actions are executed: -1 is open and +1 closed.",
                evidence,
                bugs=("gripper",),
            )
        else:
            message = f"the fingers follow the {gripper.label}'s action (correlation {agreement:.2f})"
            yield Finding("gripper", "info", message, None, evidence, bugs=("gripper",))


def _never_moved(
    commanded: Sequence[np.ndarray], proprio: Sequence[np.ndarray], processor: PolicyProcessor
) -> str | None:
    """'closes' or 'opens', where the fingers, LIBERO's last two numbers of proprio, never do so when they are told to;
    commanded: from -1, open, to 1."""
    statistics = processor.statistics[0].proprio
    reach = sum(high - low for high, low in zip(statistics.max[-2:], statistics.min[-2:], strict=True))
    if reach <= 0:
        return None
    moved = np.concatenate([np.diff(np.abs(each[:, -2] - each[:, -1])) for each in proprio])
    asked = np.concatenate([each[:-1] for each in commanded])
    for name, closing in (("closes", 1), ("opens", -1)):
        when = asked * closing > 0.5
        if when.sum() >= _FEWEST_TOLD and (-closing * moved[when]).max() < _MOVES_FINGERS * reach:
            return name
    return None


def _fingers_rest(proprio: Sequence[np.ndarray]) -> bool:
    """Whether proprio ends in a pair of fingers, as LIBERO's does, that never move."""
    pairs = np.concatenate([each[:, -2:] for each in proprio])
    opposite = bool(np.allclose(pairs[:, 0], -pairs[:, 1], atol=2e-3)) and float(np.abs(pairs).min()) > 1e-3
    return proprio[0].shape[1] == len(LIBERO_PROPRIO) and opposite and float(pairs.std(0).max()) < 1e-4
