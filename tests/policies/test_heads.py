"""The action heads: what their losses count, what their samples depend on, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from atlas.data.sampling.randomness import sample_keys
from atlas.policies.modular.action_heads.flow_matching import FlowMatchingHead, training_time
from atlas.policies.modular.action_heads.regression import RegressionHead
from atlas.policies.modular.action_heads.solvers import Solver, integrate
from atlas.policies.modular.parts import FlowMatchingHeadConfig, RegressionHeadConfig
from atlas.system.process_control.threads import one_thread
from atlas.types import ActionSpec
from tests.action_spaces import SPACES

HORIZON, DIM = 4, 16
HEADS = {"regression": RegressionHeadConfig(), "flow_matching": FlowMatchingHeadConfig(dim=32, layers=2, steps=4)}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than sums this small."""
    with one_thread():
        yield


def make(
    config: RegressionHeadConfig | FlowMatchingHeadConfig, spec: ActionSpec | None = None
) -> RegressionHead | FlowMatchingHead:
    """A head as training would have changed it: what starts at zero is no longer zero."""
    torch.manual_seed(0)
    head = config.build(DIM, spec or ActionSpec(), HORIZON)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def make_flow(spec: ActionSpec | None = None, **settings: object) -> FlowMatchingHead:
    head = make(HEADS["flow_matching"].model_copy(update=settings), spec)
    assert isinstance(head, FlowMatchingHead)
    return head


def chunks(size: int = 3, spec: ActionSpec | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fused [B, H, DIM], actions [B, H, A] and is_pad [B, H], nothing padded."""
    generator = torch.Generator().manual_seed(1)
    spec = spec or ActionSpec()
    actions = torch.rand(size, HORIZON, spec.dim, generator=generator) * 2 - 1
    binary = [dimension for dimension, gripper in spec.grippers if not gripper.continuous]
    actions[..., binary] = actions[..., binary].sign()
    fused = torch.randn(size, HORIZON, DIM, generator=generator)
    return fused, actions, torch.zeros(size, HORIZON, dtype=torch.bool)


def keys(*samples: int) -> torch.Tensor:
    return sample_keys(5, torch.zeros(len(samples), dtype=torch.int64), torch.tensor(samples))


@pytest.mark.parametrize("spec", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_every_part_of_a_head_learns_from_any_action_space(
    config: RegressionHeadConfig | FlowMatchingHeadConfig, spec: ActionSpec
) -> None:
    head = make(config, spec)
    fused, actions, is_pad = chunks(spec=spec)
    fused.requires_grad_()

    terms = head(fused, actions, is_pad, keys(0, 1, 2))
    terms.loss.backward()
    sampled = head.sample(fused, keys(0, 1, 2))

    assert all(p.grad is not None and p.grad.any() for p in (fused, *head.parameters()))
    parts = config.pose_weight * terms.terms["pose_loss"]
    if spec.grippers:
        parts = parts + config.gripper_weight * terms.terms["gripper_loss"]
    torch.testing.assert_close(terms.loss, parts)
    assert terms.terms.keys() == {"pose_loss", "gripper_loss"} - (set() if spec.grippers else {"gripper_loss"})
    assert sampled.shape == actions.shape and sampled.dtype == torch.float32
    assert all(sampled[..., dimension].abs().max() <= 1 for dimension, _ in spec.grippers)


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_padded_steps_neither_count_nor_tell_the_others(
    config: RegressionHeadConfig | FlowMatchingHeadConfig,
) -> None:
    head = make(config)
    fused, actions, is_pad = chunks()
    is_pad[0, 1:], is_pad[1, 3:] = True, True
    before = head(fused, actions, is_pad, keys(0, 1, 2))

    actions[is_pad], fused[is_pad] = 77.0, -77.0
    after = head(fused, actions, is_pad, keys(0, 1, 2))

    assert float(before.n_valid) == 1 + 3 + 4
    for name in ("pose_loss", "gripper_loss"):
        torch.testing.assert_close(after.terms[name], before.terms[name])


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_losses_are_means_over_the_steps_that_are_there(
    config: RegressionHeadConfig | FlowMatchingHeadConfig,
) -> None:
    """Untrained, so that no step looks at another: those of all steps follow from those of two parts of them."""
    head = config.build(DIM, ActionSpec(), HORIZON)
    fused, actions, none = chunks()
    is_pad = none.clone()
    is_pad[0, 1:], is_pad[1, 3:] = True, True

    whole, part, rest = (head(fused, actions, pad, keys(0, 1, 2)) for pad in (none, is_pad, ~is_pad))

    for name in ("pose_loss", "gripper_loss"):
        both = part.terms[name] * part.n_valid + rest.terms[name] * rest.n_valid
        torch.testing.assert_close(both / whole.n_valid, whole.terms[name])


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_a_batch_of_nothing_but_padding_has_no_loss(config: RegressionHeadConfig | FlowMatchingHeadConfig) -> None:
    fused, actions, is_pad = chunks()

    terms = make(config)(fused, actions, ~is_pad, keys(0, 1, 2))

    assert float(terms.loss.detach()) == 0 and float(terms.n_valid) == 0


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_a_keyed_sample_is_the_same_alone_in_any_company_and_after_other_draws(
    config: RegressionHeadConfig | FlowMatchingHeadConfig,
) -> None:
    head = make(config)
    fused, _, _ = chunks()

    together = head.sample(fused, keys(0, 1, 2))
    torch.rand(11)
    again, alone = head.sample(fused, keys(0, 1, 2)), head.sample(fused[1:2], keys(1))

    torch.testing.assert_close(again, together, rtol=0, atol=0)
    torch.testing.assert_close(alone[0], together[1], rtol=1e-5, atol=1e-5)


def test_a_keyed_loss_is_the_mean_of_what_its_samples_have_alone() -> None:
    head = make_flow()
    fused, actions, is_pad = chunks()

    together = head(fused, actions, is_pad, keys(0, 1, 2)).loss
    alone = [head(fused[i : i + 1], actions[i : i + 1], is_pad[i : i + 1], keys(i)).loss for i in range(3)]

    torch.testing.assert_close(torch.stack(alone).mean(), together)
    assert not torch.allclose(head(fused, actions, is_pad, keys(3, 4, 5)).loss, together)


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS.keys())
def test_mixed_precision_leaves_actions_and_losses_in_float32(
    config: RegressionHeadConfig | FlowMatchingHeadConfig,
) -> None:
    head = make(config)
    fused, actions, is_pad = chunks()
    is_pad[0, 2:] = True

    with torch.autocast("cpu", torch.bfloat16):
        terms, sampled = head(fused, actions, is_pad, keys(0, 1, 2)), head.sample(fused, keys(0, 1, 2))

    assert sampled.dtype == terms.loss.dtype == torch.float32
    torch.testing.assert_close(sampled, head.sample(fused, keys(0, 1, 2)), rtol=0.05, atol=0.05)
    torch.testing.assert_close(terms.loss, head(fused, actions, is_pad, keys(0, 1, 2)).loss, rtol=0.05, atol=0.05)


def test_a_generator_goes_before_the_key_and_the_key_before_the_global_one() -> None:
    head = make_flow()
    fused, _, _ = chunks(2)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    torch.testing.assert_close(
        head.sample(fused, keys(0, 1), seeded(3)), head.sample(fused, keys(7, 8), seeded(3)), rtol=0, atol=0
    )
    assert not torch.equal(head.sample(fused, keys(0, 1), seeded(3)), head.sample(fused, keys(0, 1), seeded(4)))
    assert not torch.equal(head.sample(fused, keys(0, 1)), head.sample(fused, keys(0, 2)))
    torch.manual_seed(3)
    free = head.sample(fused)
    assert not torch.equal(head.sample(fused), free)
    torch.manual_seed(3)
    torch.testing.assert_close(head.sample(fused), free, rtol=0, atol=0)


def test_a_chunk_that_follows_another_goes_on_from_it() -> None:
    """Where the last chunk is executed meanwhile it is the same; past the end of that one it is the head's own."""
    head = make_flow(steps=10)
    fused, _, _ = chunks(2)
    rest = torch.linspace(-0.5, 0.5, 7).expand(2, HORIZON - 2, 7)

    free, followed = head.sample(fused, keys(0, 1)), head.sample_following(fused, rest, 2, keys(0, 1))

    gap, was = (followed - rest[0, 0]).abs().amax((0, 2)), (free - rest[0, 0]).abs().amax((0, 2))
    assert gap[:2].max() < 0.02 < was[:2].min()
    torch.testing.assert_close(head.sample_following(fused, rest[:, :0], 0, keys(0, 1)), free)


def test_an_untrained_flow_loses_what_the_straight_velocity_is() -> None:
    """It starts as the velocity zero, so its loss is the mean square of actions - noise: 1 + the actions' own."""
    head = FlowMatchingHeadConfig(dim=32).build(DIM, ActionSpec(), HORIZON)
    actions = torch.full((4000, HORIZON, 7), 0.5)
    actions[..., 6] = -1.0

    terms = head(
        torch.zeros(4000, HORIZON, DIM), actions, torch.zeros(4000, HORIZON, dtype=torch.bool), keys(*range(4000))
    )

    assert float(terms.terms["pose_loss"].detach()) == pytest.approx(1 + 0.25, abs=0.02)
    assert float(terms.terms["gripper_loss"].detach()) == pytest.approx(1 + 1, abs=0.05)


def test_training_looks_at_noisy_actions_more_often() -> None:
    """1 - t/0.999 is from Beta(1.5, 1), whose mean is 0.6 and whose distribution function at 0.5 is 0.5^1.5."""
    time = training_time(torch.linspace(0, 1, 10001))

    assert time.min() == 0 and time.max() == pytest.approx(0.999)
    assert float(time.mean()) == pytest.approx(0.4 * 0.999, abs=1e-3)
    assert float((time > 0.999 / 2).float().mean()) == pytest.approx(0.5**1.5, abs=1e-3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_have_the_order_they_are_known_by(solver: Solver, order: int) -> None:
    """Along dx/dt = x + t from x = 0.3, steps half as long leave an error about 2^order times as small."""
    start = torch.tensor([0.3], dtype=torch.float64)

    def error(steps: int) -> float:
        end = integrate(lambda x, t: x + t, start, solver, steps)
        return abs(float(end) - (1.3 * math.e - 2))

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.06)


@pytest.mark.parametrize(("solver", "passes"), [("euler", 3), ("midpoint", 6), ("rk4", 12)])
def test_sampling_takes_the_steps_of_the_config(solver: Solver, passes: int) -> None:
    head = make_flow(solver=solver, steps=3)
    seen = []
    head.blocks[0].register_forward_hook(lambda *_: seen.append(1))

    head.sample(chunks()[0], keys(0, 1, 2))

    assert len(seen) == passes


def test_regression_needs_no_random_numbers() -> None:
    head = make(RegressionHeadConfig())
    fused, actions, is_pad = chunks()

    assert isinstance(head, RegressionHead)
    torch.testing.assert_close(head.sample(fused, keys(0, 1, 2)), head.sample(fused), rtol=0, atol=0)
    torch.testing.assert_close(head(fused, actions, is_pad, keys(0, 1, 2)).loss, head(fused, actions, is_pad).loss)


@pytest.mark.parametrize("says", [-1.0, 1.0], ids=["open", "close"])
def test_a_head_that_is_sure_of_the_gripper_loses_only_where_it_is_wrong(says: float) -> None:
    head = make(RegressionHeadConfig())
    assert isinstance(head, RegressionHead) and head.gripper is not None
    with torch.no_grad():
        head.gripper.weight.zero_()
        head.gripper.bias.fill_(9.0 * says)  # a logit: its sign says whether to close
    fused, actions, is_pad = chunks()

    losses = {}
    for recorded in (-1.0, 1.0):
        actions[..., 6] = recorded
        losses[recorded] = float(head(fused, actions, is_pad).terms["gripper_loss"].detach())

    assert losses[says] < 0.001 and losses[-says] == pytest.approx(9, abs=0.001)
    torch.testing.assert_close(head.sample(fused)[..., 6], torch.full((3, HORIZON), says), rtol=0, atol=0.001)


def test_the_flow_learns_both_ways_of_doing_it_where_regression_takes_the_middle() -> None:
    """Two ways to act, far apart, each right half of the time; which ones depends on what was seen."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([[1.0], [-1.0]])
    ways = {  # what was seen -> the two chunks that are right, [2, H, 7]
        0: signs[:, :, None] * torch.tensor([0.8, 0.8, 0.0, 0.0, 0.0, 0.0, 1.0]).expand(2, HORIZON, 7),
        1: signs[:, :, None] * torch.tensor([0.8, -0.8, 0.0, 0.0, 0.0, 0.0, -1.0]).expand(2, HORIZON, 7),
    }
    table = torch.stack([ways[0], ways[1]])  # [seen, way, H, 7]
    views = torch.randn(2, HORIZON, DIM, generator=generator)

    def train(config: RegressionHeadConfig | FlowMatchingHeadConfig) -> torch.Tensor:
        """512 sampled chunks [seen, 256, H, 7] after training."""
        torch.manual_seed(0)
        head = config.build(DIM, ActionSpec(), HORIZON)
        optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
        for step in range(400):
            seen, way = torch.randint(2, (2, 128), generator=generator)
            is_pad = torch.zeros(128, HORIZON, dtype=torch.bool)
            optimizer.zero_grad()
            head(views[seen], table[seen, way], is_pad, keys(*range(128 * step, 128 * (step + 1)))).loss.backward()
            optimizer.step()
        with torch.no_grad():
            sampled = head.sample(views.repeat_interleave(256, 0), keys(*range(512)))
        return sampled.unflatten(0, (2, 256))

    flow = train(FlowMatchingHeadConfig(dim=32, layers=1, heads=2))
    middle = train(RegressionHeadConfig(pose_loss="mse"))

    near = (flow[:, :, None] - table[:, None]).abs().amax((-1, -2)) < 0.3  # [seen, 256, way]: in all steps, all numbers
    assert near.any(-1).float().mean() > 0.9
    assert (near.float().mean(1) > 0.3).all()  # each way is taken, for each of the two things seen
    assert middle[..., :6].abs().mean() < 0.1  # the mean of both, which is neither
