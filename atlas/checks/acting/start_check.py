"""`starts`: does an episode begin as those of training did, before the policy has done anything."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from atlas.checks.finding import Finding
from atlas.data.inputs import START, CameraSummary, TrainingInputs, detail_of, thumbnail_of
from atlas.rollout.input_recorder import InputRecorder

_BEYOND = 0.5  # of the range of training's starts, on both sides
_OF_ALL = 1e-3  # of the whole range of a number in training: what is less is rounding
_SEVERAL = 0.5  # of the episodes
_SHARPER, _REPEATED = 0.05, 0.2  # of `detail_of`, beyond the range of training
_SCALES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 1.06, 1.12, 1.2, 1.3, 1.4)
_ZOOMS = (*((s, s) for s in _SCALES), *((1.0, s) for s in _SCALES), *((s, 1.0) for s in _SCALES))  # across and down
_ALIKE, _FITS = 0.97, 0.6  # correlations: of pictures that need no other zoom; of one that fits
_FITS_BETTER = 0.3  # of what another zoom lacks of a perfect correlation, it explains so much


def check_starts(shown: InputRecorder, inputs: TrainingInputs, low: np.ndarray, high: np.ndarray) -> Iterator[Finding]:
    """low, high: of each number of proprio in all of training, [P]."""
    yield from _proprio(shown, inputs, high - low)
    for camera, summary in inputs.cameras.items():
        yield from _fitting(camera, shown.start_images(camera), summary)


def _proprio(shown: InputRecorder, inputs: TrainingInputs, whole: np.ndarray) -> Iterator[Finding]:
    if inputs.starts is None:
        return
    first, last = (np.array(row) for row in inputs.starts)
    slack = _BEYOND * (last - first) + _OF_ALL * np.maximum(whole, 1e-6)
    starts = shown.proprio[shown.starts]  # [episodes, P]
    outside = ((starts < first - slack) | (starts > last + slack)).mean(0)
    evidence = {"share_outside": np.round(outside, 3).tolist()}
    if outside.max() <= _SEVERAL:
        message = f"{len(starts)} episodes begin where those of training began"
        yield Finding("starts", "info", message, None, evidence, bugs=("settling", "state_source"))
        return
    far = np.abs(starts - np.clip(starts, first, last)).mean(0) > 0.2 * np.maximum(whole, 1e-6)
    many = int((outside > _SEVERAL).sum())
    worst = int(outside.argmax())
    yield Finding(
        "starts",
        "error" if far.any() or many > 2 else "warning",
        f"{outside.max():.0%} of the episodes begin elsewhere than those of training: number {worst} of proprio is "
        f"{starts[:, worst].mean():.5g} on average, and was {first[worst]:.5g} to {last[worst]:.5g}",
        "Compare what proprio is made of, and its order; or let the world settle as long as in the recordings.",
        evidence,
        bugs=("state_source",) if far.any() or many > 2 else ("settling",),
    )


def _fitting(camera: str, images: np.ndarray, summary: CameraSummary) -> Iterator[Finding]:
    """Whether the pictures are cut and resized as those of training. images: uint8 [n, S, S, 3]."""
    if summary.start is None or summary.detail is None:
        return
    views = thumbnail_of(images, START).astype(np.float32)
    then = summary.start.astype(np.float32)
    own = _alike(views, then)
    zooms = {zoom: _alike(views, _zoomed(then, *zoom)) for zoom in _ZOOMS}
    zoom = max(zooms, key=lambda each: zooms[each])
    ratio, repeated = np.median(detail_of(images), axis=0).tolist()
    (low, _), (high, most) = summary.detail
    evidence = {
        "camera": camera,
        "correlation": round(own, 3),
        "detail": [round(ratio, 3), round(repeated, 3)],
        "trained": [list(row) for row in summary.detail],
    }
    if own < _ALIKE and zooms[zoom] > own + _FITS_BETTER * (1 - own) and zooms[zoom] > _FITS:
        what = {(True, True): "a part", (False, False): "a smaller picture with a margin"}
        part = what.get((zoom[0] > 1, zoom[1] > 1), "a picture of another shape, stretched or with margins,")
        yield Finding(
            "view",
            "error",
            f"camera '{camera}' shows {part} of what it showed in training (correlation {zooms[zoom]:.2f} when it is "
            f"scaled by {zoom[0]:g} across and {zoom[1]:g} down, and {own:.2f} as it is): it is cropped otherwise",
            "Crop as in training: the centred square of the camera's image, and nothing before it.",
            evidence | {"zoom": list(zoom)},
            bugs=("resize",),
        )
    elif repeated > most + _REPEATED or not low - _SHARPER <= ratio <= high + _SHARPER:
        way = "sharper" if ratio > high else "softer"
        difference = f"is {way} than in training ({ratio:.2f}, and it was {low:.2f} to {high:.2f})"
        if repeated > most + _REPEATED:
            difference = f"repeats {repeated:.0%} of its rows and columns"
        yield Finding(
            "view",
            "error",
            f"camera '{camera}' {difference}: it is resized in another way",
            "Resize as in training (bilinear with antialiasing), once, or let the policy's processor do it.",
            evidence,
            bugs=("resize",),
        )
    else:
        message = f"camera '{camera}' is cropped and resized as in training"
        yield Finding("view", "info", message, None, evidence, bugs=("resize",))


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / max(1e-6, float(np.linalg.norm(a) * np.linalg.norm(b))))


def _zoomed(picture: np.ndarray, across: float, down: float) -> np.ndarray:
    """A picture [S, S, 3] enlarged about its centre; where there is nothing of it, black."""
    size = picture.shape[0]
    places = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(places / down, places / across, indexing="ij")
    shifted = torch.from_numpy(picture).permute(2, 0, 1)[None]
    sampled = F.grid_sample(shifted, torch.stack([x, y], -1)[None].float(), align_corners=False, padding_mode="zeros")
    return np.asarray(sampled[0].permute(1, 2, 0).numpy())
