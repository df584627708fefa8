"""`atlas model geometry`: from pictures to depth, cameras and points, with small untrained weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import atlas.geometry
from atlas import cli
from atlas.drawing.point_clouds import LOW_TO_HIGH, MASKED, NEAR_TO_FAR, Scale, even_ticks
from atlas.errors import InputError
from atlas.geometry import geometry
from atlas.geometry.scene import Scene, seen_from_first
from atlas.geometry.views import find_images, read_views
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.camera_head import CameraHeadConfig, pose_to_cameras
from atlas.policies.vggt.depth_head import DepthHeadConfig, VGGTDepthHead
from tests.test_vertical_slice import run_atlas

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vggt_parity"
KIT = json.loads((FIXTURES / "config.json").read_text())
SIZES: dict[str, Any] = {
    "config": VGGTConfig(**KIT["config"]),
    "camera": CameraHeadConfig(**KIT["camera_head"]),
    "depth": DepthHeadConfig(**KIT["depth_head"]),
}


def draw_picture(path: Path, width: int, height: int, colour: str) -> Path:
    image = Image.new("RGB", (width, height), "lightblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height * 0.6, width, height), fill="saddlebrown")
    draw.ellipse((width * 0.3, height * 0.3, width * 0.6, height * 0.8), fill=colour)
    image.save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """One of 4:3, one of 2:1, so that the second is padded."""
    first = draw_picture(tmp_path / "first.png", 160, 120, "red")
    return [first, draw_picture(tmp_path / "second.jpg", 120, 60, "green")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden data's weights, except for fields of view, which become 1 rad: 0.25 in each of four iterations."""
    tensors = {**load_file(FIXTURES / "weights.safetensors"), **load_file(FIXTURES / "heads_weights.safetensors")}
    tensors["camera_head.pose_branch.fc2.weight"][7:] = 0
    tensors["camera_head.pose_branch.fc2.bias"][7:] = 0.25
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def blind_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden data's weights as they are; they find no vertical field of view."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(
        {**load_file(FIXTURES / "weights.safetensors"), **load_file(FIXTURES / "heads_weights.safetensors")}, path
    )
    return path


def read_ply(path: Path) -> np.ndarray:
    """The vertices, by the file's own header."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    element, name, count = lines[2].split()
    assert (element, name) == ("element", "vertex")
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], types[line.split()[1]]) for line in lines[3:]]
    vertices = np.frombuffer(body, dtype=fields)
    assert len(vertices) == int(count)
    return vertices


# ---- the whole way ---------------------------------------------------------------------------------------------


def test_pictures_become_depth_cameras_points_and_a_report(
    pictures: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    report = geometry(pictures, out, checkpoint, **SIZES)

    assert json.loads((out / "geometry.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {
        *("depth_00.png", "depth_00_raw.png", "depth_01.png", "depth_01_raw.png"),
        *("cameras.png", "points.ply", "geometry.json"),
    }
    assert report["image_size"] == [42, 56]
    first, second = report["images"]
    assert [first["file"], second["file"]] == [str(path) for path in pictures]
    assert (first["rows"], second["rows"]) == ([0, 42], [7, 35])
    assert any("padded" in warning for warning in report["warnings"])
    assert first["extrinsic"] == np.eye(3, 4).tolist()
    assert first["position"] == [0, 0, 0]
    for entry in report["images"]:
        assert entry["fov_degrees"] == pytest.approx({"horizontal": 57.2958, "vertical": 57.2958}, abs=1e-3)
        assert entry["intrinsic"][0] == pytest.approx([28 / np.tan(0.5), 0, 28])
        assert entry["intrinsic"][1] == pytest.approx([0, 21 / np.tan(0.5), 21])
        rotation = np.array(entry["extrinsic"])[:, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) > 0
        assert 0 < entry["depth_range"][0] < entry["depth_range"][1]
        assert entry["mean_confidence"] > 1
    for name in ("depth_00.png", "depth_01.png", "cameras.png"):
        with Image.open(out / name) as image:
            assert len(image.getcolors(1 << 24) or []) > 100  # a drawing, not an empty sheet

    points = read_ply(out / "points.ply")
    assert len(points) == report["points"]["count"] == pytest.approx((42 + 28) * 56 / 2, abs=1)
    assert all(np.isfinite(points[axis]).all() for axis in "xyz")
    assert points.dtype.names == ("x", "y", "z", "red", "green", "blue")


def test_depth_is_what_the_model_gives_and_padding_has_none(
    pictures: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    report = geometry(pictures, tmp_path / "out", checkpoint, **SIZES)

    aggregator, head = VGGTAggregator(SIZES["config"]).eval(), VGGTDepthHead(SIZES["depth"])
    aggregator.load_checkpoint(checkpoint)
    head.load_checkpoint(checkpoint)
    pixels = torch.from_numpy(np.stack([view.pixels for view in read_views(pictures, 56, 14)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = head(aggregator(pixels[None] / 255, [0, 1, 2, 3]), (42, 56))[0][0, ..., 0].numpy()
    for i, entry in enumerate(report["images"]):
        top, bottom = entry["rows"]
        with Image.open(tmp_path / "out" / entry["depth_raw"]) as image:
            raw = np.asarray(image)
        found = raw * entry["depth_raw_unit"]
        np.testing.assert_allclose(found[top:bottom], expected[i, top:bottom], atol=entry["depth_raw_unit"])
        assert raw[:top].sum() == raw[bottom:].sum() == 0
        assert entry["depth_range"] == pytest.approx([expected[i, top:bottom].min(), expected[i, top:bottom].max()])


def test_cameras_without_a_field_of_view_are_told_of(
    pictures: list[Path], blind_checkpoint: Path, tmp_path: Path
) -> None:
    report = geometry(pictures, tmp_path / "out", blind_checkpoint, **SIZES)

    assert [entry["fov_degrees"]["vertical"] for entry in report["images"]] == [0, 0]
    assert report["images"][0]["intrinsic"][1] == [0, None, 21]  # an infinite focal length
    told = [warning for warning in report["warnings"] if "vertical field of view came out as 0 degrees" in warning]
    assert len(told) == 2
    assert json.loads((tmp_path / "out" / "geometry.json").read_text()) == report
    points = read_ply(tmp_path / "out" / "points.ply")
    assert all(np.isfinite(points[axis]).all() for axis in "xyz")


def test_a_second_call_leaves_nothing_of_the_first(pictures: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    geometry(pictures, tmp_path / "out", checkpoint, **SIZES)
    report = geometry(pictures[:1], tmp_path / "out", checkpoint, **SIZES)

    assert len(report["images"]) == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"depth_00.png", "depth_00_raw.png", "cameras.png", "points.ply", "geometry.json"}


def test_the_command_takes_several_pictures_and_prints_json(
    pictures: list[Path],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(atlas.geometry, "geometry", functools.partial(geometry, **SIZES))  # not VGGT-1B's sizes
    a, b = map(str, pictures)
    ways = ([a, "--images", b], ["--images", a, "--images", b], ["--images", a, b])
    reports = []
    for number, way in enumerate(ways):
        arguments = [*way, "--out", str(tmp_path / f"out{number}"), "--checkpoint", str(checkpoint)]
        cli.app(["model", "geometry", *arguments, "--json"], standalone_mode=False)
        reports.append(json.loads(capfd.readouterr().out))
    assert {entry["file"] for entry in reports[0]["images"]} == {a, b}
    assert reports[1] == reports[2]
    assert [entry["file"] for entry in reports[1]["images"]] == [a, b]

    arguments = ["--images", a, "--out", str(tmp_path / "plain"), "--checkpoint", str(checkpoint)]
    cli.app(["model", "geometry", *arguments], standalone_mode=False)
    printed = capfd.readouterr().out
    assert "57 x 57" in printed and "points and geometry.json are in" in printed


# ---- what is refused -------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named_and_nothing_is_written(pictures: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    broken, empty, out = tmp_path / "broken.png", tmp_path / "empty", tmp_path / "out"
    broken.write_bytes(pictures[0].read_bytes()[:200])
    empty.mkdir()
    text = tmp_path / "text.png"
    text.write_text("no image, whatever the name says")
    depth = tmp_path / "depth.png"
    Image.fromarray(np.full((30, 40), 1000, np.uint16)).save(depth)
    for images, complaint in (
        ([], "none were given"),
        ([tmp_path / "absent.png"], "there is no file or folder"),
        ([pictures[0], broken], "broken.png cannot be read as an image"),
        ([text], "text.png cannot be read as an image"),
        ([depth], "one channel"),
        ([empty], "holds no images"),
    ):
        with pytest.raises(InputError, match=complaint):
            geometry(images, out, checkpoint, **SIZES)
    with pytest.raises(InputError, match="checkpoint: there is no file or folder"):
        geometry(pictures, out, tmp_path / "absent.safetensors", **SIZES)
    with pytest.raises(InputError, match=r"camera_head.empty_pose_tokens is missing"):
        geometry(pictures, out, FIXTURES / "weights.safetensors", **SIZES)
    with pytest.raises(InputError, match="head's dim is 64"):
        geometry(pictures, out, checkpoint, SIZES["config"], CameraHeadConfig(dim=64), SIZES["depth"])
    assert not out.exists()


def test_folders_of_others_stay_untouched(pictures: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"first\.png is a file"):
        geometry(pictures, pictures[0], checkpoint, **SIZES)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "depth_00.png").write_text("of a camera, say")
    for report in (None, "[]", "no JSON", '{"images": [1]}'):
        if report is not None:
            (mine / "geometry.json").write_text(report)
        with pytest.raises(InputError, match=r"holds no geometry\.json from an earlier call"):
            geometry(pictures, mine, checkpoint, **SIZES)
    assert (mine / "depth_00.png").read_text() == "of a camera, say"


def test_the_command_ends_with_2_on_wrong_input(pictures: list[Path], tmp_path: Path) -> None:
    done = run_atlas(["model", "geometry", "--out", str(tmp_path / "out"), "--images", "nowhere.png"], check=False)
    assert done.returncode == 2, done.stderr
    assert "nowhere.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# ---- images ----------------------------------------------------------------------------------------------------


def test_images_are_resized_cropped_and_padded_as_published(tmp_path: Path) -> None:
    for name, width, height in (("square", 64, 64), ("flat", 100, 30), ("high", 40, 100)):
        draw_picture(tmp_path / f"{name}.png", width, height, "red")

    (square,) = read_views([tmp_path / "square.png"], 56, 14)
    assert (square.pixels.shape, square.rows) == ((56, 56, 3), slice(0, 56))
    (flat,) = read_views([tmp_path / "flat.png"], 56, 14)  # 30 * 56 / 100 = 16.8, nearest to 14
    assert (flat.pixels.shape, flat.rows) == ((14, 56, 3), slice(0, 14))
    (high,) = read_views([tmp_path / "high.png"], 56, 14)  # 140 rows, of which the middle 56
    with Image.open(tmp_path / "high.png") as image:
        whole = np.asarray(image.resize((56, 140), Image.Resampling.BICUBIC))
    assert np.array_equal(high.pixels, whole[42:98])

    padded, other = read_views([tmp_path / "flat.png", tmp_path / "square.png"], 56, 14)
    assert np.array_equal(other.pixels, square.pixels)
    assert padded.rows == slice(21, 35)
    assert np.array_equal(padded.pixels[21:35], flat.pixels)
    assert (padded.pixels[:21] == 255).all() and (padded.pixels[35:] == 255).all()


def test_images_of_other_kinds_become_upright_rgb(tmp_path: Path) -> None:
    half = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 28, 56))
    half.save(tmp_path / "transparent.png")
    Image.new("L", (56, 56), 100).save(tmp_path / "grey.png")
    turned = Image.new("RGB", (56, 28), "red")
    turned.paste((0, 255, 0), (0, 0, 28, 28))  # to be shown above, once turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by a quarter
    turned.save(tmp_path / "turned.png", exif=exif)

    blue_and_white, grey = read_views([tmp_path / "transparent.png", tmp_path / "grey.png"], 56, 14)
    assert blue_and_white.pixels[10, 10].tolist() == [0, 0, 255]
    assert blue_and_white.pixels[10, 50].tolist() == [255, 255, 255]
    assert (grey.pixels == 100).all()
    (upright,) = read_views([tmp_path / "turned.png"], 56, 14)  # 28 x 56 becomes 56 x 112, cropped to the middle
    assert upright.pixels[4, 10].tolist() == [0, 255, 0]
    assert upright.pixels[50, 10].tolist() == [255, 0, 0]


def test_a_folder_stands_for_its_images_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "views"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "c.webp"):
        draw_picture(folder / name, 20, 20, "red")
    (folder / "notes.txt").write_text("not an image")
    single = draw_picture(tmp_path / "z.png", 20, 20, "red")
    assert [path.name for path in find_images([single, folder])] == ["z.png", "a.JPG", "b.png", "c.webp"]


# ---- the scene -------------------------------------------------------------------------------------------------


def look_at_wall(poses: torch.Tensor) -> Scene:
    """Cameras before a wall at z = 5 of the first one's axes, 40 x 60 pixels each, with the depth that they see."""
    extrinsics, intrinsics = (values.double().numpy() for values in pose_to_cameras(poses.double(), (40, 60)))
    v, u = np.mgrid[:40, :60] + 0.5
    depth = []
    for pose, k in zip(extrinsics, intrinsics, strict=True):
        rays = np.stack(((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)), axis=-1) @ pose[:, :3]
        eye = -pose[:, :3].T @ pose[:, 3]
        depth.append((5 - eye[2]) / rays[..., 2])
    shape = (len(poses), 40, 60)
    colours = np.broadcast_to(np.arange(len(poses), dtype=np.uint8)[:, None, None, None], (*shape, 3))
    confidence = np.broadcast_to(np.linspace(1, 2, 60, dtype=np.float32), shape)
    return Scene(
        colours, np.array(depth, np.float32), confidence, np.ones(shape, bool), seen_from_first(extrinsics), intrinsics
    )


WALL_POSES = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0, 1, 0.8, 1.0],
        [1, 0.5, 0.2, 0, 0.2, 0.1, 1, 0.7, 1.1],
        [-1, 0.3, 0.5, 0.1, -0.2, 0, 1, 0.9, 0.6],
    ]
)


def test_points_of_all_cameras_lie_on_the_wall_that_they_see() -> None:
    scene = look_at_wall(WALL_POSES)
    points, colours = scene.points(1.0)
    assert points.shape == colours.shape == (3 * 40 * 60, 3)
    np.testing.assert_allclose(points[:, 2], 5, atol=1e-4)
    assert np.bincount(colours[:, 0]).tolist() == [2400, 2400, 2400]
    # The first pixel of the second camera, seen from it again, is in the middle of that pixel.
    back = scene.extrinsics[1] @ [*points[2400], 1]
    u, v, w = scene.intrinsics[1] @ back
    assert (u / w, v / w) == pytest.approx((0.5, 0.5), abs=1e-3)


def test_only_confident_visible_pixels_become_points() -> None:
    scene = look_at_wall(WALL_POSES)
    scene.visible[0] = False
    threshold = scene.confidence_threshold(0.25)
    assert 1.7 < threshold < 1.8
    points, colours = scene.points(threshold)
    assert len(points) == 2 * 40 * 15
    assert set(colours[:, 0]) == {1, 2}
    scene.visible[:] = False
    assert len(scene.points(scene.confidence_threshold(0.25))[0]) == 0


def test_moving_the_world_into_the_first_camera_moves_no_camera_against_another() -> None:
    extrinsics = pose_to_cameras(WALL_POSES.double()[[1, 0, 2]], (40, 60))[0].numpy()
    moved = seen_from_first(extrinsics)
    assert np.array_equal(moved[0], np.eye(3, 4))
    point = np.array([0.3, -0.2, 4.0])  # of the first camera's axes
    world = extrinsics[0, :, :3].T @ (point - extrinsics[0, :, 3])
    for before, after in zip(extrinsics, moved, strict=True):
        np.testing.assert_allclose(after @ [*point, 1], before @ [*world, 1], atol=1e-12)


def test_fields_of_view_come_back_from_the_intrinsics() -> None:
    scene = look_at_wall(WALL_POSES)
    np.testing.assert_allclose(scene.fields_of_view, np.degrees(WALL_POSES[:, [8, 7]].numpy()), atol=1e-4)


# ---- scales ----------------------------------------------------------------------------------------------------


def test_scales_paint_equal_ratios_in_equal_steps_and_leave_out_what_is_not_there() -> None:
    scale = Scale(1.0, 100.0, np.array([[0.0, 0, 0], [100, 100, 100]]), high_above=True)
    values, shown = np.array([[0.5, 1, 10, 100, 1000, np.nan]]), np.array([[True] * 5 + [False]])
    painted = scale.paint(values, shown)[0]
    assert painted[:5, 0].tolist() == [0, 0, 50, 100, 100]
    assert tuple(painted[5]) == MASKED


@pytest.mark.parametrize("values", [[], [3.0], [1.0, 1.2], [0.4, 30.0], [1e-4, 1e4]])
def test_scales_have_a_few_round_ticks_within_their_ends(values: list[float]) -> None:
    scale = Scale.over(np.array(values), NEAR_TO_FAR, high_above=False)
    ticks = scale.ticks()
    assert 3 <= len(ticks) <= 30
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert even_ticks(-0.33, 1.02, 6) == pytest.approx([-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_colours_of_scales_read_in_grey_too() -> None:
    for colours, sign in ((NEAR_TO_FAR, -1), (LOW_TO_HIGH, 1)):
        assert (np.diff(colours @ [0.299, 0.587, 0.114]) * sign > 0).all()
