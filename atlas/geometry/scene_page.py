"""The scene that VGGT sees in some images: cameras, depth and points, as pictures, files and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atlas.errors import InputError
from atlas.geometry.depth_pictures import cameras_picture, depth_pictures
from atlas.geometry.scene import Scene, seen_from_first
from atlas.geometry.views import View, find_images, read_views
from atlas.launch import acting_device
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.camera_head import CameraHeadConfig, VGGTCameraHead, pose_to_cameras
from atlas.policies.vggt.depth_head import DepthHeadConfig, VGGTDepthHead
from atlas.system.documents import read_json
from atlas.system.files import atomic_path, write_json
from atlas.system.gpu_facts import has_bf16
from atlas.system.hub import find_weights

REPORT = "geometry.json"
_KEPT = 0.5  # the share of all pixels, the most confident ones, that become points
_RAW_MAX = 65535
_PICTURES = ("depth_picture", "depth_raw")  # per view; keys of the report
_PLY_COLOURS = ("red", "green", "blue")


def geometry(
    images: Sequence[Path],
    out: Path,
    checkpoint: str | Path = "facebook/VGGT-1B",
    config: VGGTConfig = VGGTConfig(),
    camera: CameraHeadConfig = CameraHeadConfig(),
    depth: DepthHeadConfig = DepthHeadConfig(),
) -> dict[str, Any]:
    """Look at images (files, or folders of them) of one scene with VGGT, and write what it sees into `out`.

    The first image's camera is the world: its axes are x right, y down, z forward. Lengths are in a unit of the scene
    that VGGT chooses. Intrinsics and fields of view are those of the picture as VGGT gets it: resized, and cropped or
    padded to `image_size`. checkpoint: a .safetensors file, a folder with a model.safetensors, or a hub id. The files
    are `depth_00.png` (picture, depth and confidence, with scales), `depth_00_raw.png` (16 bits; 0: no depth) and so
    on, `cameras.png`, `points.ply` (the more confident half of all pixels) and `geometry.json`, which is also returned.
    A folder from an earlier call is overwritten. Raises InputError for unusable images, weights or folders.
    """
    paths = find_images(images)
    _check_sizes(config, camera, depth)
    stale = _stale_pictures(out)
    views = read_views(paths, config.img_size, config.patch_size)
    weights = find_weights(checkpoint, "checkpoint")
    scene = _look(views, weights, config, camera, depth)
    report = {"checkpoint": str(checkpoint), **_describe(scene, views)}
    _write(scene, views, report, out, stale)
    return report


def _check_sizes(config: VGGTConfig, camera: CameraHeadConfig, depth: DepthHeadConfig) -> None:
    for name, dim in (("camera", camera.dim), ("depth", depth.dim)):
        if dim != 2 * config.embed_dim:
            raise InputError(
                f"The {name} head's dim is {dim}; the aggregator's outputs are {2 * config.embed_dim} wide."
            )
    if depth.patch_size != config.patch_size:
        raise InputError(f"The depth head's patch_size is {depth.patch_size}; the aggregator's is {config.patch_size}.")


def _stale_pictures(out: Path) -> list[Path]:
    """The files that an earlier call left in the folder, its report first. Raises InputError if others made it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file; name a folder to write into.")
    if not out.exists() or not any(out.iterdir()):
        return []
    try:
        entries = read_json(out / REPORT)["images"]
        return [out / REPORT, *(out / Path(entry[key]).name for entry in entries for key in _PICTURES)]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"out: the folder {out} is not empty and holds no {REPORT} from an earlier call; name another folder."
        ) from None


# ---- the model -------------------------------------------------------------------------------------------------


def _look(
    views: list[View], weights: Path, config: VGGTConfig, camera: CameraHeadConfig, depth: DepthHeadConfig
) -> Scene:
    """Run the aggregator and both heads over all views at once."""
    device = acting_device()
    with torch.device("meta"):  # no time is spent on random weights
        aggregator, camera_head, depth_head = VGGTAggregator(config), VGGTCameraHead(camera), VGGTDepthHead(depth)
    for part in (camera_head, depth_head, aggregator):  # the small ones first, in case the file does not fit
        part.to_empty(device=device).eval()
        part.load_checkpoint(weights)

    colours = np.stack([view.pixels for view in views])
    pixels = torch.from_numpy(colours).to(device).permute(0, 3, 1, 2).unsqueeze(0) / 255  # [1, S, 3, H, W]
    size = (pixels.shape[-2], pixels.shape[-1])
    bf16 = device.type == "cuda" and has_bf16()
    with torch.inference_mode():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # as published; the heads are in float32
            *layers, last = aggregator(pixels, [*depth.layers, config.depth - 1])
        pose = camera_head(last).activated[-1, 0].double()
        distances, confidence = (values[0].cpu().numpy() for values in depth_head(layers, size))
    extrinsics, intrinsics = (values.cpu().numpy() for values in pose_to_cameras(pose, size))
    if not np.isfinite(extrinsics).all():
        raise InputError(f"checkpoint: the weights in {weights} give camera poses that are not finite.")
    shown = np.zeros(confidence.shape, dtype=bool)
    for i, view in enumerate(views):
        shown[i, view.rows] = True
    distances = distances[..., 0]
    return Scene(
        colours=colours,
        depth=distances,
        confidence=confidence,
        visible=shown & np.isfinite(distances) & np.isfinite(confidence) & (distances > 0),
        extrinsics=seen_from_first(extrinsics),
        intrinsics=intrinsics,
    )


# ---- the report ------------------------------------------------------------------------------------------------


def _describe(scene: Scene, views: list[View]) -> dict[str, Any]:
    """The contents of geometry.json, with null for numbers such as an infinite focal length."""
    names = [f"depth_{i:02d}" for i in range(len(views))]
    described = []
    for i, (view, name) in enumerate(zip(views, names, strict=True)):
        seen = scene.visible[i]
        distances = scene.depth[i][seen]
        horizontal, vertical = scene.fields_of_view[i].tolist()
        described.append(
            {
                "file": str(view.path),
                "rows": [view.rows.start, view.rows.stop],
                "extrinsic": _numbers(scene.extrinsics[i]),
                "intrinsic": _numbers(scene.intrinsics[i]),
                "position": _numbers(scene.positions[i]),
                "fov_degrees": {"horizontal": horizontal, "vertical": vertical},
                "depth_range": [float(distances.min()), float(distances.max())] if distances.size else None,
                "mean_confidence": float(scene.confidence[i][seen].mean()) if distances.size else None,
                "depth_picture": f"{name}.png",
                "depth_raw": f"{name}_raw.png",
                "depth_raw_unit": _raw_unit(scene, i),
            }
        )
    threshold = scene.confidence_threshold(_KEPT)
    return {
        "image_size": list(scene.depth.shape[1:]),
        "images": described,
        "points": {"file": "points.ply", "min_confidence": threshold if math.isfinite(threshold) else None},
        "cameras_picture": "cameras.png",
        "warnings": _warnings(scene, views),
    }


def _warnings(scene: Scene, views: list[View]) -> list[str]:
    found = []
    for view, fields in zip(views, scene.fields_of_view, strict=True):
        for name, degrees in zip(("horizontal", "vertical"), fields, strict=True):
            if not 0 < degrees < 180:
                found.append(
                    f"{view.path}: the {name} field of view came out as {degrees:.3g} degrees, which no camera has; "
                    "its points mean nothing"
                )
    lowest, highest = (f(view.rows.stop - view.rows.start for view in views) for f in (min, max))
    if lowest != highest:
        found.append(f"the images have several shapes: those less than {highest} rows high were padded with white")
    if not scene.visible.any():
        found.append("no pixel has a finite depth")
    return found


def _numbers(values: np.ndarray) -> Any:
    """An array as lists, with None for what is not finite."""
    listed = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()


def _raw_unit(scene: Scene, view: int) -> float | None:
    """The length that 1 in the 16-bit depth image stands for, in the scene's unit."""
    seen = scene.depth[view][scene.visible[view]]
    return float(seen.max()) / _RAW_MAX if seen.size else None


# ---- files -----------------------------------------------------------------------------------------------------


def _write(scene: Scene, views: list[View], report: dict[str, Any], out: Path, stale: list[Path]) -> None:
    """All files, the report last, so that it never stands beside another call's pictures; adds the number of points."""
    for path in stale:
        path.unlink(missing_ok=True)
    threshold = scene.confidence_threshold(_KEPT)
    names = [view.path.name for view in views]
    points, colours = scene.points(threshold)
    report["points"]["count"] = len(points)
    for i, (picture, entry) in enumerate(zip(depth_pictures(scene, names, threshold), report["images"], strict=True)):
        _save(picture, out / entry["depth_picture"])
        unit = entry["depth_raw_unit"] or 1.0
        raw = np.where(scene.visible[i], (scene.depth[i] / unit).round().clip(1, _RAW_MAX), 0)
        _save(Image.fromarray(raw.astype(np.uint16)), out / entry["depth_raw"])
    _save(cameras_picture(scene, names, points, colours), out / report["cameras_picture"])
    write_ply(out / report["points"]["file"], points, colours)
    write_json(out / REPORT, report)


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as partial:
        image.save(partial, "PNG")


def write_ply(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Points float32 [N, 3] and their colours uint8 [N, 3] as a binary, little-endian PLY file."""
    vertices = np.empty(len(points), [*((axis, "<f4") for axis in "xyz"), *((c, "u1") for c in _PLY_COLOURS)])
    for i, axis in enumerate("xyz"):
        vertices[axis] = points[:, i]
    for i, colour in enumerate(_PLY_COLOURS):
        vertices[colour] = colours[:, i]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in _PLY_COLOURS]
    with atomic_path(path) as partial:
        partial.write_bytes("\n".join([*header, "end_header", ""]).encode() + vertices.tobytes())
