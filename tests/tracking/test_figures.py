"""Figures: the input can be found in the pixels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from atlas.drawing.figures import (
    PREDICTED,
    RECORDED,
    CameraView,
    Panel,
    draw_chunks,
    draw_closing,
    draw_distributions,
    draw_map,
    draw_views,
    round_length,
)

PANELS = [Panel("dx", "mm per step", (-10.0, 10.0)), Panel("gripper", "P(close)", (0.0, 1.0))]
BELOW_THE_TITLE = 45  # pixels


def inked(picture: np.ndarray, colour: str, tolerance: int = 40) -> np.ndarray:
    """bool [H, W]: where the picture has a colour, more or less; without the title and its legend."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(picture.astype(int) - wanted).max(-1) < tolerance
    near[:BELOW_THE_TITLE] = False
    return near


def chunks(value: float) -> np.ndarray:
    return np.full((2, 6, 2), value)


def test_chunks_show_what_is_recorded_and_what_is_predicted_in_a_panel_a_dimension() -> None:
    picture = draw_chunks(chunks(0.2), chunks(0.8), PANELS, ["1", "2"], "two samples")

    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    quarter = picture.shape[1] // 4
    for panel in range(2):
        left = slice(panel * quarter, (panel + 1) * quarter)
        assert inked(picture[:, left], PREDICTED).any() and inked(picture[:, left], RECORDED).any()
    assert not inked(picture[:, 2 * quarter :], PREDICTED).any()  # there is no third dimension


def test_the_same_chunk_is_drawn_higher_where_it_is_larger() -> None:
    low, high = (draw_chunks(chunks(0), chunks(value), PANELS, ["1", "2"], "") for value in (0.2, 0.8))
    rows = [np.nonzero(inked(picture[:, : picture.shape[1] // 4], PREDICTED))[0].mean() for picture in (low, high)]
    assert rows[1] < rows[0] - 2


def test_steps_past_the_end_of_an_episode_are_not_drawn() -> None:
    predicted = chunks(0.5)
    whole = inked(draw_chunks(chunks(0), predicted, PANELS, ["1", "2"], ""), PREDICTED).sum()
    predicted[1, 2:] = np.nan
    assert inked(draw_chunks(chunks(0), predicted, PANELS, ["1", "2"], ""), PREDICTED).sum() < 0.8 * whole


def test_a_prediction_beyond_the_range_of_the_data_is_shown_too() -> None:
    recorded = np.random.default_rng(0).uniform(0, 1, (500, 2))
    for far in (3.0, 300.0):  # within the panel's limits of dx, and far beyond
        picture = draw_distributions(recorded, recorded + np.array([far, 0]), PANELS, "")
        panel = picture[:, : picture.shape[1] // 4]
        where = np.nonzero(inked(panel, PREDICTED))[0]
        assert where.min() < 0.5 * panel.shape[0]  # bars, and not a line along the bottom


def test_values_that_are_not_finite_are_left_out_of_a_distribution() -> None:
    values = np.full((4, 2), np.nan)
    assert draw_distributions(values, values, PANELS, "").shape[2] == 3


def test_a_probability_is_drawn_over_the_time_at_which_it_was_given() -> None:
    label = (np.arange(100) >= 50).astype(float)
    late = draw_closing((np.arange(100) >= 75).astype(float), label, "P(close)", 20.0, "an episode")

    rows, columns = np.nonzero(inked(late, PREDICTED))
    top = columns[rows < rows.min() + 6]
    grey = np.flatnonzero(inked(late, "#cfcfcf", 6).sum(0) > 60)  # columns of the recorded label, a quarter dark
    axis = late.shape[1] * np.array([0.075, 0.98])
    assert (top.min() - axis[0]) / np.ptp(axis) == pytest.approx(0.75, abs=0.02)
    assert (grey.min() - axis[0]) / np.ptp(axis) == pytest.approx(0.50, abs=0.02)


def test_a_map_gives_each_group_its_colour_whatever_others_there_are() -> None:
    points = np.random.default_rng(0).normal(size=(60, 2))
    names = ["failure", "success", "not said"]
    both = draw_map(points, np.arange(60) % 2, names, ("1", "2"), "")
    one = draw_map(points, np.ones(60, int), names, ("1", "2"), "")

    assert inked(both, "#0072b2").any() and inked(both, "#e69f00").any()
    assert inked(one, "#e69f00").any() and not inked(one, "#0072b2").any()
    many = draw_map(points, np.arange(60), [f"task {i}" * 20 for i in range(60)], ("1", "2"), "")
    assert many.shape == both.shape


def test_a_path_in_a_camera_view_ends_where_it_should() -> None:
    pixels = np.full((32, 32, 3), 200, np.uint8)
    view = CameraView("front", pixels, np.array([[4.0, 4.0], [4.0, 28.0]]), np.array([[4.0, 4.0], [24.0, 8.0]]))
    motion = np.array([[0.0, 0.0, 0.0], [0.02, 0.0, -0.05]])

    picture = draw_views([view, CameraView("wrist", pixels)], motion, -motion, ("dx", "dy", "dz"), "a", "b")

    tile = picture[44 : 44 + 240, 8 : 8 + 240]  # the first camera's
    assert inked(np.pad(tile, ((60, 0), (0, 0), (0, 0))), PREDICTED)[60 + 60, 180]  # (24, 8) times 240 / 32
    assert inked(np.pad(tile, ((60, 0), (0, 0), (0, 0))), RECORDED)[60 + 210, 30]
    second = picture[44 : 44 + 240, 256 : 256 + 240]
    assert not inked(second, PREDICTED).any()


def test_the_planes_show_the_motion_from_above_and_from_the_side() -> None:
    forward = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    down = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -0.1]])

    picture = draw_views([], forward, down, ("dx", "dy", "dz"), "", "")

    above, side = picture[44:284, 8:248], picture[44:284, 256:496]
    rows, columns = np.nonzero(inked(side, PREDICTED))
    assert np.ptp(rows) > 80 and np.ptp(columns) < 12  # downwards
    assert np.ptp(np.nonzero(inked(above, PREDICTED))[0]) < 12  # no motion, from above
    assert np.ptp(np.nonzero(inked(above[60:160], RECORDED))[1]) > 80


@pytest.mark.parametrize(("most", "length"), [(0.19, 0.1), (0.2, 0.2), (0.049, 0.02), (7.0, 5.0), (0.001, 0.001)])
def test_a_scale_bar_has_a_round_length(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)


def test_text_that_the_font_lacks_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_closing(np.zeros(4), np.zeros(4), "P(close)", 10.0, "\u62ff\u8d77\u7ea2\u8272\u65b9\u5757")
