"""Films of several episodes, and what a policy looks at beside its film."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlas.environments.environment import Environment
from atlas.rollout.filming.attention_column import AttentionColumn, Look
from atlas.rollout.filming.film_choice import film_name, film_order, overview, side_by_side, worst_failures
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.traces import PICTURE_SIZE, FilmOrder, Trace
from tests.rollout.drift_world import Drift

WORLD: Environment = Drift(16)
HZ = WORLD.spec.action_spec.control_hz


def trace(steps: int, dark_until: int = 0) -> Trace:
    """Pictures that are black before a step, and white from it on."""
    pictures = []
    for step in range(steps + 1):
        encoded = io.BytesIO()
        picture = np.full((PICTURE_SIZE, PICTURE_SIZE, 3), 0 if step < dark_until else 255, np.uint8)
        Image.fromarray(picture).save(encoded, "JPEG")
        pictures.append(encoded.getvalue())
    actions = np.zeros((steps, WORLD.spec.action_spec.dim), np.float32)
    return Trace(actions, pictures, actions, np.zeros(steps, np.float32))


def failed(seed: int, length: int, at: int | None, reward: float = 0.0) -> EpisodeOutcome:
    return EpisodeOutcome("push it", seed, False, reward, length, failure="missed_grasp", failed_at=at)


def test_an_overview_shows_the_worst_aligned_where_they_failed(tmp_path: Path) -> None:
    outcomes = [failed(0, 90, 10), replace(failed(1, 60, 50), success=True), failed(2, 100, 70), failed(3, 80, None)]
    orders = [film_order(trace(o.length, o.failed_at or o.length), o, tmp_path, "e") for o in outcomes]

    (order,) = overview(tmp_path / "all.mp4", [0, 1, 2, 3], outcomes, orders)
    frames, fps = order.frames(WORLD)

    assert [cell.number for cell in order.cells] == [2, 0, 3]  # the longest first; no success
    assert [cell.failed_at for cell in order.cells] == [70, 10, 80]  # an end where nobody knows
    moment = next(t for t in range(len(frames)) if frames[t, 30:200, 10:180].mean() > 128)
    assert moment / fps == pytest.approx(3, abs=0.2) and (len(frames) - 1 - moment) / fps == pytest.approx(1, abs=0.2)
    for time, white in ((moment - 1, False), (moment, True)):
        cells = frames[time, 60:160, 40:160], frames[time, 60:160, 240:340], frames[time, 290:390, 40:160]
        assert [bool(cell.mean() > 128) for cell in cells] == [white] * 3
    assert overview(tmp_path / "one.mp4", [0, 1], outcomes[:2], orders[:2]) == []  # it has a film of its own


def test_at_most_nine_and_those_with_the_least_reward_first() -> None:
    outcomes = [failed(seed, 50, 3, reward=float(seed % 4)) for seed in range(12)]

    assert worst_failures(outcomes) == [0, 4, 8, 1, 5, 9, 2, 6, 10]


def test_a_world_that_tells_no_success_has_no_failures() -> None:
    outcome = EpisodeOutcome("", 3, False, -12.5, 50, judged=False)

    assert film_name("episode_000", outcome) == "episode_000_ended.mp4" and worst_failures([outcome]) == []
    assert EpisodeOutcome.from_dict(outcome.to_dict()) == outcome
    assert "judged" not in failed(0, 10, 3).to_dict()


def test_two_policies_side_by_side_wait_for_each_other(tmp_path: Path) -> None:
    short = FilmOrder(tmp_path / "a", trace(10), "push it", verdict="success")
    long = FilmOrder(tmp_path / "b", trace(40, 30), "push it", verdict="failure")

    order = side_by_side(tmp_path, 7, short, long, ("outputs/a", "outputs/b"))
    frames, fps = order.frames(WORLD)

    alone, _ = long.frames(WORLD)
    assert order.path.name == "episode_007_push_it_first_succeeds.mp4"
    assert fps == HZ and len(frames) == len(alone)
    np.testing.assert_array_equal(frames[:, -alone.shape[1] :, -alone.shape[2] :], alone)
    waiting = frames[-1, -alone.shape[1] :, : alone.shape[2]]
    np.testing.assert_array_equal(waiting, short.frames(WORLD)[0][-1])
    assert all(side % 2 == 0 for side in frames.shape[1:3])


def test_views_are_drawn_with_points_and_maps_at_the_decision_that_is_executed() -> None:
    grey = np.full((2, 64, 64, 3), 100, np.uint8)
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 0, 3] = 1.0  # the upper right corner
    points = np.array([[[0.25, 0.75, 0.9], [0.5, 0.5, 0.0]], [[0.9, 0.1, 1.0], [0.5, 0.5, 0.0]]], np.float32)
    looks = [Look(0, grey, None, maps), Look(4, grey, points, None)]

    column = AttentionColumn(looks, 256)
    lit, same, marked = column.at(0).astype(int), column.at(3).astype(int), column.at(5).astype(int)

    assert column.width == 128 and lit.shape == (256, 128, 3)
    assert lit[10, 118].mean() > 95 > 50 > lit[118, 10].mean() and (lit == same).all()
    coloured = np.argwhere(np.ptp(marked, axis=-1) > 100)
    first, second = coloured[coloured[:, 0] < 128], coloured[coloured[:, 0] >= 128]
    np.testing.assert_allclose(first.mean(0), (96, 32), atol=1.5)  # the uncertain ones are not drawn
    np.testing.assert_allclose(second.mean(0), (128 + 12.8, 115.2), atol=1.5)
