"""VGGT's camera and depth heads against golden data of the published network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atlas.errors import InputError
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.camera_head import CameraHeadConfig, VGGTCameraHead, pose_to_cameras
from atlas.policies.vggt.depth_head import DepthHeadConfig, VGGTDepthHead

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vggt_parity"
WEIGHTS = FIXTURES / "heads_weights.safetensors"
KIT = json.loads((FIXTURES / "config.json").read_text())
WITH_DEPTH = [case for case in KIT["cases"] if case != "single"]
HEADS = ("camera_head", "depth_head")


def build(head: str, **changes: Any) -> VGGTCameraHead | VGGTDepthHead:
    torch.manual_seed(0)
    sizes = {**KIT[head], **changes}
    return (
        VGGTCameraHead(CameraHeadConfig(**sizes)) if head == "camera_head" else VGGTDepthHead(DepthHeadConfig(**sizes))
    )


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FIXTURES / "heads_golden.safetensors")


@pytest.fixture(scope="module")
def heads() -> tuple[VGGTCameraHead, VGGTDepthHead]:
    camera, depth = (
        VGGTCameraHead(CameraHeadConfig(**KIT["camera_head"])),
        VGGTDepthHead(DepthHeadConfig(**KIT["depth_head"])),
    )
    camera.load_checkpoint(WEIGHTS)
    depth.load_checkpoint(WEIGHTS)
    return camera, depth


@pytest.fixture(scope="module")
def aggregator() -> VGGTAggregator:
    model = VGGTAggregator(VGGTConfig(**KIT["config"])).eval()
    model.load_checkpoint(FIXTURES / "weights.safetensors")
    return model


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    inputs = load_file(FIXTURES / "inputs.safetensors")
    return {name.removesuffix(".images_u8"): value.float() / 255 for name, value in inputs.items()}


@pytest.fixture(scope="module")
def outputs(aggregator: VGGTAggregator, images: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """The aggregator's four layers of every case."""
    with torch.no_grad():
        return {case: aggregator(images[case], [0, 1, 2, 3]) for case in KIT["cases"]}


# ---- the published network's numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", KIT["cases"])
def test_poses_of_every_iteration_match_the_published_network(
    case: str,
    heads: tuple[VGGTCameraHead, VGGTDepthHead],
    outputs: dict[str, list[Tensor]],
    golden: dict[str, Tensor],
) -> None:
    with torch.no_grad():
        poses = heads[0](outputs[case][-1])
    expected = golden[f"{case}.pose_enc_iters"]
    torch.testing.assert_close(poses.activated, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(poses.raw[..., :7], expected[..., :7], atol=2e-5, rtol=0)
    assert torch.equal(poses.raw[..., 7:].clamp(min=0), poses.activated[..., 7:])


@pytest.mark.parametrize("case", WITH_DEPTH)
def test_depth_and_confidence_match_the_published_network(
    case: str,
    heads: tuple[VGGTCameraHead, VGGTDepthHead],
    outputs: dict[str, list[Tensor]],
    images: dict[str, Tensor],
    golden: dict[str, Tensor],
) -> None:
    height, width = images[case].shape[-2:]
    with torch.no_grad():
        depth, confidence = heads[1](outputs[case], (height, width))
    torch.testing.assert_close(depth, golden[f"{case}.depth"], atol=2e-5, rtol=0)
    torch.testing.assert_close(confidence, golden[f"{case}.depth_conf"], atol=2e-5, rtol=0)


def test_full_size_names_and_shapes_are_the_published_checkpoints() -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, entry in json.loads((FIXTURES / "heads_shapes.json").read_text()).items():
        for i in range(entry["n"]):
            expected[name.replace("{i}", str(i))] = tuple(entry["shape"])
    with torch.device("meta"):
        camera, depth = VGGTCameraHead(CameraHeadConfig()), VGGTDepthHead(DepthHeadConfig())
    tensors = {**camera.checkpoint_state_dict(), **depth.checkpoint_state_dict()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    for head, count, parameters in ((camera, 69, 216_174_610), (depth, 62, 32_654_562)):
        assert len(head.state_dict()) == count
        assert sum(math.prod(tensor.shape) for tensor in head.state_dict().values()) == parameters


# ---- pose encodings --------------------------------------------------------------------------------------------


def test_cameras_of_pose_encodings_match_the_published_ones(golden: dict[str, Tensor]) -> None:
    extrinsics, intrinsics = pose_to_cameras(golden["pose.enc"], (56, 70))
    torch.testing.assert_close(extrinsics, golden["pose.extrinsic"], atol=1e-6, rtol=0)
    torch.testing.assert_close(intrinsics, golden["pose.intrinsic"], atol=1e-4, rtol=0)


def test_a_quarter_turn_about_the_vertical_axis_looks_to_the_right() -> None:
    # The camera turned to the right sees what was at the world's right (x) straight ahead (z).
    half = math.sqrt(0.5)
    extrinsic, intrinsic = pose_to_cameras(torch.tensor([0, 0, 2.0, 0, -half, 0, half, math.pi / 2, 1.0]), (100, 60))
    torch.testing.assert_close(extrinsic @ torch.tensor([3.0, 0, 0, 1]), torch.tensor([0.0, 0, 5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(intrinsic[1], torch.tensor([0.0, 50, 50]), atol=1e-4, rtol=0)
    assert intrinsic[0].tolist() == pytest.approx([30 / math.tan(0.5), 0, 30])


# ---- the checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_only_the_heads_own_tensors_are_read(head: str, tmp_path: Path) -> None:
    others = {f"{part}.x": torch.ones(2) for part in ("aggregator", "point_head", "track_head")}
    save_file({**load_file(WEIGHTS), **others}, tmp_path / "model.safetensors")
    model = build(head)
    model.load_checkpoint(tmp_path)  # the folder
    ours, file = model.checkpoint_state_dict(), load_file(WEIGHTS)
    assert ours.keys() == {name for name in file if name.startswith(head)}
    assert all(torch.equal(ours[name], file[name].float()) for name in ours)


@pytest.mark.parametrize(
    ("head", "name", "value", "complaint"),
    [
        ("camera_head", "camera_head.trunk.1.attn.qkv.bias", None, "is missing"),
        ("camera_head", "camera_head.trunk.2.ls1.gamma", torch.ones(96), "is not one of its tensors"),
        ("camera_head", "camera_head.embed_pose.weight", torch.ones(96, 7), "is [96, 7], but should be [96, 9]"),
        ("depth_head", "depth_head.scratch.refinenet4.out_conv.bias", None, "is missing"),
        ("depth_head", "depth_head.scratch.refinenet4.resConfUnit1.conv1.bias", torch.ones(16), "is not one of"),
        ("depth_head", "depth_head.scratch.output_conv2.2.bias", torch.ones(4), "is [4], but should be [2]"),
        ("depth_head", "text_head.weight", torch.ones(2), "is not one of its tensors"),
    ],
)
def test_loading_is_strict(head: str, name: str, value: Tensor | None, complaint: str, tmp_path: Path) -> None:
    tensors = {k: v for k, v in load_file(WEIGHTS).items() if k != name}
    if value is not None:
        tensors[name] = value
    save_file(tensors, tmp_path / "model.safetensors")
    model = build(head)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(f"{name} {complaint}")):
        model.load_checkpoint(tmp_path / "model.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("head", HEADS)
def test_what_is_no_checkpoint_is_refused(head: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        build(head).load_checkpoint(tmp_path / "absent.safetensors", "checkpoint")
    (tmp_path / "text.safetensors").write_text("not tensors, whatever the name says")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        build(head).load_checkpoint(tmp_path / "text.safetensors")
    with torch.device("meta"):
        model = build(head)
    with pytest.raises(InputError, match="to_empty"):
        model.load_checkpoint(WEIGHTS)


# ---- precision and independence --------------------------------------------------------------------------------


def test_heads_compute_in_float32_under_autocast_and_after_a_bf16_aggregator(
    heads: tuple[VGGTCameraHead, VGGTDepthHead], outputs: dict[str, list[Tensor]]
) -> None:
    low = [output.bfloat16() for output in outputs["wide"]]
    with torch.no_grad():
        pose, depth = heads[0](low[-1].float()).raw, heads[1]([o.float() for o in low], (56, 70))[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(heads[0](low[-1]).raw, pose)
            assert torch.equal(heads[1](low, (56, 70))[0], depth)
    assert pose.dtype == depth.dtype == torch.float32


def test_many_frames_give_what_each_gives_alone_and_inputs_stay_as_they_are(
    heads: tuple[VGGTCameraHead, VGGTDepthHead], outputs: dict[str, list[Tensor]]
) -> None:
    layers = [output.reshape(1, 6, 25, 96).repeat(1, 2, 1, 1) for output in outputs["wide"]]  # 12 views
    before = [layer.clone() for layer in layers]
    with torch.no_grad():
        together = heads[1](layers, (56, 70))
        alone = [heads[1]([layer[:, i : i + 1] for layer in layers], (56, 70)) for i in range(12)]
    assert all(torch.equal(layer, copy) for layer, copy in zip(layers, before, strict=True))
    for i, whole in enumerate(together):
        torch.testing.assert_close(whole, torch.cat([part[i] for part in alone], dim=1), atol=1e-5, rtol=0)


def test_gradients_reach_every_weight(outputs: dict[str, list[Tensor]]) -> None:
    camera, depth = build("camera_head"), build("depth_head")
    layers = [output.clone().requires_grad_() for output in outputs["tall"]]
    (camera(layers[-1]).raw.square().sum() + sum(v.mean() for v in depth(layers, (70, 56)))).backward()
    parts: list[nn.Module] = [camera, depth]
    for part in parts:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(layer.grad is not None for layer in layers)


# ---- what does not fit -----------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused() -> None:
    camera, depth = build("camera_head"), build("depth_head")
    with pytest.raises(InputError, match=r"\[batch, views, tokens, 96\]"):
        camera(torch.rand(1, 2, 5, 48))
    layers = [torch.rand(1, 2, 21, 96)] * 4
    with pytest.raises(InputError, match="multiples of 14"):
        depth(layers, (50, 56))
    with pytest.raises(InputError, match="at least 20 tokens"):
        depth([layer[:, :, :19] for layer in layers], (56, 70))
    with pytest.raises(InputError, match="four outputs"):
        depth(layers[:3], (56, 56))


@pytest.mark.parametrize(
    ("head", "changes", "complaint"),
    [
        ("camera_head", {"num_heads": 5}, "multiple of num_heads, 5"),
        ("camera_head", {"iterations": 0}, "iterations is 0"),
        ("depth_head", {"layers": (0, 1, 2)}, "it takes four"),
        ("depth_head", {"features": 12}, "multiples of 8"),
        ("depth_head", {"out_channels": (16, 24, 32, 0)}, "out_channels is 0"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(head: str, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        build(head, **changes)
