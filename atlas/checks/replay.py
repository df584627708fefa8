"""`replay`: the recorded actions, played again in the world from the recorded start, do what was recorded.

If they do not, other meanings of the actions are tried, and the one that brings the hand back to where it was recorded
is named under `gripper`, `scale`, `lag` or `video` (the rate). A wrong meaning shows within a second, so it is tried on
short pieces of a few episodes, and then played on whole ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atlas.checks.action_meaning import AS_RECORDED, Meaning, Recorded, other_meanings
from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.episode import Episode
from atlas.environments.environment import Simulator
from atlas.errors import InputError

_CLOSE_M = 0.005  # drift of a faithful replay: below a millimetre in the world it was recorded in
_ENOUGH = 0.8  # of the episodes must succeed
_PIECE = 20  # frames
_PIECES = 2  # episodes
_BETTER = 0.35  # of the drift is left when a meaning is the right one


@dataclass(frozen=True)
class Replayed:
    """The result of a replay. Drift: the largest distance from the recorded place, in metres."""

    success: bool
    hand_m: float  # of the hand and its fingers
    objects_m: float  # of everything else
    moved: np.ndarray  # [3], how far the hand went in the world's axes, summed over its steps
    recorded: np.ndarray  # [3], the same as recorded


def check_replay(context: CheckContext) -> Iterator[Finding]:
    if context.environment is None:
        return
    if (why := context.no_replay) is not None:
        message = f"nothing was replayed in '{context.environment.spec.name}': {why}"
        yield Finding("replay", "info", message, None, {"replayed": 0})
        return
    env = context.simulator
    actions, takes = context.dataset.action_spec.dim, env.spec.action_spec.dim
    if actions != takes or not context.states_fit:
        what = (
            f"actions have {actions} numbers, but it takes {takes}" if actions != takes else "states have another size"
        )
        yield Finding(
            "replay",
            "error",
            f"the recordings are not of the world '{env.spec.name}': {what}",
            "Name the world that the data was recorded in with --env, or none.",
            {"action_dim": actions, "environment_action_dim": takes},
        )
        return
    recorded = [_recorded(env, context, i) for i in context.sample(context.replayed)]
    plain = [_replay(env, r, AS_RECORDED) for r in recorded]
    if _all_well(plain):
        yield _well(context, plain)
        return
    other, unlike = _other_tasks(env, recorded, plain)
    if other:
        yield _wrong_instructions(recorded, other)
        if not unlike:
            return
    yield from _explain(context, env, recorded, plain, unlike)


def _recorded(env: Simulator, context: CheckContext, number: int) -> Recorded:
    episode = context.recorded(number)
    assert episode.sim_states is not None
    env.reset(init_state=_start(episode, 0), instruction=env.spec.known(episode.instruction))
    positions = []
    for state in episode.sim_states:
        env.set_state(state)
        positions.append(env.positions())
    return Recorded(number, episode, positions)


def _start(episode: Episode, frame: int) -> np.ndarray:
    if frame == 0 and episode.init_state is not None:
        return episode.init_state
    assert episode.sim_states is not None
    return np.asarray(episode.sim_states[frame])


def _replay(
    env: Simulator,
    recorded: Recorded,
    meaning: Meaning,
    instruction: str | None = None,
    first: int = 0,
    frames: int | None = None,
    limit: float = np.inf,
) -> Replayed:
    """Play the actions of an episode, or of a piece of it, and measure how far from the recorded places things get.

    limit: a drift of the hand, in metres, beyond which playing on is pointless.
    """
    episode = recorded.episode
    env.reset(init_state=_start(episode, first), instruction=instruction or env.spec.known(episode.instruction))
    end = len(episode) if frames is None else min(len(episode), first + frames)
    actions = meaning.change(episode.actions, recorded)
    hand = objects = 0.0
    went, was = np.zeros(3), np.zeros(3)
    before, success, done = env.positions(), False, False
    for frame in range(first, end):
        for _ in range(meaning.steps_a_frame):
            result = env.step(actions[frame], observe=False)
            success, done = success or result.success, result.done
            if done:
                break
        now = env.positions()
        went += np.abs(now["hand"] - before["hand"])
        before = now
        if frame + 1 < len(recorded.positions):
            should = recorded.positions[frame + 1]
            was += np.abs(should["hand"] - recorded.positions[frame]["hand"])
            for name in now.keys() & should.keys():  # another task's scene may have other objects
                away = float(np.linalg.norm(now[name] - should[name]))
                if _of_the_hand(name):
                    hand = max(hand, away)
                else:
                    objects = max(objects, away)
        if done or hand > limit:
            break
    return Replayed(success, hand, objects, went, was)


def _of_the_hand(name: str) -> bool:
    return name == "hand" or name.endswith("finger")


def _all_well(replayed: list[Replayed]) -> bool:
    return all(r.success for r in replayed) and _drift(replayed) < _CLOSE_M


def _drift(replayed: list[Replayed]) -> float:
    return float(np.median([r.hand_m for r in replayed]))


def _numbers(replayed: list[Replayed]) -> dict[str, object]:
    return {
        "replayed": len(replayed),
        "successes": sum(r.success for r in replayed),
        "hand_drift_mm": round(1000 * _drift(replayed), 2),
        "object_drift_mm": round(1000 * float(np.median([r.objects_m for r in replayed])), 2),
    }


def _said(replayed: list[Replayed]) -> str:
    successes = sum(r.success for r in replayed)
    return f"{successes} of {len(replayed)} episodes succeed (the hand drifts {1000 * _drift(replayed):.1f} mm)"


def _well(context: CheckContext, plain: list[Replayed]) -> Finding:
    return Finding("replay", "info", f"replayed as recorded, {_said(plain)}", None, _numbers(plain))


# ---- the task was another one ----------------------------------------------------------------------------------


def _other_tasks(env: Simulator, recorded: list[Recorded], plain: list[Replayed]) -> tuple[dict[int, str], list[int]]:
    """Return, of the episodes that do not succeed at their instruction, {place: the instruction that they do succeed
    at}, and the places of those for which there is none."""
    other, unlike = {}, []
    for place, (episode, result) in enumerate(zip(recorded, plain, strict=True)):
        if result.success:
            continue
        if result.hand_m < _CLOSE_M:
            own = env.spec.known(episode.episode.instruction)
            for instruction in env.spec.instructions:
                if instruction != own and _succeeds_as(env, episode, instruction):
                    other[place] = instruction
                    break
        if place not in other:
            unlike.append(place)
    return other, unlike


def _succeeds_as(env: Simulator, recorded: Recorded, instruction: str) -> bool:
    try:
        return _replay(env, recorded, AS_RECORDED, instruction).success
    except InputError:
        return False  # the recorded state cannot contain that task's scene


def _wrong_instructions(recorded: list[Recorded], other: dict[int, str]) -> Finding:
    place, done = next(iter(other.items()))
    known = recorded[place].episode.instruction
    return Finding(
        "language",
        "error",
        f"{len(other)} of {len(recorded)} episodes do another task than their instruction says: episode "
        f"{recorded[place].number}, '{known}', does '{done}'",
        "Load each episode's own instruction where the data is converted.",
        {"episodes": [recorded[p].number for p in other], "replayed": len(recorded)},
    )


# ---- other meanings --------------------------------------------------------------------------------------------


def _explain(
    context: CheckContext, env: Simulator, recorded: list[Recorded], plain: list[Replayed], unlike: list[int]
) -> Iterator[Finding]:
    """Try other meanings on pieces of the episodes that drift most; name the one that helps, or that none does."""
    worst = sorted(range(len(recorded)), key=lambda place: plain[place].hand_m, reverse=True)
    pieces = [recorded[place] for place in worst if len(recorded[place].episode) > 8][:_PIECES]
    if _drift(plain) < _CLOSE_M or not pieces or context.has_errors("actions", "video"):
        yield from _unexplained(context, env, plain, unlike)
        return
    first = [_replay(env, piece, AS_RECORDED, frames=_PIECE) for piece in pieces]
    ratio = sum(r.recorded.sum() for r in first) / max(1e-9, sum(r.moved.sum() for r in first))
    least, best = _BETTER * max(r.hand_m for r in first), None
    for meaning in _suspected_first(context, other_meanings(env.spec.action_spec, ratio)):
        drift = 0.0
        for piece in pieces:
            if drift < least:
                drift = max(drift, _replay(env, piece, meaning, None, meaning.first, _PIECE, limit=least).hand_m)
        if drift < least:
            least, best = drift, meaning
            if least < _CLOSE_M:
                break
    if best is None:
        yield from _unexplained(context, env, plain, unlike)
        return
    changed = [_replay(env, r, best) for r in recorded]
    yield Finding(
        best.check,
        "error",
        f"replayed as recorded, {_said(plain)}; {best.name}, {_said(changed)}",
        best.fix,
        _numbers(plain) | {"explained_by": best.name, "value": best.value, "then": _numbers(changed)},
    )


def _suspected_first(context: CheckContext, tried: Iterator[Meaning]) -> list[Meaning]:
    """Meanings first that the earlier checks have raised findings about."""
    return sorted(tried, key=lambda meaning: not context.has_errors(meaning.check))


def _unexplained(context: CheckContext, env: Simulator, plain: list[Replayed], unlike: list[int]) -> Iterator[Finding]:
    message, share = f"replayed as recorded, {_said(plain)}", sum(r.success for r in plain) / len(plain)
    if context.has_errors("actions", "gripper", "lag", "scale", "video", "language"):
        yield Finding("replay", "info", f"{message}; see the errors above", None, _numbers(plain))
    elif _drift(plain) < _CLOSE_M:
        shown = [context.sample(context.replayed)[place] for place in unlike]
        yield Finding(
            "replay",
            "error" if share < 1 - _ENOUGH else "warning",
            f"{message}: episodes {shown[:5]} are demonstrations that fail",
            "Leave failed demonstrations out.",
            _numbers(plain) | {"failed": shown},
        )
    elif share >= _ENOUGH:
        yield Finding(
            "replay",
            "warning",
            f"{message}; the world differs from the one that it was recorded in",
            f"Compare the versions of the simulator of '{env.spec.name}' with those of the recording.",
            _numbers(plain),
        )
    else:
        yield Finding(
            "replay",
            "error",
            f"{message}, and none of the usual meanings of actions explains it",
            "Check how the actions and states were recorded, and the versions of the simulator.",
            _numbers(plain),
        )
