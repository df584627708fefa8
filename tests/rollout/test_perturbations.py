"""Perturbations: the same for every policy, as much as the level says, gone when the episode is over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from atlas.environments.cubes import AREA_HALF_SIZE_M, HORIZON, INSTRUCTIONS, CubesEnvironment, cubes_spec
from atlas.environments.cubes_expert import CubesExpert
from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.choices import PERTURBATIONS, PerturbationChoice, choose_perturbations
from atlas.environments.perturbations.instruction_changes import (
    ColourSynonym,
    OtherLanguage,
    Paraphrase,
    Typos,
    WordOrder,
)
from atlas.environments.perturbations.perturbation import LEVELS
from atlas.environments.perturbations.randomization import choose_randomization, draw_scene
from atlas.environments.scene_variation import AS_IT_IS, CameraShift, LightShift, SceneVariation, Surface
from atlas.errors import InputError
from atlas.rollout.episode_plan import PlannedEpisode, episode_seed
from atlas.rollout.episode_player import EpisodePlayer, Segment
from atlas.rollout.recording import record_episode
from atlas.types import ActionGroup, ActionSpec, Observation
from tests.rollout.bench_world import bench_spec

SPEC = cubes_spec(32)
NAMES = PERTURBATIONS.names()
SEEN = [name for name in NAMES if PerturbationChoice(name, 1).kind.visual]
STILL = np.array([0.0, 0, 0, 0, 0, 0, -1])
RED, GREEN = INSTRUCTIONS


@pytest.fixture(scope="module")
def env() -> Iterator[CubesEnvironment]:
    environment = CubesEnvironment(image_size=32)
    yield environment
    environment.close()


def begin(env: CubesEnvironment, choice: PerturbationChoice | None, seed: int = 3) -> tuple[EpisodePlayer, Observation]:
    player = EpisodePlayer(env, PlannedEpisode(0, seed, RED, perturbation=choice))
    observation = player.begin().observation
    assert observation is not None
    return player, observation


def seen(env: CubesEnvironment, choice: PerturbationChoice | None, seed: int = 3) -> Observation:
    """After three actions, when late pictures are late and dropped ones may be dropped."""
    player, _ = begin(env, choice, seed)
    found = Segment(None)
    for _ in range(3):
        found = player.run(np.array([[0.3, 0.5, -1, 0, 0, 0.2, -1]]))
    assert found.observation is not None
    return found.observation


def same(one: Observation, other: Observation) -> bool:
    pictures = all(np.array_equal(one.images[camera], other.images[camera]) for camera in one.images)
    return pictures and np.array_equal(one.proprio, other.proprio) and one.instruction == other.instruction


# ---- what all have in common -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_something_is_the_same_each_time_and_leaves_nothing_behind(env: CubesEnvironment, name: str) -> None:
    strong, plain = PerturbationChoice(name, 5), seen(env, None)
    first = seen(env, strong)
    seen(env, PerturbationChoice("table_texture", 3), seed=8)

    assert same(seen(env, strong), first) and not same(first, plain)
    assert same(seen(env, None), plain)


@pytest.mark.parametrize("name", [name for name in SEEN if name not in ("dropped_frames", "late_frames")])
def test_the_more_the_higher_the_level(env: CubesEnvironment, name: str) -> None:
    plain = begin(env, None)[1].images["agentview"].astype(float)
    by = [
        np.abs(begin(env, PerturbationChoice(name, level))[1].images["agentview"] - plain).mean() for level in (1, 3, 5)
    ]

    assert 0 < by[0] < by[2] and by[1] < 1.2 * by[2], by


def test_levels_of_an_episode_differ_in_how_much_and_not_in_what() -> None:
    fields = [PerturbationChoice("camera_field", level).of_episode(5, SPEC).variation().camera for level in LEVELS]

    factors = [shift.field for shift in fields if shift is not None]
    assert factors == sorted(factors) or factors == sorted(factors, reverse=True)
    signs = {PerturbationChoice("camera_field", 1).of_episode(seed, SPEC).variation().camera for seed in range(8)}
    assert len(signs) == 2  # wider in some episodes, narrower in others


# ---- each by itself --------------------------------------------------------------------------------------


def test_objects_lie_beyond_those_of_training(env: CubesEnvironment) -> None:
    for level in LEVELS:
        begin(env, PerturbationChoice("object_positions", level), seed=level)
        places = np.array([env.cube_pose(cube)[0][:2] for cube in range(2)])
        reach = np.abs(places).max(axis=1)
        inner = AREA_HALF_SIZE_M + 0.02 * (level - 1)
        assert (reach > inner - 0.005).all() and (reach < inner + 0.025).all()


@pytest.mark.parametrize("name", ["object_positions", "start_pose"])
def test_what_is_asked_can_still_be_done(env: CubesEnvironment, name: str) -> None:
    """By the expert, which needs no pictures and no words."""
    won = 0
    for seed in range(3):
        player, _ = begin(env, PerturbationChoice(name, 5), seed)
        expert, segment = CubesExpert(env), Segment(None)
        while not segment.done:
            segment = player.run(expert.act()[None])
        won += segment.success
    assert won >= 2


def test_late_and_dropped_pictures_are_earlier_ones(env: CubesEnvironment) -> None:
    player, first = begin(env, PerturbationChoice("late_frames", 2))
    pictures = [first.images["agentview"]]
    plain_player, plain = begin(env, None)
    true = [plain.images["agentview"]]
    moves = np.array([[0.5, 0.5, -0.5, 0, 0, 0.2, -1]])
    for _ in range(5):
        segment = plain_player.run(moves)
        assert segment.observation is not None
        true.append(segment.observation.images["agentview"])
    player, _ = begin(env, PerturbationChoice("late_frames", 2))
    for _ in range(5):
        segment = player.run(moves)
        assert segment.observation is not None
        pictures.append(segment.observation.images["agentview"])

    for step in range(6):
        np.testing.assert_array_equal(pictures[step], true[max(0, step - 2)])
    dropped = PerturbationChoice("dropped_frames", 5).of_episode(1, SPEC)
    numbers = []
    for number in range(200):
        shown = dropped.see(Observation({"agentview": np.full((1, 1, 3), number, np.uint8)}, np.zeros(8), RED))
        numbers.append(int(shown.images["agentview"][0, 0, 0]))
    old = sum(number != shown for number, shown in enumerate(numbers))
    assert numbers == sorted(numbers) and 120 < old < 180  # three quarters do not arrive


@pytest.mark.parametrize("name", ["dropped_frames", "late_frames", "pixel_noise"])
def test_what_is_seen_does_not_depend_on_how_many_actions_are_executed_between(
    env: CubesEnvironment, name: str
) -> None:
    actions = np.repeat([[0.5, 0.5, -0.5, 0, 0, 0.2, -1]], 16, axis=0)
    each_step, _ = begin(env, PerturbationChoice(name, 3))
    one = [each_step.run(action[None]).observation for action in actions]
    each_chunk, _ = begin(env, PerturbationChoice(name, 3))
    eight = [each_chunk.run(actions[start : start + 8]).observation for start in (0, 8)]

    for often, seldom in zip(one[7::8], eight, strict=True):
        assert often is not None and seldom is not None and same(often, seldom)


def test_delayed_actions_are_carried_out_in_their_order() -> None:
    delay = PerturbationChoice("action_delay", 3).of_episode(0, SPEC)
    given = [np.full(7, float(number)) for number in range(6)]

    done = [delay.act(action) for action in given]

    np.testing.assert_array_equal(done[:3], [STILL] * 3)
    np.testing.assert_array_equal(done[3:], given[:3])
    noisy = PerturbationChoice("action_noise", 2).of_episode(0, SPEC)
    errors = np.array([noisy.act(STILL) - STILL for _ in range(300)])
    assert not errors[:, 6].any() and errors[:, :6].std() == pytest.approx(0.2, rel=0.1)


def test_other_tasks_are_judged_by_what_is_said(env: CubesEnvironment) -> None:
    said = [begin(env, PerturbationChoice("other_task", level))[1].instruction for level in LEVELS]
    left = env.cube_pose(0)[0][1] < env.cube_pose(1)[0][1]
    assert said[0] == "pick up the cube that is not green"
    assert said[1] == f"pick up the cube on the {'left' if left else 'right'}"
    assert said[3].startswith("push the red cube")

    player, _ = begin(env, PerturbationChoice("other_task", 5))
    assert player.run(np.tile(STILL, (HORIZON, 1))).success  # nothing was touched
    player, _ = begin(env, PerturbationChoice("other_task", 4))
    assert not player.run(np.tile(STILL, (HORIZON, 1))).success
    player, _ = begin(env, PerturbationChoice("other_task", 1))
    expert, segment = CubesExpert(env), Segment(None)
    while not segment.done:
        segment = player.run(expert.act()[None])
    assert segment.success


def test_the_left_is_the_left_of_the_picture(env: CubesEnvironment) -> None:
    """In the scene's picture the cube that is called the left one has the smaller column."""
    for seed in range(4):
        _, shown = begin(env, PerturbationChoice("other_task", 2), seed)
        picture = env.picture(96).astype(int)
        red = (picture[..., 0] - picture[..., 1] > 60) & (picture[..., 0] - picture[..., 2] > 60)
        green = (picture[..., 1] - picture[..., 0] > 25) & (picture[..., 1] - picture[..., 2] > 25)
        columns = [np.nonzero(mask)[1].mean() for mask in (red, green)]
        assert shown.instruction.endswith("left" if columns[0] < columns[1] else "right")


# ---- words -----------------------------------------------------------------------------------------------


def test_other_words_for_the_same_task() -> None:
    rng = np.random.default_rng
    assert Paraphrase.reworded(RED, 1, rng(0)) == "grab the red cube"
    assert OtherLanguage.reworded(GREEN, 1, rng(0)) == "hebe den grünen Würfel auf"
    assert OtherLanguage.reworded(RED, 5, rng(0)) == "拿起红色方块"
    assert ColourSynonym.reworded(RED, 3, rng(0)) == "pick up the scarlet cube"
    for level in LEVELS:
        words = str(WordOrder.reworded(RED, level, rng(level))).split()
        assert sorted(words) == sorted(RED.split()) and words != RED.split()
        assert Typos.reworded(RED, level, rng(level)) != RED
    assert Paraphrase.reworded("juggle", 1, rng(0)) is None


# ---- names -----------------------------------------------------------------------------------------------


def test_names_levels_and_categories() -> None:
    assert choose_perturbations(["all"], SPEC) == [PerturbationChoice(n, level) for n in NAMES for level in LEVELS]
    assert choose_perturbations(["typos:4", "blur:1-2", "blur:2"], SPEC) == [
        PerturbationChoice("blur", 1),
        PerturbationChoice("blur", 2),
        PerturbationChoice("typos", 4),
    ]
    light = {choice.name for choice in choose_perturbations(["light_conditions:3"], SPEC)}
    assert light == {"light_direction", "light_colour", "light_intensity", "light_shadows"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("blurr", "Unknown perturbation 'blurr'. Did you mean 'blur'"),
        ("blur:6", "'blur:6': '6' is not a level; give one from 1 to 5"),
        ("blur:3-1", "'3-1' is not a level"),
        ("blur:", "'blur:': '' is not a level"),
    ],
)
def test_what_there_is_not_is_refused(asked: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        choose_perturbations([asked], SPEC)

    assert message in str(refused.value)


def test_a_world_has_those_that_apply_to_it() -> None:
    bench = bench_spec(32)
    names = {choice.name for choice in choose_perturbations(["all:1"], bench)}

    assert names == {*(n for n in SEEN if PerturbationChoice(n, 1).kind.category == "sensor_noise")} | {
        *("word_order", "typos", "action_noise", "action_delay")
    }
    with pytest.raises(
        InputError, match="'bench' does not support the perturbation 'camera_pose': its camera cannot be"
    ):
        choose_perturbations(["camera_pose:1"], bench)
    with pytest.raises(InputError, match="'paraphrase': no other words are known for its instruction"):
        choose_perturbations(["paraphrase"], bench)
    absolute = EnvironmentSpec("there", (RED,), ("a",), (8, 8), 8, 9, ActionSpec((ActionGroup("position", ("x",)),)))
    with pytest.raises(InputError, match="'action_delay': its actions are absolute"):
        choose_perturbations(["action_delay"], absolute)
    with pytest.raises(InputError, match="no perturbation of the category 'camera_viewpoints'"):
        choose_perturbations(["camera_viewpoints"], bench)


def test_no_arguments_are_no_variation() -> None:
    assert PerturbationChoice("blur", 1).of_episode(0, SPEC).variation() == AS_IT_IS


# ---- demonstrations in scenes that differ ----------------------------------------------------------------


def test_scenes_are_drawn_each_by_itself_at_the_levels_that_are_asked_for() -> None:
    choices = choose_randomization(["all:2-3"], SPEC)

    scenes = [draw_scene(choices, seed, SPEC) for seed in range(400)]

    assert {choice.name for choice in choices} == {
        *("camera_pose", "camera_field", "light_direction", "light_colour", "light_intensity", "light_shadows"),
        *("table_texture", "table_colour", "background", "distractors", "object_positions", "start_pose"),
    }
    assert scenes == [draw_scene(choices, seed, SPEC) for seed in range(400)]
    starts = [float(np.linalg.norm(scene.start_pose)) for scene in scenes if scene.start_pose is not None]
    assert 0.25 < len(starts) / 400 < 0.42 and {round(start, 6) for start in starts} == {0.2, 0.3}
    both = sum(scene.start_pose is not None and scene.background is not None for scene in scenes)
    assert 0.06 < both / 400 < 0.17  # a ninth: neither comes with the other
    assert {scene.goal for scene in scenes} == {"lift"}


def test_two_changes_of_one_part_are_both_there() -> None:
    camera = SceneVariation(camera=CameraShift(around=0.1, field=1.1)).also(
        SceneVariation(camera=CameraShift(up=0.2, field=1.2, turn=(0.1, 0.0, 0.0)), start_pose=(0.1, 0.0))
    )
    light = LightShift(0.3, 0.5, (0.5, 1.0, 1.0)).also(LightShift(0.9, 0.1, intensity=2.0, shadows=True))
    table = Surface((0.5, 1.0, 1.0), pattern=3, opacity=0.4).also(Surface((1.0, 0.5, 1.0)))

    assert camera.camera == CameraShift(0.1, 0.2, 1.0, (0.1, 0.0, 0.0), pytest.approx(1.32))
    assert camera.start_pose == (0.1, 0.0)
    assert light == LightShift(0.3, 0.5, (0.5, 1.0, 1.0), 2.0, True)
    assert table == Surface((0.5, 0.5, 1.0), 3, 0.4)
    assert AS_IT_IS.also(camera) == camera == camera.also(AS_IT_IS)


@pytest.mark.parametrize("name", ["blur", "action_delay:1", "typos", "control", "other_task"])
def test_what_changes_no_scene_cannot_be_recorded(name: str) -> None:
    with pytest.raises(InputError, match=r"and not the scene.*can be randomized by: camera_pose"):
        choose_randomization([name], SPEC)


def test_a_demonstration_in_another_scene_is_a_success_and_leaves_nothing_behind(env: CubesEnvironment) -> None:
    choices = choose_randomization(["start_pose:3", "table_colour:3"], SPEC)
    number = next(n for n in range(9) if draw_scene(choices, start_of(n), SPEC).also(AS_IT_IS) != AS_IT_IS)
    plain = begin(env, None)[1]

    episode = record_episode(env, RED, 0, number, choices)

    assert episode.rewards is not None and episode.rewards[-1] == 1
    assert same(begin(env, None)[1], plain)


def start_of(number: int) -> int:
    """The seed of a recorded episode's first try."""
    return episode_seed("record", 0, number * 20)
