"""pi0's and pi0.5's networks give LeRobot's numbers, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atlas.policies.pi import gemma_layers, pi_network
from atlas.policies.pi.action_expert import ActionExpert
from atlas.policies.pi.pi_names import own_name, published_name
from atlas.policies.pi.pi_network import Tokens, never_blind, suffix_mask
from atlas.policies.pi.pi_sizes import GemmaSizes
from atlas.policies.published.flow_pieces import look_ahead_mask
from tests.policies.golden_pi import FOLDER, KINDS, compute, differences, golden, limit, make_network, mistakes_of


@pytest.mark.parametrize("case", ["full", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_intermediate_is_the_golden_one(kind: str, case: str) -> None:
    known = golden(kind).of(case)

    worst = differences(compute(kind, case), known)

    assert {name: d for name, d in worst.items() if d > limit(name)} == {}
    # What goes in, the loss, the steps of sampling and real-time chunking are the policy's: test_pi_policy.py.
    others = ("image.", "image_mask", "token", "rtc.", "sample.x_t", "sample.v_t", "sample.timestep", "sample.actions")
    compared = {name for name in known if not name.startswith(others)}
    assert compared - worst.keys() == {"state_normalized", "action_normalized", "loss"}


def _cos_before_sin(patch: pytest.MonkeyPatch) -> None:
    right = pi_network.time_embedding

    def turned(*args: Any) -> torch.Tensor:
        first, second = right(*args).chunk(2, dim=-1)
        return torch.cat([second, first], dim=-1)

    patch.setattr(pi_network, "time_embedding", turned)


def _time_in_float32(patch: pytest.MonkeyPatch) -> None:
    def rounded(time: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
        place = torch.linspace(0, 1, width // 2)
        angles = time[:, None] * (2 * torch.pi / (shortest * (longest / shortest) ** place))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    patch.setattr(pi_network, "time_embedding", rounded)


def _change_suffix_flags(patch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], None]) -> None:
    right = pi_network.PiNetwork.embed_suffix

    def changed(*args: Any) -> tuple[Tokens, torch.Tensor | None]:
        suffix, condition = right(*args)
        change(suffix.begins)
        return suffix, condition

    patch.setattr(pi_network.PiNetwork, "embed_suffix", changed)


def _actions_see_those_before(patch: pytest.MonkeyPatch) -> None:
    _change_suffix_flags(patch, lambda begins: begins.fill_(True))  # type: ignore[arg-type,return-value]


def _state_sees_the_actions(patch: pytest.MonkeyPatch) -> None:
    _change_suffix_flags(patch, lambda begins: begins[:, 1].fill_(False))  # type: ignore[arg-type,return-value]


def _words_not_scaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pi_network.BackboneSizes, "word_scale", 1.0)


def _images_scaled(patch: pytest.MonkeyPatch) -> None:
    right = pi_network.PiNetwork.embed_image
    patch.setattr(pi_network.PiNetwork, "embed_image", lambda self, x: right(self, x) * self.sizes.word_scale)


def _weight_without_one(patch: pytest.MonkeyPatch) -> None:
    def wrong(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)

    patch.setattr(gemma_layers.GemmaRMSNorm, "forward", wrong)


def _no_gate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gemma_layers, "gated", lambda x, branch, gate: x + branch)


def _scale_without_one(patch: pytest.MonkeyPatch) -> None:
    right = gemma_layers.AdaptiveRMSNorm.forward

    def wrong(norm: Any, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normalised = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        result, gate = right(norm, x, condition)
        return result - normalised, gate

    patch.setattr(gemma_layers.AdaptiveRMSNorm, "forward", wrong)


def _last_silu_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pi_network.F, "silu", _last_of_two(pi_network.F.silu))


def _last_of_two(right: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The right function each first time, and none each second."""
    calls = 0

    def wrong(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return right(x) if calls % 2 else x

    return wrong


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "time_embedding_cos_before_sin": _cos_before_sin,
    "actions_see_each_other_the_other_way": _actions_see_those_before,
    "language_embeddings_not_scaled": _words_not_scaled,
    "image_embeddings_scaled_like_the_language": _images_scaled,
    "norm_weight_without_one_added": _weight_without_one,
    "state_sees_the_actions": _state_sees_the_actions,
    "gate_left_out": _no_gate,
    "scale_without_one_added": _scale_without_one,
    "last_silu_of_the_time_network_left_out": _last_silu_left_out,
}


def _planted() -> list[tuple[str, str]]:
    return [(kind, name) for kind in KINDS for name in MISTAKES if name in mistakes_of(kind)]


@pytest.mark.parametrize(("kind", "name"), _planted())
def test_a_planted_mistake_shows_where_it_should(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = mistakes_of(kind)[name]
    MISTAKES[name](monkeypatch)

    worst = differences(compute(kind), golden(kind).of("full"))

    first = mistake["first_tensor_that_differs"]
    assert worst[first] > limit(first)
    assert worst["velocity"] > limit("velocity")


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_embedding_in_float32_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _time_in_float32(monkeypatch)
    known = golden(kind)
    times = known.inputs["time"]

    found = pi_network.time_embedding(times, known.sizes.expert.width, known.shape.min_period, known.shape.max_period)

    assert (found.double() - known.of("full")["time_emb"]).abs().max() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_names_go_there_and_back(kind: str) -> None:
    file = json.loads((FOLDER / kind / "checkpoint_shapes.json").read_text())["tensors"]

    assert [published_name(own_name(name)) for name in file] == list(file)
    newer = {name.replace(".vision_tower.vision_model.", ".vision_tower."): name for name in file}
    assert [published_name(own_name(name)) for name in newer] == list(newer.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_without_the_last_layers_end_is_the_same(kind: str) -> None:
    known, network = golden(kind).of("full"), make_network(kind)
    images = [known[name][:1] for name in sorted(known) if name.startswith("image.")]
    seen = [known[name][:1] for name in sorted(known) if name.startswith("image_mask.")]
    prefix = network.embed_prefix(images, seen, known["tokens"][:1], known["token_mask"][:1])

    short, whole = network.read_prefix(prefix), network.read_prefix(prefix, whole=True)

    assert short.out is None and whole.out is not None
    for one, other in zip(short.memory, whole.memory, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_token_that_is_not_valid_sees_itself_alone() -> None:
    valid = torch.tensor([[True, False]])
    mask = look_ahead_mask(valid, torch.zeros_like(valid))

    assert mask.tolist() == [[[True, False], [False, False]]]
    assert never_blind(mask).tolist() == [[[True, False], [False, True]]]
    wider = suffix_mask(torch.tensor([[False]]), valid, torch.zeros_like(valid))
    assert never_blind(wider).tolist() == [[[False, True, False], [False, False, True]]]


def test_the_expert_reads_the_memory_of_any_model_with_its_heads() -> None:
    sizes = GemmaSizes(width=12, depth=2, mlp_dim=16, num_heads=4, num_kv_heads=2, head_dim=6)
    expert = ActionExpert(sizes, condition_dim=5)
    memory = [(torch.randn(1, 2, 3, 6), torch.randn(1, 2, 3, 6)) for _ in range(2)]
    mask, where = torch.ones(1, 4, 7, dtype=torch.bool), torch.arange(3, 7)[None]

    assert expert(torch.randn(1, 4, 12), memory, mask, where, torch.randn(1, 5)).shape == (1, 4, 12)
    with pytest.raises(ValueError, match="2 layers and reads a memory of 1"):
        expert(torch.randn(1, 4, 12), memory[:1], mask, where, torch.randn(1, 5))
    other = [(torch.randn(1, 1, 3, 6), torch.randn(1, 1, 3, 6)) for _ in range(2)]
    with pytest.raises(ValueError, match="heads of 2 x 6, its memory 1 x 6"):
        expert(torch.randn(1, 4, 12), other, mask, where, torch.randn(1, 5))
