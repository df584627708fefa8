"""Histograms of gradients and weights: the same as from the values themselves, and never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atlas.config import LoggingConfig, WandbConfig
from atlas.runs import read_scalars
from atlas.tracking import RunTracker
from atlas.training.media.gradients import GradientLogger, group_parameters, summarize
from tests.policies.test_policy import make_batch, make_policy


def histograms(run_dir: Path) -> dict[str, tuple[float, float, float, float, float]]:
    """{tag: (minimum, maximum, number, sum, sum of squares)} of the last one logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    last = {tag: events.Histograms(tag)[-1].histogram_value for tag in events.Tags()["histograms"]}
    return {tag: (h.min, h.max, h.num, h.sum, h.sum_squares) for tag, h in last.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_summary_is_that_of_all_values_of_all_tensors(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [(0.1 * torch.randn(*shape, generator=generator)).to(dtype) for shape in ((40, 30), (7,), (3, 5, 2))]
    values = np.concatenate([t.double().flatten().numpy() for t in tensors])

    minimum, maximum, number, total, squares, *counts = summarize(tensors).tolist()

    assert (minimum, maximum, number) == (values.min(), values.max(), len(values))
    np.testing.assert_allclose([total, squares], [values.sum(), (values**2).sum()], rtol=1e-5)
    expected = np.histogram(values, bins=64)[0]
    assert sum(counts) == len(values)
    assert np.abs(np.array(counts) - expected).sum() <= 4  # a value at the border of two bins, in another precision


def test_tensors_that_are_all_one_value_have_a_summary_too() -> None:
    for value in (0.0, 1.0, -3e4):
        (
            minimum,
            maximum,
            number,
            *_,
        ) = summarize([torch.full((5,), value), torch.full((2, 2), value)])[:5].tolist()
        assert (minimum, maximum, number) == (value, value, 9)


def test_modules_are_two_levels_deep_and_only_what_is_trained_counts() -> None:
    policy = make_policy()
    for parameter in policy.language.parameters():
        parameter.requires_grad_(False)

    groups = group_parameters(policy)

    assert {"vision/stems", "fusion/layers", "head/pose", "head/gripper"} <= set(groups)
    assert not any(name.startswith("language") for name in groups)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert sum(p.numel() for group in groups.values() for p in group) == trained


def test_the_board_has_the_gradients_before_clipping_and_the_weights(tmp_path: Path) -> None:
    policy = make_policy()
    policy(make_batch()).loss.backward()
    tracker = RunTracker(tmp_path, "run", WandbConfig(), LoggingConfig())

    GradientLogger(tracker).log(policy, step=7)
    total = float(nn.utils.clip_grad_norm_(policy.parameters(), 1e-9))
    tracker.finish()

    scalars = read_scalars(tmp_path)
    parts = {name: scalars[f"gradients/{name}/norm"] for name in ("vision", "language", "fusion", "head")}
    assert all([step for step, _ in logged] == [7] for logged in parts.values())
    assert sum(logged[0][1] ** 2 for logged in parts.values()) ** 0.5 == pytest.approx(total, rel=1e-4)
    below = [scalars[f"gradients/head/{name}/norm"][0][1] for name in ("pose", "gripper")]
    assert np.hypot(*below) == pytest.approx(parts["head"][0][1], rel=1e-5)
    found = histograms(tmp_path)
    weight = torch.cat([p.detach().flatten() for p in policy.head.pose.parameters()])
    assert found["weights/head/pose"][:3] == pytest.approx((float(weight.min()), float(weight.max()), weight.numel()))
    assert found["gradients/head/pose"][2] == weight.numel()
    assert found["gradients/head/pose"][4] ** 0.5 == pytest.approx(below[0], rel=1e-4)


def test_a_gradient_that_is_not_finite_has_a_norm_that_says_so_and_no_histogram(tmp_path: Path) -> None:
    policy = make_policy()
    policy(make_batch()).loss.backward()
    assert policy.head.pose.weight.grad is not None
    policy.head.pose.weight.grad[0, 0] = float("nan")
    tracker = RunTracker(tmp_path, "run", WandbConfig(), LoggingConfig())

    GradientLogger(tracker).log(policy, step=1)
    tracker.finish()

    assert np.isnan(read_scalars(tmp_path)["gradients/head/pose/norm"][0][1])
    assert np.isfinite(read_scalars(tmp_path)["gradients/vision/norm"][0][1])
    assert "gradients/head/pose" not in histograms(tmp_path)
    assert "weights/head/pose" in histograms(tmp_path)
