"""How an episode failed: each kind from places and gripper, and one of each that the cubes world can show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from atlas.environments.cubes import INSTRUCTIONS, CubesEnvironment
from atlas.environments.cubes_expert import CubesExpert
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.episode_player import EpisodePlayer, Segment
from atlas.rollout.verdicts.failures import FAILURE_KINDS, FAILURE_WORDS, HIT_N, Motion, classify

T = 100
CUBE, BALL = np.array([0.3, 0.0, 0.0]), np.array([-0.3, 0.0, 0.0])


def motion(
    hand: np.ndarray, cube_up: np.ndarray, ball_up: np.ndarray, closed: np.ndarray, hit: tuple[set[str], ...] = ()
) -> Motion:
    """hand: [T + 1, 3]; how high the things are: [T + 1]."""
    up = np.array([0.0, 0.0, 1.0])
    things = {"cube": CUBE + cube_up[:, None] * up, "ball": BALL + ball_up[:, None] * up}
    return Motion(hand, things, closed, hit)


def far() -> np.ndarray:
    """Moves about, and comes near nothing."""
    along = np.linspace(0, 0.2, T + 1)
    return np.stack([np.sin(40 * along) * 0.05, along, np.full(T + 1, 0.3)], 1)


def near() -> np.ndarray:
    wobble = 0.01 * np.sin(np.arange(T + 1))
    return CUBE + np.stack([wobble, wobble, 0.02 + 0 * wobble], 1)


OPEN, CLOSED, FLAT = np.zeros(T, bool), np.ones(T, bool), np.zeros(T + 1)
RAISED = np.clip(np.linspace(-0.02, 0.03, T + 1), 0, None)
FELL = np.where(np.arange(T + 1) < 70, RAISED, 0.0)
STOPS = np.tile([0.0, 0.0, 0.3], (T + 1, 1))
STOPS[:30, 0] = 0.2
HITS_BALL = tuple({"ball", "cube"} if step == 17 else set() for step in range(1, T + 1))
# {kind: the motion, and the step in which it is to be seen}
CASES = {
    "wrong_object": ((near(), FLAT, RAISED * 2, CLOSED, HITS_BALL), 61),
    "dropped": ((near() + FELL[:, None] * [0, 0, 1], FELL, FLAT, CLOSED), 70),
    "lifted_too_little": ((near() + RAISED[:, None] * [0, 0, 1], RAISED, FLAT, CLOSED), T),
    "collided": ((near(), FLAT, FLAT, CLOSED, HITS_BALL), 17),
    "missed_grasp": ((near(), FLAT, FLAT, CLOSED, ({"cube"},) * T), 1),
    "stuck": ((STOPS, FLAT, FLAT, OPEN), 30),
    "never_reached": ((far(), FLAT, FLAT, CLOSED), 0),
    "timed_out_moving": ((near(), FLAT, FLAT, OPEN), T),
}


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_each_kind_of_failure_and_when(kind: str) -> None:
    moves, step = CASES[kind]
    distance = np.linalg.norm(moves[0] - CUBE, axis=1)

    found = classify(motion(*moves), "cube")

    assert found == (kind, int(np.argmin(distance)) if kind == "never_reached" else step)
    assert set(FAILURE_WORDS) == set(CASES) == set(FAILURE_KINDS)


def test_without_a_known_object_only_motion_and_the_table_tell() -> None:
    on_table = tuple({"table"} if step > 50 else {"ball"} for step in range(1, T + 1))

    assert classify(motion(*CASES["wrong_object"][0]), None) == ("timed_out_moving", T)
    assert classify(motion(*CASES["stuck"][0]), None) == ("stuck", 30)
    assert classify(motion(STOPS, FLAT, FLAT, OPEN, on_table), None) == ("collided", 51)


def test_of_what_a_world_names_for_its_task_nothing_is_hit() -> None:
    """All else is, though it tells no target; and a target's task may be about other things as well."""
    stops = motion(STOPS, FLAT, FLAT, OPEN, HITS_BALL)

    assert classify(stops, None, {"cube", "ball"}) == ("stuck", 30)
    assert classify(stops, None, {"cube"}) == classify(stops, None, set()) == ("collided", 17)
    assert classify(motion(*CASES["collided"][0]), "cube", {"cube", "ball"}) == ("missed_grasp", 1)


@pytest.fixture(scope="module")
def env() -> Iterator[CubesEnvironment]:
    environment = CubesEnvironment(image_size=16)
    yield environment
    environment.close()


def failure(env: CubesEnvironment, act) -> str | None:  # type: ignore[no-untyped-def]
    """Of an episode that is asked for the red cube; act: gives an action [7]."""
    player = EpisodePlayer(env, PlannedEpisode(0, 3, INSTRUCTIONS[0]))
    player.begin()
    expert, segment = CubesExpert(env), Segment(None)
    while not segment.done:
        segment = player.run(act(expert)[None])
    return None if segment.failure is None else segment.failure.kind


def test_in_the_cubes_world(env: CubesEnvironment) -> None:
    def misled(expert: CubesExpert) -> np.ndarray:
        env._target = 1
        action = expert.act()
        env._target = 0
        return action

    assert failure(env, misled) == "wrong_object"
    assert failure(env, lambda expert: np.array([0.0, 0, 0, 0, 0, 0, -1])) == "stuck"
    assert failure(env, lambda expert: np.array([0.0, -0.3, -1, 0, 0, 0, -1])) == "collided"  # goes down beside both
    assert failure(env, CubesExpert.act) is None


def test_the_expert_hits_nothing_but_what_it_grasps(env: CubesEnvironment) -> None:
    touched = {}
    for seed in range(3):
        env.reset(seed=seed, instruction=INSTRUCTIONS[seed % 2])
        expert, done = CubesExpert(env), False
        while not done:
            done = env.step(expert.act(), observe=False).done
            touched |= {(name, env.target_object()): force for name, force in env.contact_forces().items()}

    assert {name == target for name, target in touched} == {True}
    assert max(touched.values()) > HIT_N
