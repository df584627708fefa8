"""AdamW: one kernel or many, and which parts of it a checkpoint brings back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from atlas.config import load_config
from atlas.policies.modular.policy import ModularPolicy
from atlas.system.tensors import load_nested, save_nested
from atlas.training.optimizer import make_optimizer
from tests.policies.test_policy import make_policy


def prepare(*overrides: str) -> tuple[ModularPolicy, torch.optim.AdamW]:
    policy = make_policy().train()
    return policy, make_optimizer(policy, load_config({}, list(overrides)).training)


def train(policy: ModularPolicy, optimizer: torch.optim.AdamW, steps: int = 5) -> set[str]:
    """Steps along gradients that are always the same; the optimizer's operators of the last one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in policy.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(drawn)  # in its memory format, as autograd has it
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            optimizer.step()
    return {event.key for event in seen.key_averages()}


def test_the_fused_optimizer_is_one_kernel_with_the_same_numbers_to_rounding() -> None:
    fused, separate = prepare(), prepare("training.fused_optimizer=false")

    operators, others = train(*fused), train(*separate)

    assert "aten::_fused_adamw_" in operators
    assert "aten::_fused_adamw_" not in others
    for a, b, start in zip(fused[0].parameters(), separate[0].parameters(), make_policy().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert (a - start).abs().max() > 1e-3


@pytest.mark.parametrize("setting", ["training.fused_optimizer=false", "training.weight_decay=0.2"])
def test_a_loaded_state_brings_moments_and_not_settings(setting: str) -> None:
    was, now = prepare(), prepare(setting)
    train(*was)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in now[1].param_groups]

    now[1].load_state_dict(was[1].state_dict())

    assert [{k: v for k, v in group.items() if k != "params"} for group in now[1].param_groups] == settings
    moments = [[state["exp_avg_sq"] for state in optimizer.state.values()] for _, optimizer in (was, now)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True)) and len(moments[0]) > 10
    assert all(float(state["step"]) == 5 for state in now[1].state.values())
    train(*now, steps=1)


def test_moments_from_a_file_go_on_with_weights_in_another_memory_format(tmp_path: Path) -> None:
    was, now = prepare(), prepare()
    assert any(not p.is_contiguous() for p in was[0].parameters())  # channels last
    train(*was)
    save_nested(tmp_path / "optimizer.safetensors", was[1].state_dict())

    now[0].load_state_dict(was[0].state_dict())
    now[1].load_state_dict(load_nested(tmp_path / "optimizer.safetensors"))
    train(*was)
    train(*now)

    assert all(torch.equal(a, b) for a, b in zip(was[0].parameters(), now[0].parameters(), strict=True))


def test_a_state_of_another_policy_is_refused() -> None:
    _, optimizer = prepare()
    other = make_optimizer(make_policy("vggt-conv"), load_config({}).training)

    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(other.state_dict())


def test_nothing_is_trained_in_bfloat16() -> None:
    policy = make_policy()
    policy.head.bfloat16()

    with pytest.raises(AssertionError, match=r"head\.\w+.* is trained in torch\.bfloat16"):
        make_optimizer(policy, load_config({}).training)
