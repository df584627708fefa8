"""Films of episodes that are over: the same pictures as while they ran, and what the policy did drawn beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from atlas.environments.cubes import INSTRUCTIONS, CubesEnvironment
from atlas.environments.cubes_expert import CubesExpert
from atlas.environments.environment import StepResult
from atlas.rollout.filming.films import FilmDrawing
from atlas.rollout.success_report import Verdict
from atlas.rollout.traces import PICTURE_SIZE, FilmOrder, Trace, TraceRecorder, make_film
from atlas.types import ActionSpec, Observation
from tests.action_spaces import SPACES

BLACK = np.zeros((PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def env() -> Iterator[CubesEnvironment]:
    environment = CubesEnvironment(image_size=32)
    yield environment
    environment.close()


class Robot:
    """The same world, as if it were real: an environment that is no simulator."""

    def __init__(self, env: CubesEnvironment) -> None:
        self._env = env
        self.spec = env.spec

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        return self._env.reset(seed=seed, instruction=instruction)

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        return self._env.step(action, observe)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Filmed:
    """An episode of the expert twice recorded, and what was there to be seen of it while it ran."""

    by_states: Trace
    by_pictures: Trace
    live: list[np.ndarray]
    cameras: list[np.ndarray]  # of the first camera


@pytest.fixture(scope="module")
def episode(env: CubesEnvironment) -> Filmed:
    observation = env.reset(seed=3, instruction=INSTRUCTIONS[0])
    recorders = TraceRecorder(env, observation), TraceRecorder(Robot(env), observation)
    expert, live, cameras = CubesExpert(env), [env.picture(PICTURE_SIZE)], [observation.images["agentview"]]
    done = False
    while not done:
        action = expert.act()
        result = env.step(action)
        assert result.observation is not None
        live.append(env.picture(PICTURE_SIZE))
        cameras.append(result.observation.images["agentview"])
        for recorder in recorders:
            recorder.stepped(action, result)
        done = result.done
    return Filmed(recorders[0].trace(), recorders[1].trace(), live, cameras)


def read_film(path: Path) -> tuple[np.ndarray, float]:
    """The frames [T, H, W, 3] and how many a second there are."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), float(container.streams.video[0].average_rate or 0)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_an_episode_looks_the_same_when_it_is_put_back_into_its_states(env: CubesEnvironment, episode: Filmed) -> None:
    """But for two milliseconds: the simulator's last integration step, which live pictures do not show yet."""
    trace, live = episode.by_states, episode.live
    env.reset(seed=99)  # another episode in between

    for t in (0, 12, 25, len(trace)):
        env.set_state(np.asarray(trace.scenes[t]))
        again = env.picture(PICTURE_SIZE)
        assert difference(again, live[t]) < 1.5
        others = [difference(again, picture) for picture in live]
        assert abs(int(np.argmin(others)) - t) <= 1


def test_a_film_shows_every_step_and_then_the_outcome(env: CubesEnvironment, episode: Filmed, tmp_path: Path) -> None:
    trace, live = episode.by_states, episode.live

    make_film(env, FilmOrder(tmp_path / "film.mp4", trace, INSTRUCTIONS[0], verdict="success"))

    frames, fps = read_film(tmp_path / "film.mp4")
    assert fps == 20 and len(frames) == len(trace) + 16  # the outcome stays for 0.8 s
    drawing = FilmDrawing(INSTRUCTIONS[0], trace.actions, ActionSpec(), PICTURE_SIZE)
    for t in (0, 20, len(trace) - 1):
        assert difference(frames[t], drawing.frame(live[t], t)) < 4  # compression
    for frame in frames[len(trace) :]:
        assert difference(frame, drawing.last_frame(live[-1], "success")) < 4


def test_a_film_that_is_to_be_short_leaves_out_steps_at_even_distances(
    env: CubesEnvironment, episode: Filmed, tmp_path: Path
) -> None:
    trace, live = episode.by_states, episode.live
    lengths = {}

    for most in (200, 12):
        make_film(env, FilmOrder(tmp_path / "film.mp4", trace, INSTRUCTIONS[0], verdict="success", most_pictures=most))
        frames, fps = read_film(tmp_path / "film.mp4")
        every = round(20 / fps)
        shown = len(range(0, len(trace), every))
        assert len(frames) == shown + round(0.8 * fps) and shown <= most
        drawing = FilmDrawing(INSTRUCTIONS[0], trace.actions, ActionSpec(), PICTURE_SIZE)
        assert difference(frames[5], drawing.frame(live[5 * every], 5 * every)) < 4
        lengths[most] = len(frames) / fps

    assert round(20 / fps) > 2  # the second; and both play at the robot's own speed:
    assert lengths[200] == pytest.approx(lengths[12], abs=0.3) == pytest.approx(len(trace) / 20 + 0.8, abs=0.3)


def test_what_is_no_simulator_is_filmed_from_what_its_first_camera_saw(
    env: CubesEnvironment, episode: Filmed, tmp_path: Path
) -> None:
    photographed = episode.by_pictures

    make_film(Robot(env), FilmOrder(tmp_path / "film.mp4", photographed, INSTRUCTIONS[0], verdict="success"))

    frames, _ = read_film(tmp_path / "film.mp4")
    drawing = FilmDrawing(INSTRUCTIONS[0], photographed.actions, ActionSpec(), PICTURE_SIZE)
    for t in (0, 20):
        seen = ImageOps.pad(Image.fromarray(episode.cameras[t]), (PICTURE_SIZE, PICTURE_SIZE))
        assert difference(frames[t], drawing.frame(np.asarray(seen), t)) < 4


def drawn(actions: np.ndarray, step: int = 0, instruction: str = "go") -> np.ndarray:
    return FilmDrawing(instruction, actions, ActionSpec(), PICTURE_SIZE).frame(BLACK, step).astype(int)


def changed(a: np.ndarray, b: np.ndarray) -> tuple[slice, slice]:
    """The box of rows and columns outside of which two frames are alike."""
    rows, columns = np.nonzero((a != b).any(axis=-1))
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def test_each_number_of_the_action_has_a_bar_that_says_its_sign_and_size() -> None:
    still = np.zeros((5, 7))
    boxes = {}
    for dimension in range(6):
        for value in (1.0, 0.5, -1.0):
            moved = still.copy()
            moved[0, dimension] = value
            boxes[dimension, value] = changed(drawn(moved), drawn(still))

    tops = [boxes[dimension, 1.0][0].start for dimension in range(6)]
    assert tops == sorted(set(tops)) and min(tops) > PICTURE_SIZE  # one below the other, below the picture
    for dimension in range(6):
        right, half, left = (boxes[dimension, value][1] for value in (1.0, 0.5, -1.0))
        assert left.stop <= right.start + 1 and half.start == right.start
        assert half.stop - half.start == pytest.approx((right.stop - right.start) / 2, abs=1)


def test_a_larger_number_than_one_fills_the_bar_and_scales_the_episodes_others() -> None:
    """Absolute positions, say: nothing is drawn over the margin."""
    actions = np.zeros((2, 7))
    actions[0, 0], actions[1, 0] = 40.0, 20.0
    unit = np.zeros((2, 7))
    unit[0, 0], unit[1, 0] = 1.0, 0.5

    for step in (0, 1):
        np.testing.assert_array_equal(drawn(actions, step), drawn(unit, step))


def test_the_grippers_probability_is_a_curve_up_to_now() -> None:
    """A chart to the right of the bars: its bright part is as high as P(close), and grows with the steps."""
    actions = np.zeros((20, 7))
    actions[:, 6] = -1.0
    actions[10:, 6] = 3.0  # closes, beyond the range

    frames = [drawn(actions, step) for step in range(20)]

    green = [np.argwhere((frame == (96, 214, 150)).all(axis=-1)) for frame in frames]
    chart = [points[points[:, 1] > PICTURE_SIZE // 2 + 8] for points in green]
    ends = [points[:, 1].max() for points in chart]
    assert ends == sorted(ends) and ends[0] < ends[-1] - 60
    assert chart[5][:, 0].min() > PICTURE_SIZE + 80 and chart[15][:, 0].min() < PICTURE_SIZE + 60
    assert chart[15][:, 0].min() == chart[19][:, 0].min()  # P is 1, however far beyond
    rows, columns = changed(frames[12], drawn(np.where(np.arange(20)[:, None] == 12, 0, 1) * actions, 12))
    assert rows.start > PICTURE_SIZE  # nothing but the bar and the chart says so


def test_the_outcome_is_seen_around_the_last_picture() -> None:
    drawing = FilmDrawing("go", np.zeros((3, 7)), ActionSpec(), PICTURE_SIZE)

    verdicts: tuple[Verdict, ...] = ("success", "failure", "ended")
    success, failure, ended = (drawing.last_frame(BLACK, verdict).astype(int) for verdict in verdicts)
    before = drawing.frame(BLACK, 2)

    rows, columns = changed(success, before)
    assert rows.stop - rows.start == columns.stop - columns.start == PICTURE_SIZE
    edge = rows.start, PICTURE_SIZE // 2
    assert success[edge].argmax() == 1 and failure[edge].argmax() == 0  # green, red
    assert np.ptp(ended[edge]) < 20 < ended[edge].min()  # grey, where nobody tells


def test_long_instructions_take_more_lines_and_no_more_width() -> None:
    long = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    actions = np.zeros((200, 7))

    short, wrapped, endless = (drawn(actions, instruction=text) for text in ("go", long, long * 5))

    assert short.shape[0] < wrapped.shape[0] == endless.shape[0] and short.shape[1] == PICTURE_SIZE
    assert all(frame.shape[0] % 2 == 0 for frame in (short, wrapped))
    for frame in (wrapped, endless):
        margin = frame[: frame.shape[0] - short.shape[0] + 20, -4:]  # beside the text
        np.testing.assert_array_equal(margin, np.broadcast_to(frame[0, 0], margin.shape))


@pytest.mark.parametrize(("space", "charts"), [("no rotation", 1), ("no gripper", 0), ("two arms", 2)])
def test_each_gripper_of_any_space_has_a_chart(space: str, charts: int) -> None:
    spec = SPACES[space]

    frame = FilmDrawing("push", np.zeros((4, spec.dim)), spec, 128).frame(np.zeros((128, 128, 3), np.uint8), 1)

    assert frame.shape[1] == 128 and frame.shape[0] % 2 == 0
    curve = (frame[:, 100].astype(int) == (62, 92, 80)).all(-1)  # what is still to come of it
    assert (np.diff(curve.astype(int)) == 1).sum() == charts
