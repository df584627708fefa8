"""What counts as a value, and what becomes of it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from atlas.system.safe_text import plain, redact
from atlas.tracking.values import to_float, to_histogram, to_image, to_table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.5, 0.5),
        (Fraction(1, 4), 0.25),
        (np.float16(0.5), 0.5),
        (np.int64(7), 7.0),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(3), 3.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (math.inf, math.inf),
        (torch.tensor(-math.inf), -math.inf),
    ],
)
def test_numbers_of_every_kind_become_floats(value: Any, expected: float) -> None:
    number = to_float("x", value)
    assert type(number) is float and number == expected


def test_nan_stays_nan() -> None:
    assert math.isnan(to_float("x", torch.tensor(math.nan, dtype=torch.bfloat16)))


@pytest.mark.parametrize(
    "value",
    [
        "1.0",
        None,
        [1.0],
        {},
        1j,
        np.complex64(1),
        np.zeros(1),
        np.array("1"),
        np.datetime64("2020-01-01"),
        10**400,
        torch.zeros(1),
        torch.tensor(1j),
        torch.zeros((), device="meta"),
        object(),
    ],
)
def test_anything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="train/thing"):
        to_float("train/thing", value)


def test_an_image_is_a_copy() -> None:
    pixels = np.zeros((4, 5, 3), np.uint8)
    image = to_image("x", pixels, 1)
    pixels[:] = 9
    assert image.pixels.max() == 0
    with pytest.raises(TypeError, match=r"uint8 \[H, W, 3\], not uint8 \[4, 5\]"):
        to_image("x", pixels[..., 0], 1)


def test_a_histogram_counts_the_finite_values() -> None:
    histogram = to_histogram("x", [[1.0, 2.0], [math.inf, math.nan]], 1)
    assert (histogram.number, histogram.minimum, histogram.maximum, histogram.total) == (2, 1.0, 2.0, 3.0)
    assert histogram.counts.sum() == 2 and len(histogram.edges) == len(histogram.counts) + 1


def test_columns_of_a_table_hold_one_kind() -> None:
    rows = [[1, 1, None, np.float32(0.5)], ["a", 2.5, True, torch.tensor(2)]]
    table = to_table("x", ["mixed", "numbers", "flag", "own"], rows, 1)
    assert table.rows == [["1", 1.0, None, 0.5], ["a", 2.5, True, 2.0]]


def test_a_config_becomes_plain_and_loses_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    config = {"a": (np.int64(1), np.float32(0.5)), "b": {"c": None, "d": "key hf_planted_token"}, 3: True}
    assert plain(config) == {"a": [1, 0.5], "b": {"c": None, "d": "key ***"}, "3": True}
    assert redact("https://user:pass1234@host/x wandb_v1_abcdefghijklmnopqrst") == "https://***@host/x ***"
