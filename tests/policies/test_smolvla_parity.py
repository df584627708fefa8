"""SmolVLA beside LeRobot: every intermediate value, and that mistakes are seen where they are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from atlas.data import image_fit
from atlas.policies.base import load_policy
from atlas.policies.published.flow_pieces import look_ahead_mask, mix, positions_of, time_embedding
from atlas.policies.smolvla import smolvla_layers, smolvla_network, smolvla_policy, smolvla_vision
from atlas.policies.smolvla.smolvla_policy import SmolVLAPolicy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from tests.policies.golden import Golden, Values, wrong


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("smolvla")


def policy_for(golden: Golden, case: str) -> SmolVLAPolicy:
    whole = load_policy(golden.folder)
    if case == "full":
        assert isinstance(whole, SmolVLAPolicy)
        return whole
    config = SmolVLAConfig(pretrained=str(golden.folder), statistics="checkpoint")
    return config.build(golden.processor(whole.processor, case)).eval()


@torch.no_grad()
def measure(policy: SmolVLAPolicy, golden: Golden) -> Values:
    """All values that the golden set has, in the order in which they are computed."""
    network, sizes, batch, inputs = policy.network, policy.network.sizes, golden.batch(policy.processor), golden.inputs
    b = len(batch)
    found: Values = {}
    found["tokens"], found["token_mask"] = policy.words(smolvla_policy.prompts(batch.instruction), torch.device("cpu"))
    found["state_normalized"] = policy.state_scaler.normalize(batch.proprio, batch.source)
    assert batch.actions is not None and batch.action_is_pad is not None
    actions = found["action_normalized"] = policy.action_scaler.normalize(batch.actions, batch.source)
    pictures = [*policy.pictures(batch), *[policy.empty_picture(torch.device("cpu"))] * len(policy.slots.absent)]
    for slot, picture in enumerate(pictures):
        found[f"image.{slot}"] = picture.expand(b, -1, -1, -1)
        found[f"image_mask.{slot}"] = torch.full((b,), slot < len(policy.slots.present))
        found[f"vision_out.{slot}"] = network.vision(picture).expand(b, -1, -1)
        found[f"image_emb.{slot}"] = network.embed_pictures(picture).expand(b, -1, -1)
    time_width = sizes.expert.width
    found["time_emb"] = smolvla_network.time_embedding(inputs["time"], time_width, *sizes.periods)
    padded = F.pad(actions, (0, sizes.action - actions.shape[-1]))
    found["x_t"], found["u_t"] = mix(padded, inputs["noise"], inputs["time"])
    found["suffix_embs"] = network.embed_actions(found["x_t"], inputs["time"])
    tokens, valid = policy.embed_context(batch)
    state = network.embed_state(F.pad(found["state_normalized"], (0, sizes.state - batch.proprio.shape[-1])))
    found["prefix_embs"] = torch.cat([tokens, state], dim=1)
    found |= _through(policy, golden, found["x_t"], tokens, valid, state)
    found["loss_elements"] = (found["velocity"] - found["u_t"]).square()
    real = found["loss_elements"][..., : actions.shape[-1]]
    found["loss"] = policy.reduce(real, batch.action_is_pad).loss
    found["loss_per_sample"] = torch.stack(
        [policy.reduce(real[i : i + 1], batch.action_is_pad[i : i + 1]).loss for i in range(b)]
    )
    return found | _sampled(policy, golden)


def _through(
    policy: SmolVLAPolicy,
    golden: Golden,
    x: torch.Tensor,
    tokens: torch.Tensor,
    valid: torch.Tensor,
    state: torch.Tensor,
) -> Values:
    """Masks, positions, layers of both streams and the velocity."""
    network, b, h = policy.network, *x.shape[:2]
    seen: dict[str, list[torch.Tensor]] = {}
    with ExitStack() as hooks:
        for stream, layers in (("prefix", network.text_layers), ("suffix", network.expert_layers)):
            for number, layer in enumerate(layers):
                name = f"layer.{number}.{stream}"

                def keep(_m: object, _i: object, out: tuple[torch.Tensor, ...], name: str = name) -> None:
                    seen.setdefault(name, []).append(out[0])

                hooks.callback(layer.register_forward_hook(keep).remove)
        norm = network.expert.get_submodule("norm")
        hooks.callback(
            norm.register_forward_hook(lambda _m, _i, out: seen.update({"suffix_out": [out]})).remove  # type: ignore[func-returns-value]
        )
        prefix = network.read_state(network.read_context(tokens, valid), state)
        velocity = network.velocity(prefix, x, golden.inputs["time"])
    found = {name: torch.cat(parts, dim=1) for name, parts in seen.items()}
    p = prefix.valid.shape[1]
    found["prefix_pad_masks"], found["suffix_pad_masks"] = prefix.valid, torch.ones(b, h, dtype=torch.bool)
    flags = torch.cat([torch.zeros(p - 1), torch.ones(1 + h)])
    both = torch.cat([found["prefix_pad_masks"], found["suffix_pad_masks"]], dim=1)
    found["prefix_att_masks"] = flags[:p].bool().expand(b, p)
    found["suffix_att_masks"] = flags[p:].expand(b, h)
    found["attention_mask"] = look_ahead_mask(both, flags)
    found["position_ids"] = positions_of(both)
    last = len(network.text_layers) - 1
    found["prefix_out"] = network.text.get_submodule("norm")(found[f"layer.{last}.prefix"])
    order = [
        "prefix_pad_masks",
        "suffix_pad_masks",
        "prefix_att_masks",
        "suffix_att_masks",
        "attention_mask",
        "position_ids",
    ]
    layers_first = sorted((n for n in found if n.startswith("layer.")), key=lambda n: (int(n.split(".")[1]), n))
    return {name: found[name] for name in [*order, *layers_first, "prefix_out", "suffix_out"]} | {"velocity": velocity}


def _sampled(policy: SmolVLAPolicy, golden: Golden) -> Values:
    """One sampling of ten steps from the golden noise."""
    batch, found = golden.batch(policy.processor), {}
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    inner = policy.velocity

    def noted(prefix: object, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        steps.append((x, inner(prefix, x, time), time[0]))  # type: ignore[arg-type]
        return steps[-1][1]

    with patch.object(policy, "velocity", noted):
        chunk = policy.grow(batch, policy.look(batch), start=golden.inputs["sample_noise"])
    found["sample.x_t"], found["sample.v_t"] = (torch.stack([step[i] for step in steps]) for i in (0, 1))
    found["sample.timestep"] = torch.stack([step[2] for step in steps])
    real = chunk[..., : policy.processor.action_spec.dim]
    found["sample.actions_normalized"] = real
    found["sample.actions"] = policy.action_scaler.denormalize(real, batch.source)
    return found


@pytest.mark.parametrize("case", ["full", "missing"])
def test_every_value_is_that_of_lerobot(golden: Golden, case: str) -> None:
    policy = policy_for(golden, case)

    measured = measure(policy, golden)

    assert policy.description.folder.path == golden.folder
    assert wrong(golden.differences(case, measured)) == {}
    unmeasured = {name.removeprefix(f"{case}.") for name in golden.values if name.startswith(f"{case}.")} - set(
        measured
    )
    assert {name for name in unmeasured if not name.startswith(("rtc.", "sample."))} == set()


def test_real_time_chunking(golden: Golden) -> None:
    policy, described = policy_for(golden, "full"), golden.described["rtc"]
    batch, rest = golden.batch(policy.processor), golden.values["full.rtc.prev_chunk_left_over"]
    guide = policy.guidance(rest, described["inference_delay"], described["execution_horizon"])

    chunk = policy.grow(batch, policy.look(batch), start=golden.inputs["sample_noise"].flip(0), guide=guide)

    measured = {"rtc.actions_normalized": chunk[..., : policy.processor.action_spec.dim]}
    assert wrong(golden.differences("full", measured)) == {}


# ---- mistakes: each is planted, and seen at the place where it is made -----------------------------------------


def _cosines_first(time: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
    return time_embedding(time, width, shortest, longest).roll(width // 2, -1)


def _in_float32(time: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
    periods = shortest * (longest / shortest) ** torch.linspace(0.0, 1.0, width // 2)
    angles = 2 * torch.pi * time[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], -1).double()


def _both_ways(valid: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    return look_ahead_mask(valid, flags.clone().index_fill_(-1, torch.arange(len(flags) - 9, len(flags)), 0))


def _positions_go_on(positions: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts_at_zero = positions.shape[1] == 10 and int(positions.min()) == 0
    return smolvla_layers.rotation(positions + 61 if starts_at_zero else positions, head_dim)


def _shifted_patches(policy: SmolVLAPolicy) -> None:
    """Rows and columns 0, 0, 1, 2, …: what a release of transformers gave."""
    table, side = policy.network.vision.embeddings.position_embedding, policy.network.sizes.vision.side
    at = (torch.arange(side) - 1).clamp(min=0)
    table.weight = torch.nn.Parameter(table.weight[(at[:, None] * side + at).flatten()])


def _other_shuffle(connector: torch.nn.Module, patches: torch.Tensor) -> torch.Tensor:
    b, n, width = patches.shape
    side = round(n**0.5)
    grid = patches.view(b, side // 4, 4, side // 4, 4, width).permute(0, 1, 3, 4, 2, 5)
    projected: torch.Tensor = connector.modality_projection["proj"](grid.reshape(b, n // 16, 16 * width))  # type: ignore[index, operator]
    return projected


def _resized(policy: SmolVLAPolicy, stack: ExitStack, **wrong: Any) -> None:
    """Resized otherwise than by torch's bilinear interpolation."""
    right = F.interpolate
    _swap(stack, image_fit.F, "interpolate", lambda x, **settings: right(x, **{**settings, **wrong}))


def _stretched(fit: image_fit.ImageFit, images: torch.Tensor) -> torch.Tensor:
    flat, size = images.reshape(-1, *images.shape[-3:]), (fit.height, fit.width)
    whole = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return whole.view(*images.shape[:-2], *size)


def _prefix(change: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Callable[..., Any]:
    """The prefix with its tokens changed: (tokens [B, N, width], how many are of pictures, of words)."""
    right = smolvla_network.SmolVLANetwork.embed_context

    def wrong(network: Any, pictures: Any, there: Any, words: torch.Tensor, is_word: torch.Tensor) -> Any:
        tokens, valid = right(network, pictures, there, words, is_word)
        return change(tokens, tokens.shape[1] - words.shape[1], words.shape[1]), valid

    return wrong


def _pictures_not_scaled(tokens: torch.Tensor, pictures: int, words: int) -> torch.Tensor:
    return torch.cat([tokens[:, :pictures] / tokens.shape[-1] ** 0.5, tokens[:, pictures:]], dim=1)


def _words_not_scaled(tokens: torch.Tensor, pictures: int, words: int) -> torch.Tensor:
    return torch.cat([tokens[:, :pictures], tokens[:, pictures:] / tokens.shape[-1] ** 0.5], dim=1)


Planted = tuple[str, str, Callable[[SmolVLAPolicy, ExitStack], object]]  # mistakes.json's name, where it is seen, what
MISTAKES: list[Planted] = [
    ("antialiased_resize", "image.0", lambda p, _: _refit(p, antialias=True)),
    (
        "border_on_the_other_side_or_centred",
        "image.0",
        lambda p, _: _refit(p, placing="centre"),
    ),
    (
        "time_embedding_cos_before_sin",
        "time_emb",
        lambda _, s: _swap(s, smolvla_network, "time_embedding", _cosines_first),
    ),
    ("time_embedding_in_float32", "time_emb", lambda _, s: _swap(s, smolvla_network, "time_embedding", _in_float32)),
    (
        "actions_see_each_other_the_other_way",
        "layer.0.suffix",
        lambda _, s: _swap(s, smolvla_network, "look_ahead_mask", _both_ways),
    ),
    (
        "rope_base_of_the_language_model_100000",
        "layer.0.prefix",
        lambda _, s: _swap(s, smolvla_layers, "ROPE_BASE", 1e5),
    ),
    (
        "cross_attention_positions_not_started_at_zero",
        "layer.1.suffix",
        lambda _, s: _swap(s, smolvla_network, "rotation", _positions_go_on),
    ),
    ("patch_positions_of_transformers_4_57", "vision_out.0", lambda p, _: _shifted_patches(p)),
    ("newline_not_appended", "tokens", lambda _, s: _swap(s, smolvla_policy, "prompts", list)),
    ("bicubic_resize", "image.0", lambda p, s: _resized(p, s, mode="bicubic")),
    (
        "resize_without_keeping_proportions",
        "image.0",
        lambda _, s: _swap(s, image_fit.ImageFit, "__call__", _stretched),
    ),
    (
        "image_embeddings_not_scaled",
        "prefix_embs",
        lambda _, s: _swap(s, smolvla_network.SmolVLANetwork, "embed_context", _prefix(_pictures_not_scaled)),
    ),
    (
        "language_embeddings_not_scaled",
        "prefix_embs",
        lambda _, s: _swap(s, smolvla_network.SmolVLANetwork, "embed_context", _prefix(_words_not_scaled)),
    ),
    ("", "image_emb.0", lambda _, s: _swap(s, smolvla_vision.Connector, "forward", _other_shuffle)),
]


def _refit(policy: SmolVLAPolicy, **changes: object) -> None:
    policy.processor = replace(policy.processor, fit=replace(policy.fit, **changes))


def _swap(stack: ExitStack, owner: object, name: str, other: object) -> None:
    stack.enter_context(patch.object(owner, name, other))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[name or "pixel_shuffle" for name, _, _ in MISTAKES])
def test_a_mistake_is_seen_where_it_is_made(golden: Golden, mistake: Planted) -> None:
    name, place, plant = mistake
    policy = policy_for(golden, "full")

    with ExitStack() as stack:
        plant(policy, stack)
        measured = measure(policy, golden)

    assert next(iter(wrong(golden.differences("full", measured)))) == place
    told = json.loads((golden.folder / "mistakes.json").read_text())
    if name in told and name not in (
        "actions_see_each_other_the_other_way",
        "cross_attention_positions_not_started_at_zero",
        "bicubic_resize",  # whose overshoot is cut off here
    ):
        assert float(measured["loss"]) == pytest.approx(told[name]["loss"], abs=1e-3)
