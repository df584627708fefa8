"""VGGT against golden data of the published network, and what its small forms promise."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from atlas.errors import InputError
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.attention_blocks import grid_rotation, rotate, rotation, token_positions
from atlas.policies.vggt.stems import resize_positions

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vggt_parity"
WEIGHTS = FIXTURES / "weights.safetensors"
KIT = json.loads((FIXTURES / "config.json").read_text())
CPU = torch.device("cpu")


def build(config: VGGTConfig) -> VGGTAggregator:
    torch.manual_seed(0)
    return VGGTAggregator(config)


def small(stem: Any = "conv", **changes: Any) -> VGGTAggregator:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "layer_scale": 0.5}
    return build(VGGTConfig(**{**sizes, "stem": stem, "stem_width": 8, **changes}))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FIXTURES / "golden.safetensors")


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    inputs = load_file(FIXTURES / "inputs.safetensors")
    return {name.removesuffix(".images_u8"): value.float() / 255 for name, value in inputs.items()}


@pytest.fixture(scope="module")
def published() -> VGGTAggregator:
    """The small form with the golden data's weights."""
    model = build(VGGTConfig(**KIT["config"])).eval()
    model.load_checkpoint(WEIGHTS)
    return model


# ---- the published network's numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", KIT["cases"])
def test_layers_match_the_published_network(
    case: str, published: VGGTAggregator, images: dict[str, Tensor], golden: dict[str, Tensor]
) -> None:
    layers = [i for i in range(4) if f"{case}.layer{i}" in golden]
    assert layers == ([0, 1, 2, 3] if case == "wide" else [0, 3])
    with torch.no_grad():
        outputs = published(images[case], layers)
    for i, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(output, golden[f"{case}.layer{i}"], atol=1e-4, rtol=0)


def test_tokens_that_enter_the_blocks_match(
    published: VGGTAggregator, images: dict[str, Tensor], golden: dict[str, Tensor]
) -> None:
    seen: list[Tensor] = []
    hook = published.frame_blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    with torch.no_grad():
        published(images["wide"])
    hook.remove()
    torch.testing.assert_close(seen[0], golden["wide.tokens_in"], atol=1e-5, rtol=0)


def test_rotary_positions_and_rotation_match(golden: dict[str, Tensor]) -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"), dim=-1).flatten(0, 1)
    positions = token_positions(grid, 5)
    assert torch.equal(positions.int().expand(6, -1, -1), golden["wide.pos"])
    for ours, cached in zip(rotation(positions, 16, 100.0), grid_rotation(4, 5, 5, 16, 100.0, CPU), strict=True):
        assert torch.equal(ours, cached)

    heads_last = golden["rope.in"].transpose(1, 2)
    turned = rotate(heads_last, rotation(golden["rope.pos"].float(), 16, 100.0)).transpose(1, 2)
    torch.testing.assert_close(turned, golden["rope.out"], atol=1e-5, rtol=0)


def test_names_and_shapes_are_the_published_checkpoints() -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, entry in json.loads((FIXTURES / "checkpoint_shapes.json").read_text()).items():
        for i in range(entry["n"]):
            expected[name.replace("{i}", str(i))] = tuple(entry["shape"])
    with torch.device("meta"):
        model = VGGTAggregator(VGGTConfig())
    ours = {name: tuple(tensor.shape) for name, tensor in model.checkpoint_state_dict().items()}
    assert ours == expected
    assert len(ours) == 1210
    assert sum(math.prod(shape) for shape in ours.values()) == 909_112_320


# ---- the checkpoint --------------------------------------------------------------------------------------------


def test_checkpoint_state_dict_makes_the_round_trip(published: VGGTAggregator) -> None:
    tensors = published.checkpoint_state_dict()
    file = load_file(WEIGHTS)
    assert tensors.keys() == file.keys()
    assert all(torch.equal(tensors[name], file[name].float()) for name in file)

    other = build(published.config)
    assert any(not torch.equal(a, b) for a, b in zip(other.parameters(), published.parameters(), strict=True))
    other.load_checkpoint_state_dict(tensors)
    ours = published.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in other.state_dict().items())


def test_load_checkpoint_passes_over_the_other_heads(tmp_path: Path, published: VGGTAggregator) -> None:
    heads = {f"{head}.x.weight": torch.ones(2) for head in ("camera_head", "depth_head", "point_head", "track_head")}
    save_file({**load_file(WEIGHTS), **heads}, tmp_path / "model.safetensors")
    model = build(published.config)
    model.load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(model.camera_token, published.camera_token)


def test_load_checkpoint_fills_a_model_built_on_meta(images: dict[str, Tensor], published: VGGTAggregator) -> None:
    with torch.device("meta"):
        model = VGGTAggregator(published.config)
    with pytest.raises(InputError, match="to_empty"):
        model.load_checkpoint(WEIGHTS)
    model.to_empty(device="cpu")
    model.load_checkpoint(WEIGHTS)
    with torch.no_grad():
        assert torch.equal(model(images["native"])[0], published(images["native"])[0])


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("aggregator.patch_embed.blocks.1.attn.qkv.weight", None, "is missing"),
        ("aggregator.global_blocks.3.ls2.gamma", None, "is missing"),
        ("aggregator.frame_blocks.4.ls1.gamma", torch.ones(48), "is not one of its tensors"),
        ("text_head.weight", torch.ones(2), "is not one of its tensors"),
        ("aggregator.patch_embed.blocks.0.attn.qkv.bias", torch.ones(48), "is [48], but should be [144]"),
        ("aggregator.camera_token", torch.ones(1, 1, 1, 48), "is [1, 1, 1, 48], but should be [1, 2, 1, 48]"),
    ],
)
def test_load_checkpoint_is_strict(
    tmp_path: Path, published: VGGTAggregator, name: str, value: Tensor | None, complaint: str
) -> None:
    tensors = {k: v for k, v in load_file(WEIGHTS).items() if k != name}
    if value is not None:
        tensors[name] = value
    save_file(tensors, tmp_path / "model.safetensors")
    model = build(published.config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(f"{name} {complaint}")):
        model.load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(f"{name} {complaint}")):
        model.load_checkpoint_state_dict(tensors)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_load_checkpoint_refuses_what_is_no_checkpoint(tmp_path: Path, published: VGGTAggregator) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        published.load_checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors, whatever the name says")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        published.load_checkpoint(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="conv stem"):
        small().load_checkpoint(WEIGHTS)


# ---- views, layers and sizes -----------------------------------------------------------------------------------


def test_views_after_the_first_are_a_set(published: VGGTAggregator, images: dict[str, Tensor]) -> None:
    views = images["wide"].flatten(0, 1).unsqueeze(0)  # [1, 6, 3, H, W]
    order = [0, 4, 2, 5, 1, 3]
    with torch.no_grad():
        straight, mixed = published(views)[0], published(views[:, order])[0]
        swapped_first = published(views[:, [1, 0, 2, 3, 4, 5]])[0]
    torch.testing.assert_close(mixed, straight[:, order], atol=1e-4, rtol=0)
    assert (swapped_first[:, 2:] - straight[:, 2:]).abs().max() > 0.01


def test_layers_come_as_asked_and_the_last_by_default() -> None:
    model, images = small().eval(), torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        everything = model(images, [0, 1])
        assert all(output.shape == (2, 3, 1 + 4 + 16, 64) for output in everything)
        assert torch.equal(model(images)[0], everything[1])
        backwards = model(images, [1, 0])
    assert torch.equal(backwards[0], everything[1])
    assert torch.equal(backwards[1], everything[0])


def test_blocks_after_the_highest_layer_are_not_run() -> None:
    model = small()
    model.global_blocks[1].register_forward_pre_hook(lambda block, args: pytest.fail("the second pair was run"))
    model(torch.rand(1, 1, 3, 32, 32), [0])


@pytest.mark.parametrize("layers", [[2], [-1], [0, 7], []])
def test_layers_out_of_range_are_refused(layers: list[int]) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        small()(torch.rand(1, 1, 3, 32, 32), layers)


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_images_of_other_sizes_and_refused_ones(stem: str) -> None:
    model = small(stem)
    assert model(torch.rand(1, 2, 3, 16, 48))[0].shape == (1, 2, 5 + 12, 64)
    with pytest.raises(InputError, match=r"30 x 32; .* patch size, 8, such as 32 x 32"):
        model(torch.rand(1, 1, 3, 30, 32))
    with pytest.raises(InputError, match="zero views"):
        model(torch.rand(1, 0, 3, 32, 32))
    with pytest.raises(InputError, match=r"\[batch, views, 3, height, width\]"):
        model(torch.rand(1, 3, 32, 32))
    with pytest.raises(InputError, match="divide by 255"):
        model(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem": "convolution"}, "Did you mean 'conv'"),
        ({"embed_dim": 100, "num_heads": 16}, "multiple of 4 x num_heads = 64"),
        ({"stem": "conv", "patch_size": 14}, "power of two"),
        ({"img_size": 500}, "multiple of the patch_size, 14"),
        ({"patch_embed_num_heads": 15}, "patch_embed_num_heads, 15"),
        ({"mlp_ratio": 2.5}, "whole numbers"),
        ({"rope_freq": 0.0}, "above 0"),
        ({"depth": 0}, "depth is 0"),
        ({"num_register_tokens": -1}, "at least 0"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        VGGTConfig(**changes)


@pytest.mark.parametrize("registers", [0, 3])
def test_number_of_registers(registers: int) -> None:
    model = small(num_register_tokens=registers)
    assert model(torch.rand(1, 2, 3, 32, 32))[0].shape == (1, 2, 1 + registers + 16, 64)


# ---- tokens from outside ---------------------------------------------------------------------------------------


def test_positions_of_a_grid_give_what_the_grid_gives() -> None:
    model, tokens = small("none"), torch.randn(2, 3, 6, 32)
    grid = torch.tensor([[r, c] for r in range(2) for c in range(3)], dtype=torch.float32).expand(2, 3, 6, 2)
    for a, b in zip(
        model.forward_tokens(tokens, (2, 3), [0, 1]),
        model.forward_tokens(tokens, layers=[0, 1], positions=grid),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_tokens_anywhere_are_a_set_with_positions_that_matter() -> None:
    model, tokens = small("none", layer_scale=1.0), torch.randn(1, 2, 5, 32)
    positions = (torch.rand(1, 2, 5, 2) * 4).requires_grad_()
    order = [3, 1, 4, 0, 2]
    (straight,) = model.forward_tokens(tokens, positions=positions)
    (mixed,) = model.forward_tokens(tokens[:, :, order], positions=positions[:, :, order])
    torch.testing.assert_close(mixed[:, :, 5:], straight[:, :, 5:][:, :, order], atol=1e-5, rtol=0)
    straight.square().sum().backward()
    assert positions.grad is not None
    assert (positions.grad.abs().amax(dim=-1) > 0).all()


def test_tokens_that_do_not_fit_are_refused() -> None:
    model = small("none")
    with pytest.raises(InputError, match="has no stem"):
        model(torch.rand(1, 1, 3, 32, 32))
    with pytest.raises(InputError, match=r"got 6 tokens per view and the grid \(2, 2\)"):
        model.forward_tokens(torch.rand(1, 1, 6, 32), (2, 2))
    with pytest.raises(InputError, match="each token's position"):
        model.forward_tokens(torch.rand(1, 1, 6, 32))
    with pytest.raises(InputError, match=r"need \[1, 1, 6, 2\]"):
        model.forward_tokens(torch.rand(1, 1, 6, 32), positions=torch.zeros(1, 6, 2))
    with pytest.raises(InputError, match=r"\[batch, views, patches, 32\]"):
        model.forward_tokens(torch.rand(1, 1, 6, 16), (2, 3))


# ---- what is kept between calls, and precision -----------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 4, 37])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (4, 5), (2, 8), (6, 3), (37, 26)])
def test_resized_positions_are_the_antialiased_bicubic_ones(side: int, size: tuple[int, int]) -> None:
    grid = torch.randn(side * side, 3)
    image = grid.view(1, side, side, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)
    ours = resize_positions(grid, *size)
    torch.testing.assert_close(ours, expected[0].permute(1, 2, 0).flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stem", ["conv", "patch", "dinov2"])
def test_training_works_after_inference_and_reaches_every_weight(stem: str) -> None:
    # 24 x 40 is in no other test: what is kept for this size is made in inference mode.
    model = small(stem, patch_embed_depth=1, patch_embed_num_heads=4)
    images = torch.rand(2, 2, 3, 24, 40)
    with torch.inference_mode():
        model(images)
    model(images)[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("mask_token"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            # Data-parallel training copies, and warns of, gradients that lie in memory unlike their weights.
            assert parameter.grad.stride() == parameter.stride(), name
        else:
            assert not parameter.requires_grad


@pytest.mark.parametrize("stem", ["conv", "patch", "dinov2"])
def test_precisions_agree(stem: str) -> None:
    model = small(stem, patch_embed_depth=1, patch_embed_num_heads=4).eval()
    images = torch.rand(1, 2, 3, 32, 48)
    with torch.no_grad():
        (exact,) = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            (mixed,) = model(images)
        (low,) = model.to(torch.bfloat16)(images)
    assert mixed.dtype == torch.float32  # the residual stream stays exact under autocast
    assert low.dtype == torch.bfloat16
    assert model.normalize.mean.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0)
    torch.testing.assert_close(low.float(), exact, atol=0.2, rtol=0)


def test_weights_can_be_saved_as_they_are(tmp_path: Path) -> None:
    model = small()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert not any(name.startswith("normalize") for name in model.state_dict())
    other = small()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))


def test_small_form_starts_with_activations_of_even_scale() -> None:
    for stem in ("conv", "patch"):
        model = small(stem, layer_scale=1.0)
        with torch.no_grad():
            outputs = model(torch.rand(4, 2, 3, 32, 32), [0, 1])
        assert all(0.3 < output[:, :, 5:].std() < 5 for output in outputs)
