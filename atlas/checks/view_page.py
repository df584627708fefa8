"""`view`: the recorded pictures are what evaluation will show, camera by camera.

The recorded states are rendered by the world that evaluation uses, go through the same function as evaluation's
pictures, and are compared with the recorded pictures: by grey values, under the 8 flips and rotations, for each of the
world's cameras; and then by colours, as they are and in reversed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from atlas.checks.camera_images import draw_side_by_side
from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.image_fit import fit_images
from atlas.data.orientation import Orientation, turn_upright
from atlas.system.paths import file_name

_EPISODES, _FRAMES = 4, 3
_LARGEST = 96  # pixels per side of the compared pictures
_SAME_AS_BEST = 0.02  # correlations that differ by less are alike: some pictures are almost their own mirror image
_COLOURFUL, _CLEARLY = 4.0, 0.2  # mean square of the difference from grey (of 255); difference of correlations
_FADED = 0.6  # of the colours are left: video codecs keep few of them in small pictures
_ONE_COLOUR = 1.0  # standard deviation of pixels; `video` reports it
_ALIKE = 0.5  # correlation of pictures of one scene, whatever light and compression did to them
_GAIN, _OFFSET = (0.6, 1.6), 40.0  # of brightness, as a line; beyond, normalisation differs and not just the light


@dataclass(frozen=True)
class Turn:
    """One of the 8 flips and rotations of a square: transposed or not, then rows and columns reversed or not."""

    name: str
    label: str  # short, in pictures
    transpose: bool
    rows: bool
    columns: bool

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [n, H, W, 3]; they must be square if they are transposed."""
        turned = images.swapaxes(1, 2) if self.transpose else images
        return np.ascontiguousarray(turned[:, :: -1 if self.rows else 1, :: -1 if self.columns else 1])

    @property
    def orientation(self) -> Orientation | None:
        """The same as a source's orientation; None for turns by 90 degrees."""
        if self.transpose:
            return None
        if self.rows:
            return "rotated_180" if self.columns else "upside_down"
        return "mirrored" if self.columns else "upright"


TURNS = (
    Turn("as it is", "as it is", False, False, False),
    Turn("upside down (rows reversed)", "upside down", False, True, False),
    Turn("mirrored (columns reversed)", "mirrored", False, False, True),
    Turn("rotated by 180 degrees", "180 degrees", False, True, True),
    Turn("rotated by 90 degrees to the left", "90 to the left", True, True, False),
    Turn("rotated by 90 degrees to the right", "90 to the right", True, False, True),
    Turn("transposed", "transposed", True, False, False),
    Turn("transposed along the other diagonal", "other diagonal", True, True, True),
)


@dataclass(frozen=True)
class Match:
    """The likeness of a camera's recorded pictures and a world camera's rendered ones, turned in one way."""

    camera: str  # the world's
    turn: Turn
    correlation: float  # of the grey values


def check_view(context: CheckContext) -> Iterator[Finding]:
    env = context.environment
    if env is None:
        return
    if (why := context.no_replay) is not None:
        yield Finding("view", "info", f"no pictures were compared with '{env.spec.name}': {why}", None, {"compared": 0})
        return
    if not context.states_fit:
        return  # `replay` reports it
    size = min(_LARGEST, *(min(context.dataset.image_size(camera)) for camera in context.cameras))
    recorded, rendered = _pictures(context, size)
    for camera in context.cameras:
        yield _judge(context, camera, recorded[camera], rendered)


def _pictures(context: CheckContext, size: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same moments as recorded and as the world shows them: {camera: uint8 [n, size, size, 3]}."""
    env = context.simulator
    recorded: dict[str, list[np.ndarray]] = {camera: [] for camera in context.cameras}
    rendered: dict[str, list[np.ndarray]] = {camera: [] for camera in env.spec.cameras}
    for index in context.sample(_EPISODES):
        episode = context.recorded(index)
        assert episode.sim_states is not None
        env.reset(init_state=episode.sim_states[0], instruction=env.spec.known(episode.instruction))
        frames = np.unique(np.linspace(0, len(episode) - 1, _FRAMES).round().astype(int)).tolist()
        for camera in context.cameras:
            recorded[camera].append(_as_policies_see(episode.images(camera, frames), size))
        for frame in frames:
            env.set_state(episode.sim_states[frame])
            observation = env.observe()
            for camera in env.spec.cameras:
                rendered[camera].append(_as_policies_see(observation.images[camera][None], size))
    join = lambda parts: {camera: np.concatenate(images) for camera, images in parts.items()}  # noqa: E731
    return join(recorded), join(rendered)


def _as_policies_see(images: np.ndarray, size: int) -> np.ndarray:
    """Through the function used in training and rollouts: uint8 [n, size, size, 3]."""
    return fit_images(images, size).permute(0, 2, 3, 1).numpy()


def compare(recorded: np.ndarray, rendered: dict[str, np.ndarray]) -> list[Match]:
    """Every way in which the rendered pictures may be the recorded ones, the best one first."""
    target = _normalised(_grey(recorded))
    found = []
    for camera, images in rendered.items():
        for turn in TURNS:
            product = target * _normalised(_grey(turn(images)))
            found.append(Match(camera, turn, float(product.mean(axis=(1, 2, 3)).mean())))
    return sorted(found, key=lambda match: match.correlation, reverse=True)


def colours_reversed(recorded: np.ndarray, rendered: np.ndarray) -> bool:
    """Whether pictures that are alike have red and blue swapped, if they have colours at all."""
    mine, other = _chroma(recorded), _chroma(rendered)
    size = float(np.linalg.norm(mine) * np.linalg.norm(other))
    if size < _COLOURFUL * mine.size:
        return False
    straight, swapped = (float((mine * colours).sum()) / size for colours in (other, other[..., ::-1]))
    return swapped > straight + _CLEARLY


def _colours_left(recorded: np.ndarray, rendered: np.ndarray) -> float:
    """The share of the rendered pictures' colours that the recorded ones have; 1 if there are none."""
    mine, other = _chroma(recorded), _chroma(rendered)
    return float((mine * other).sum() / (other**2).sum()) if (other**2).mean() > _COLOURFUL else 1.0


def _chroma(images: np.ndarray) -> np.ndarray:
    """float32 [n, H, W, 3]: the difference from grey."""
    return np.asarray(images.astype(np.float32) - _grey(images))


def _grey(images: np.ndarray) -> np.ndarray:
    """float32 [n, H, W, 1]; the same whatever the order of the colours."""
    return images.astype(np.float32).mean(axis=-1, keepdims=True)


def _normalised(images: np.ndarray) -> np.ndarray:
    """Each picture scaled to mean 0 and deviation 1, so that its lighting does not matter."""
    mean, deviation = images.mean(axis=(1, 2, 3), keepdims=True), images.std(axis=(1, 2, 3), keepdims=True)
    return np.asarray((images - mean) / np.maximum(deviation, 1e-3))


def _judge(context: CheckContext, camera: str, recorded: np.ndarray, rendered: dict[str, np.ndarray]) -> Finding:
    assert context.environment is not None
    world = context.environment.spec.name
    matches = compare(recorded, rendered)
    best = matches[0]
    own = next((m for m in matches if m.camera == camera and m.turn is TURNS[0]), None)
    if own is not None and own.correlation > best.correlation - _SAME_AS_BEST:
        best = own
    swapped = colours_reversed(recorded, best.turn(rendered[best.camera]))
    evidence: dict[str, object] = {
        "camera": camera,
        "best": {"camera": best.camera, "transform": best.turn.name, "colours_reversed": swapped},
        "correlation": round(best.correlation, 3),
        "correlation_as_evaluated": None if own is None else round(own.correlation, 3),
    }
    if context.pictures is not None:
        path = context.pictures / f"view_{file_name(camera)}.png"
        _draw(path, camera, recorded, rendered, matches, best)
        evidence["picture"] = str(path)
    if recorded.std(axis=(1, 2, 3)).max() < _ONE_COLOUR:
        message = f"camera '{camera}' shows only one colour, and cannot be compared"
        return Finding("view", "info", message, None, evidence)
    if best.correlation < _ALIKE:
        return Finding(
            "view",
            "error",
            f"camera '{camera}' looks like none of the cameras of '{world}', however it is turned (best correlation "
            f"{best.correlation:.2f})",
            "Look at the picture: the camera's place, the scene or the frames' order differs.",
            evidence,
        )
    if best.camera != camera:
        return Finding(
            "view",
            "error",
            f"camera '{camera}' shows what '{best.camera}' of the world '{world}' does"
            + ("" if best.turn is TURNS[0] else f", {best.turn.name}")
            + f" (correlation {best.correlation:.2f}{_own(own)})",
            f"Give it the name '{best.camera}' {_camera_key(context, best.camera)}.",
            evidence,
            bugs=("cameras",),
        )
    if best.turn is not TURNS[0] or swapped:
        ways = [*([] if best.turn is TURNS[0] else [best.turn.name]), *(["red and blue swapped"] if swapped else [])]
        return Finding(
            "view",
            "error",
            f"camera '{camera}' is {' and '.join(ways)}, compared with what evaluation shows (correlation "
            f"{best.correlation:.2f}{_own(own)})",
            _fix(context, best.turn, swapped),
            evidence,
            bugs=("colours",) if best.turn is TURNS[0] else ("turned", "colours") if swapped else ("turned",),
        )
    gain, offset = _brightness(recorded, rendered[camera])
    evidence |= {"gain": round(gain, 3), "offset": round(offset, 1)}
    if not _GAIN[0] <= gain <= _GAIN[1] or abs(offset) > _OFFSET:
        return Finding(
            "view",
            "error",
            f"camera '{camera}' has a different brightness from evaluation: recorded = {gain:.2f} x rendered "
            f"{offset:+.0f} (of 255)",
            "Store images as 8 bits from 0 to 255, without normalisation; policies bring their own.",
            evidence,
        )
    left = _colours_left(recorded, rendered[camera])
    evidence["colours_left"] = round(left, 3)
    if left < _FADED:
        return Finding(
            "view",
            "warning",
            f"camera '{camera}' has kept {left:.0%} of the colours that evaluation shows: what tells objects apart may "
            "be lost",
            "Encode small pictures without loss (`atlas data convert … --codec png`), or record larger ones.",
            evidence,
        )
    message = f"camera '{camera}' is what evaluation shows (correlation {best.correlation:.2f})"
    return Finding("view", "info", message, None, evidence, bugs=("turned", "colours", "cameras"))


def _camera_key(context: CheckContext, camera: str) -> str:
    converted = "where the data is converted"
    has_features = context.dataset.format.startswith("lerobot")
    return f"{converted}, or by data.features.cameras.{camera}" if has_features else converted


def _own(own: Match | None) -> str:
    return "" if own is None else f", as evaluated {own.correlation:.2f}"


def _brightness(recorded: np.ndarray, rendered: np.ndarray) -> tuple[float, float]:
    """recorded = gain * rendered + offset, from the deviations and means, which noise hardly changes."""
    gain = float(recorded.std() / max(1e-3, float(rendered.std())))
    return gain, float(recorded.mean() - gain * rendered.mean())


def _fix(context: CheckContext, turn: Turn, swapped: bool) -> str:
    if swapped:
        return "Swap red and blue where the data is converted."
    turned, stored = turn.orientation, getattr(context.dataset, "orientation", None)
    if turned is None or stored is None:
        return "Turn the images where the data is converted."
    return f"Set data.orientation={_composed(stored, turned)} (it is read as {stored})."


def _composed(stored: Orientation, turned: Orientation) -> Orientation:
    """The orientation that makes upright what is still `turned` when it is read as `stored`."""
    probe = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    wanted = turn_upright(turn_upright(probe, stored), turned)
    return next(o for o in get_args(Orientation) if (turn_upright(probe, o) == wanted).all())


def _draw(
    path: Path,
    camera: str,
    recorded: np.ndarray,
    rendered: dict[str, np.ndarray],
    matches: Sequence[Match],
    best: Match,
) -> None:
    middle = len(recorded) // 2
    shown = rendered.get(camera, next(iter(rendered.values())))
    top = [("recorded", recorded[middle]), ("as evaluated", shown[middle])]
    fits = rendered[best.camera][middle : middle + 1]
    top.append((f"fits: {best.camera}", best.turn(fits)[0]))
    scores = {m.turn.name: m.correlation for m in matches if m.camera == best.camera}
    rows = [top]
    for half in (TURNS[:4], TURNS[4:]):
        marks = ["fits: " if turn is best.turn else "" for turn in half]
        labels = [f"{mark}{scores[t.name]:.2f} {t.label}" for mark, t in zip(marks, half, strict=True)]
        rows.append([(label, turn(fits)[0]) for label, turn in zip(labels, half, strict=True)])
    draw_side_by_side(path, f"camera '{camera}': recorded, evaluated, and the 8 ways of turning it", rows, "fits: ")
