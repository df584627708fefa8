"""`atlas eval --diagnose`: does the policy see in evaluation what it saw in training?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from atlas.checks.acting.answers_check import check_answers
from atlas.checks.acting.motion_check import check_motion
from atlas.checks.acting.start_check import check_starts
from atlas.checks.finding import Finding
from atlas.checks.numbers import LIBERO_ROTATION, count_flips
from atlas.checks.silent_bugs import BugId
from atlas.checks.view_page import TURNS, Match, colours_reversed, compare
from atlas.data.inputs import CameraSummary, TrainingInputs, follow_map, frame_numbers, thumbnail_of
from atlas.data.proprio import LIBERO_PROPRIO
from atlas.data.statistics import ColumnStatistics
from atlas.errors import did_you_mean
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.input_recorder import InputRecorder
from atlas.rollout.success_report import EpisodeOutcome

_MOST, _SOME = 0.5, 0.1  # shares of what was seen that lie outside what was trained on
_SEVERAL = 0.25  # the same, for pictures
_WIDER = 0.5  # of the range of training, added on both sides: a few frames do not show all of it
_LEVELS = 12.0  # the same in levels of 255
_PROPRIO = 0.1  # the same for proprio, as a share of its range
_SMALLEST_RANGE = 1e-3
_CLEARLY, _ALIKE = 0.15, 0.7  # correlations of mean images that show that turning them another way fits
_FOLLOWS, _CLEARLY_FOLLOWS = 0.4, 0.3  # correlations of where the hand is seen, likewise
_STILL = 0.1  # of training's deviation
_COLOURS = ("red", "green", "blue", "contrast")


def diagnose(
    shown: InputRecorder,
    processor: PolicyProcessor,
    env: str,
    outcomes: Sequence[EpisodeOutcome] = (),
    execute: int | None = None,
) -> list[Finding]:
    """Compare pictures, proprio and instructions of an evaluation with those of training, and the policy's actions with
    the recorded ones. outcomes: what was scored; execute: the actions of each chunk that were to be executed."""
    statistics = processor.statistics[processor.source_for(env)]
    found = list(check_answers(shown.policy)) if shown.policy is not None else []
    found += _pictures(shown, processor.inputs)
    found += _proprio(shown, statistics.proprio)
    if processor.inputs is not None:
        low, high = np.array(statistics.proprio.min), np.array(statistics.proprio.max)
        known = {bug for f in found if f.severity != "info" for bug in f.bugs}  # what is said once is enough
        explains = {"view": {"turned", "colours", "cameras"}, "starts": {"state_source", "rotation_flip"}}
        starts = check_starts(shown, processor.inputs, low, high)
        found += (finding for finding in starts if not explains[finding.check] & known)
    found += _language(shown, processor.inputs, outcomes)
    found += _actions(shown, statistics.action, processor)
    found += _chunks(shown, execute)
    found += check_motion(shown, processor)
    return found


def _chunks(shown: InputRecorder, execute: int | None) -> Iterator[Finding]:
    """Whether as many actions of a chunk are executed as where the policy was validated. execute: so many were."""
    validated = shown.policy.validated_execute if shown.policy is not None else None
    meant = execute if validated is None else validated
    if meant is None:
        return
    counts = [len(d.actions) for episode in shown.episodes for d in episode.decisions if d.actions is not None]
    executed = int(np.median(counts))
    evidence = {"executed": executed, "meant": meant}
    if executed == meant:
        message = f"{executed} actions of each chunk are executed, as where it was validated"
        yield Finding("timing", "info", message, None, evidence, bugs=("whole_chunk",))
    else:
        yield Finding(
            "timing",
            "warning",
            f"{executed} actions of each chunk are executed, and {meant} were where it was validated",
            f"Evaluate with --execute {meant}, or validate with evaluation.execute={executed}.",
            evidence,
            bugs=("whole_chunk",),
        )


# ---- pictures --------------------------------------------------------------------------------------------------


def _pictures(shown: InputRecorder, inputs: TrainingInputs | None) -> Iterator[Finding]:
    if inputs is None:
        yield Finding("view", "info", "the policy keeps no summary of the pictures it was trained on")
        return
    thumbnails = {camera: summary.thumbnail[None] for camera, summary in inputs.cameras.items()}
    for camera, summary in inputs.cameras.items():
        views = thumbnail_of(shown.start_images(camera))[None]
        yield _turned(camera, views, thumbnails) or _mirrored(camera, shown, summary) or _light(camera, shown, summary)


def _turned(camera: str, views: np.ndarray, trained: dict[str, np.ndarray]) -> Finding | None:
    """Whether the mean first picture is training's, but turned, from another camera, or with other colours."""
    matches = compare(views, trained)
    best = matches[0]
    own = next(m for m in matches if m.camera == camera and m.turn is TURNS[0])
    evidence = {
        "camera": camera,
        "correlation": round(own.correlation, 3),
        "best": {"camera": best.camera, "transform": best.turn.name, "correlation": round(best.correlation, 3)},
    }
    if best.correlation > max(_ALIKE, own.correlation + _CLEARLY):
        return _other_view(camera, best, evidence)
    if colours_reversed(views, trained[camera]):
        return Finding(
            "view",
            "error",
            f"camera '{camera}' has red and blue swapped, compared with training",
            "Make the environment deliver RGB, as the training data is.",
            evidence,
            bugs=("colours",),
        )
    return None


def _mirrored(camera: str, shown: InputRecorder, summary: CameraSummary) -> Finding | None:
    """Whether another place of the picture goes with the hand than in training: a symmetrical scene hides a turn from
    its mean picture."""
    images = shown.later_images(camera)
    seen = follow_map(images, shown.proprio[~shown.starts][: len(images)])
    if summary.follows is None or seen is None:
        return None
    then = summary.follows.astype(np.float64)
    maps = {turn: turn(seen.astype(np.float64)) for turn in TURNS}
    alike = {t: float((m * then).sum() / max(1e-6, np.linalg.norm(m) * np.linalg.norm(then))) for t, m in maps.items()}
    best, own = max(TURNS, key=lambda turn: alike[turn]), alike[TURNS[0]]
    if best is TURNS[0] or alike[best] < max(_FOLLOWS, own + _CLEARLY_FOLLOWS):
        return None
    return Finding(
        "view",
        "error",
        f"camera '{camera}' shows what it showed, but {best.name} in training: so seen, its pictures go with the hand "
        f"as they did (correlation {alike[best]:.2f}, and {own:.2f} as it is)",
        "Correct data.orientation and train again, or the environment's; `atlas data check` says which it is.",
        {"camera": camera, "correlation": round(own, 3), "best": best.name},
        bugs=("turned",),
    )


def _other_view(camera: str, best: Match, evidence: dict[str, object]) -> Finding:
    ways = [f"what '{best.camera}' showed"] if best.camera != camera else ["what it showed"]
    if best.turn is not TURNS[0]:
        ways.append(f"but {best.turn.name}")
    fix = "Correct data.orientation and train again, or the environment's; `atlas data check` says which is wrong."
    if best.camera != camera:
        fix = "Give both cameras the names that they had in training."
    bug: BugId = "cameras" if best.camera != camera else "turned"
    message = f"camera '{camera}' shows {', '.join(ways)} in training"
    return Finding("view", "error", message, fix, evidence, bugs=(bug,))


def _light(camera: str, shown: InputRecorder, summary: CameraSummary) -> Finding:
    """Whether brightness, colours and contrast are within those of training: at the starts, which the policy cannot
    change, and afterwards."""
    low, high = np.array(summary.low), np.array(summary.high)
    slack = _WIDER * (high - low) + _LEVELS
    parts = {"starts": frame_numbers(shown.start_images(camera)), "later": frame_numbers(shown.later_images(camera))}
    outside = {
        name: ((numbers < low - slack) | (numbers > high + slack)).mean(0) if len(numbers) else np.zeros(4)
        for name, numbers in parts.items()
    }
    evidence = {
        "camera": camera,
        "share_outside": {name: np.round(shares, 3).tolist() for name, shares in outside.items()},
        "trained": {name: [float(a), float(b)] for name, a, b in zip(_COLOURS, low, high, strict=True)},
    }
    when = "starts" if outside["starts"].max() > _SEVERAL else "later"
    worst, share = int(outside[when].argmax()), float(outside[when].max())
    if share <= _SEVERAL:
        count = sum(map(len, parts.values()))
        message = f"camera '{camera}' looks as in training ({count} pictures)"
        return Finding("view", "info", message, None, evidence, bugs=("turned", "colours", "cameras"))
    return Finding(
        "view",
        "error" if when == "starts" and share > _MOST else "warning",
        f"camera '{camera}' has other lighting than in training: in {share:.0%} of the pictures "
        f"{'at the start' if when == 'starts' else 'after the start'} {_COLOURS[worst]} is "
        f"{parts[when][:, worst].mean():.0f} of 255 on average, and was {low[worst]:.0f} to {high[worst]:.0f}",
        "Compare how images are made and scaled (8 bits, 0 to 255), and whether a camera is black or points elsewhere.",
        evidence,
    )


# ---- numbers and words -----------------------------------------------------------------------------------------


def _proprio(shown: InputRecorder, trained: ColumnStatistics) -> Iterator[Finding]:
    """Check proprio at the starts, which the policy cannot change, and after them, which it can."""
    yield from _flips(shown)
    low, high = np.array(trained.min), np.array(trained.max)
    slack = _PROPRIO * np.maximum(high - low, _SMALLEST_RANGE)
    outside = (shown.proprio < low - slack) | (shown.proprio > high + slack)  # [observations, P]
    starts, later = outside[shown.starts], outside[~shown.starts]
    of_starts = starts.mean(0)
    of_later = later.mean(0) if len(later) else np.zeros_like(of_starts)
    evidence = {
        "share_outside_at_starts": np.round(of_starts, 3).tolist(),
        "share_outside_later": np.round(of_later, 3).tolist(),
    }
    if of_starts.max() > _SOME:
        worst = int(of_starts.argmax())
        values = shown.proprio[shown.starts, worst]
        yield Finding(
            "stats",
            "error" if of_starts.max() > _MOST else "warning",
            f"{of_starts.max():.0%} of the episodes start outside training's proprio: number {worst} is "
            f"{values.mean():.4g} on average, and was {low[worst]:.4g} to {high[worst]:.4g}",
            "Compare what proprio consists of, its units and order, in the dataset and in the environment.",
            evidence,
            bugs=("state_source",),
        )
    elif of_later.max() > _SOME:
        worst = int(of_later.argmax())
        yield Finding(
            "stats",
            "warning",
            f"the policy leaves what it was trained on: number {worst} of proprio is outside training's range in "
            f"{of_later.max():.0%} of what it sees after the start",
            "Look at the films: it may need demonstrations that recover, or its actions mean something else here.",
            evidence,
        )
    else:
        yield Finding("stats", "info", "proprio lies within what was trained on", None, evidence)


def _flips(shown: InputRecorder) -> Iterator[Finding]:
    """Check rotations in proprio that is as long as LIBERO's, and has a rotation where LIBERO's has one."""
    if shown.proprio.shape[1] != len(LIBERO_PROPRIO):
        return
    looks = [np.stack([d.proprio[LIBERO_ROTATION] for d in episode.decisions]) for episode in shown.episodes]
    flips = [count_flips(rotations) for rotations in looks]
    if any(flips):
        yield Finding(
            "stats",
            "error",
            f"proprio's rotation jumps by a whole turn in {sum(n > 0 for n in flips)} of {len(flips)} episodes: "
            "axis-angle flips at 180 degrees",
            "Deliver rotations without jumps, as in training: keep each on the side of the one before.",
            {"flips": sum(flips)},
            bugs=("rotation_flip",),
        )
    else:
        yield Finding("stats", "info", "proprio's rotation does not jump", bugs=("rotation_flip",))


def _language(
    shown: InputRecorder, inputs: TrainingInputs | None, outcomes: Sequence[EpisodeOutcome]
) -> Iterator[Finding]:
    yield from _told(shown, outcomes)
    if inputs is None:
        return
    unknown = sorted(shown.instructions - set(inputs.instructions))
    if not unknown:
        message = f"the policy was trained on all {len(shown.instructions)} instructions"
        yield Finding("language", "info", message, None, {"instructions": sorted(shown.instructions)})
        return
    known = {word for text in inputs.instructions for word in _words(text)}
    strange = sorted({word for text in unknown for word in _words(text)} - known)
    words = f", with words that it never read: {', '.join(strange[:8])}" if strange else ", though it knows the words"
    yield Finding(
        "language",
        "error" if len(unknown) == len(shown.instructions) else "warning",
        f"the policy was not trained on {len(unknown)} of {len(shown.instructions)} instructions, such as "
        f"'{unknown[0]}'{words}.{did_you_mean(unknown[0], inputs.instructions)}",
        "Use the training data's words for tasks, or check how its instructions were loaded.",
        {"unknown": unknown, "unknown_words": strange, "trained": list(inputs.instructions[:50])},
    )


def _told(shown: InputRecorder, outcomes: Sequence[EpisodeOutcome]) -> Iterator[Finding]:
    """Whether the policy was told what was scored."""
    scored = {outcome.seed: outcome.instruction for outcome in outcomes}
    pairs = [(e.instruction, scored[e.seed]) for e in shown.episodes if e.seed is not None and e.seed in scored]
    wrong = [(told, meant) for told, meant in pairs if told != meant]
    evidence = {"episodes": len(pairs), "told_another": len(wrong)}
    if wrong:
        all_the_same = len({told for told, _ in pairs}) == 1
        yield Finding(
            "language",
            "error",
            f"in {len(wrong)} of {len(pairs)} episodes the policy was told another task than was scored, such as "
            f"'{wrong[0][0]}' for '{wrong[0][1]}'" + ("; all were told the same" if all_the_same else ""),
            "Give each environment its own instruction.",
            evidence,
            bugs=("one_instruction",),
        )
    elif pairs:
        message = f"the policy was told what was scored, in {len(pairs)} episodes"
        yield Finding("language", "info", message, None, evidence, bugs=("one_instruction",))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _actions(shown: InputRecorder, trained: ColumnStatistics, processor: PolicyProcessor) -> Iterator[Finding]:
    """The policy's actions, relative to the range of training's actions (-1 to 1)."""
    names = processor.action_spec.names
    low, high = np.array(trained.min), np.array(trained.max)
    centre, half = (low + high) / 2, np.maximum((high - low) / 2, _SMALLEST_RANGE)
    scaled = (shown.actions - centre) / half  # [steps, A]
    outside = (np.abs(scaled) > 1 + 2 * _PROPRIO).mean(0)
    deviation = scaled.std(0) / np.maximum(np.array(trained.std) / half, 1e-6)
    evidence = {
        "share_outside": {n: round(float(v), 3) for n, v in zip(names, outside, strict=True)},
        "deviation_of_training": {n: round(float(v), 3) for n, v in zip(names, deviation, strict=True)},
    }
    still = [n for n, d, s in zip(names, deviation, trained.std, strict=True) if d < _STILL and s > _SMALLEST_RANGE]
    well = True
    if outside.max() > _SOME:
        well = False
        yield Finding(
            "actions",
            "warning",
            f"{outside.max():.0%} of the actions in {names[int(outside.argmax())]} lie outside training's range",
            "Compare the statistics in the policy's processor.json with those of the data.",
            evidence,
        )
    if still:
        well = False
        yield Finding(
            "actions",
            "warning",
            f"the policy hardly varies its actions in {still}: by less than a tenth of training's deviation",
            "It has learned an average; train for longer, or check that it sees anything (--blind as the reference).",
            evidence,
        )
    for dimension, gripper in processor.action_spec.grippers:
        closed = gripper.closed_share(shown.actions[:, dimension]) > 0.5
        was_both = low[dimension] < (gripper.open + gripper.closed) / 2 < high[dimension]
        if (closed.all() or not closed.any()) and was_both and names[dimension] not in still:
            well = False
            what = "open" if not closed.any() else "closed"
            yield Finding(
                "gripper",
                "warning",
                f"the policy keeps the {gripper.label} {what} all the time, but in training it was both",
                "Look at the gripper's error in validation, and at its sign in the data: `atlas data check`.",
                {"share_closed": float(closed.mean())},
                bugs=("gripper",),
            )
    if well:
        yield Finding("actions", "info", "actions vary within training's range", None, evidence)
