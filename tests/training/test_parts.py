"""Metrics, schedule, optimizer and averages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from atlas.config import TrainingConfig, load_config
from atlas.data.sampling.order import Draws
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import EnvironmentSpec
from atlas.training.average import WeightAverage
from atlas.training.judging.selection import choose_best_metric
from atlas.training.metrics import ActionErrors, LossMeter
from atlas.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from atlas.training.perf.timing import StepTimer
from atlas.training.schedule import make_schedule
from atlas.types import ActionSpec, LossTerms
from tests.policies.test_policy import make_policy

CUBES = environment_spec("cubes")

SPEC = ActionSpec()
CPU = torch.device("cpu")


def errors_of(predicted: torch.Tensor, target: torch.Tensor, pad: torch.Tensor | None = None) -> dict[str, float]:
    pad = torch.zeros(predicted.shape[:2], dtype=torch.bool) if pad is None else pad
    errors = ActionErrors(SPEC, ["a task"], CPU)
    errors.add(predicted, target, pad, ["a task"] * len(predicted))
    return errors.read(Accelerator(cpu=True))


def test_errors_are_in_the_units_of_the_action_spec_and_in_physical_ones() -> None:
    target = torch.zeros(1, 1, 7)
    predicted = torch.tensor([[[0.3, 0.0, 0.4, 0.0, 0.0, 0.2, 0.5]]])

    found = errors_of(predicted, target)

    assert found["val/pose_l2_error"] == pytest.approx((0.09 + 0.16 + 0.04) ** 0.5)
    assert found["val/pose_l1_error"] == pytest.approx(0.9 / 6)
    assert found["val/position_error_mm"] == pytest.approx(0.5 * 50)
    assert found["val/rotation_error_deg"] == pytest.approx(np.rad2deg(0.2 * 0.5))
    assert found["val/gripper_error"] == pytest.approx(0.75)  # P(close) is 0.75, the label is open
    assert found["val/gripper_accuracy"] == 0.0


@pytest.mark.parametrize(("recorded", "error", "accuracy"), [(1.0, 0.1, 1.0), (-1.0, 0.9, 0.0)])
def test_a_gripper_that_is_to_close_is_compared_with_one_that_closes(
    recorded: float, error: float, accuracy: float
) -> None:
    predicted, target = torch.zeros(1, 1, 7), torch.zeros(1, 1, 7)
    predicted[..., 6], target[..., 6] = 0.8, recorded  # P(close) is 0.9

    found = errors_of(predicted, target)

    assert found["val/gripper_error"] == pytest.approx(error) and found["val/gripper_accuracy"] == accuracy


def test_the_rotation_error_is_the_angle_between_the_rotations() -> None:
    """A quarter turn about x and one about y are 120 degrees apart; turns beyond pi come around."""
    quarter = np.pi / 2 / 0.5
    a, b = torch.zeros(1, 1, 7), torch.zeros(1, 1, 7)
    a[..., 3], b[..., 4] = quarter, quarter
    assert errors_of(a, b)["val/rotation_error_deg"] == pytest.approx(120)

    a[..., 3], b[..., 3], b[..., 4] = 1.9 * np.pi / 0.5, -0.1 * np.pi / 0.5, 0
    assert errors_of(a, b)["val/rotation_error_deg"] == pytest.approx(0, abs=1e-4)  # inputs are float32


def test_padded_steps_and_the_split_into_batches_do_not_change_the_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand(5, 3, 7, generator=generator), torch.rand(5, 3, 7, generator=generator)
    pad = torch.tensor([[False, i > 1, i > 0] for i in range(5)])
    whole = errors_of(predicted, target, pad)
    predicted[pad] = 9.0

    parts = ActionErrors(SPEC, ["a task"], CPU)
    for part in (slice(0, 2), slice(2, 5)):
        parts.add(predicted[part], target[part], pad[part], ["a task"] * len(predicted[part]))

    assert parts.read(Accelerator(cpu=True)) == pytest.approx(whole)


def test_errors_per_task() -> None:
    errors = ActionErrors(SPEC, ["open it", "shut it"], CPU)
    predicted = torch.zeros(3, 1, 7)
    predicted[2, 0, 0] = 1.0
    errors.add(predicted, torch.zeros(3, 1, 7), torch.zeros(3, 1, dtype=torch.bool), ["open it", "open it", "shut it"])

    found = errors.read(Accelerator(cpu=True))

    assert found["val/open_it/position_error_mm"] == 0 and found["val/shut_it/position_error_mm"] == 50
    assert found["val/position_error_mm"] == pytest.approx(50 / 3)


def test_the_loss_meter_weights_by_valid_steps_and_starts_again() -> None:
    meter = LossMeter(("loss", "pose_loss", "gripper_loss"), CPU)
    for loss, n in ((1.0, 10.0), (4.0, 5.0)):
        terms = {"pose_loss": torch.tensor(loss / 2), "gripper_loss": torch.tensor(0.0)}
        meter.add(LossTerms(torch.tensor(loss), torch.tensor(n), terms))
    accelerator = Accelerator(cpu=True)

    first, second = meter.read(accelerator, "train"), meter.read(accelerator, "train")

    assert first == {"train/loss": 2.0, "train/pose_loss": 1.0, "train/gripper_loss": 0.0}
    assert second["train/loss"] == 0.0


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    rates = [learning_rate(step, 100, 10, TrainingConfig(learning_rate=1e-3)) for step in range(101)]

    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3) == max(rates)
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[100] == pytest.approx(1e-5)


def test_every_group_of_weights_has_its_share_of_the_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "factor": factor} for factor in (1.0, 0.1)]
    optimizer = torch.optim.AdamW(groups)

    set_learning_rate(optimizer, 2.0)

    assert [group["lr"] for group in optimizer.param_groups] == [2.0, pytest.approx(0.2)]


def test_no_weight_decay_on_norms_and_biases() -> None:
    policy = make_policy()
    decayed, plain = make_optimizer(policy, load_config({}, ["training.weight_decay=0.3"]).training).param_groups

    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(policy.parameters()))


def test_what_is_longer_than_the_run_is_shortened_and_said(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(
        {},
        [
            "training.max_steps=40",
            "training.warmup_steps=500",
            "training.val_interval=7",
            "checkpoint.save_interval=900",
        ],
    )
    with caplog.at_level("INFO"):
        schedule = make_schedule(config, Draws.each_once(100), ranks=1)

    assert (schedule.warmup_steps, schedule.val_interval, schedule.save_interval) == (4, 7, 40)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "training.warmup_steps 500 -> 4" in said[0] and "val_interval" not in said[0]


def test_the_average_follows_the_weights() -> None:
    policy = make_policy()
    average = WeightAverage(policy, decay=0.5)
    before = policy.head.pose.bias.detach().clone()
    with torch.no_grad():
        policy.head.pose.bias += 1.0

    average.update(policy, step=0)  # (1 + 0) / (10 + 0) of the old
    torch.testing.assert_close(average.policy.head.pose.bias, before + 0.9)
    average.update(policy, step=1000)
    torch.testing.assert_close(average.policy.head.pose.bias, before + 0.95)


@pytest.mark.parametrize(
    ("overrides", "env", "name", "larger"),
    [
        ([], CUBES, "eval/success_rate", True),
        ([], replace(CUBES, judged=False), "eval/mean_reward", True),
        ([], None, "val/loss", False),
        (["model_management.best_model_metric=val/gripper_accuracy"], CUBES, "val/gripper_accuracy", True),
        (["model_management={best_model_metric: custom/x, best_model_mode: max}"], None, "custom/x", True),
    ],
)
def test_which_checkpoint_is_best(overrides: list[str], env: EnvironmentSpec | None, name: str, larger: bool) -> None:
    metric = choose_best_metric(load_config({}, overrides), env)

    assert (metric.name, metric.larger_is_better) == (name, larger)
    assert metric.improves(1.0, None) and metric.improves(1.0, 1.0)
    assert metric.improves(2.0, 1.0) == larger


def test_times_add_up() -> None:
    timer = StepTimer()
    for _ in range(2):
        with timer.part("data"), timer.part("forward"):
            pass
        timer.step_done()

    found = timer.read(samples_a_step=10)

    assert found["timer/data"] <= found["timer/total"] == found["perf/step_seconds"]
    assert found["perf/samples_per_second"] == pytest.approx(10 / found["timer/total"])
    assert found["perf/data_wait_seconds"] == found["timer/data"]
