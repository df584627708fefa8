"""Applies a scene's variation to a MuJoCo model's arrays (cameras, lights, surfaces), and restores them bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas.environments.scene_variation import CameraShift, LightShift, SceneVariation, Surface

_FIELDS = (
    *("cam_pos", "cam_quat", "cam_fovy"),
    *("light_dir", "light_pos", "light_diffuse", "light_ambient", "light_specular", "light_castshadow"),
    "mat_rgba",
)
_HEADLIGHT = ("ambient", "diffuse", "specular")
_WIDEST_DEG = 120.0
_TILE = 128  # pixels of the side of a pattern, which is stretched over a texture
_COLOUR_TEXTURE = 1  # the index of the colour among a material's textures


class ModelVariation:
    """Applies variations to a model, each to the model's original state."""

    def __init__(self, model: Any, look_at: np.ndarray, table: Sequence[str], background: Sequence[str]) -> None:
        """look_at: [3], m, the point around which the scene's cameras move. table, background: names of materials."""
        self._model, self._look_at = model, np.asarray(look_at, np.float64)
        self._materials = {
            "table": [model.material(name).id for name in table],
            "background": [model.material(name).id for name in background],
        }
        self._fields = {name: getattr(model, name).copy() for name in _FIELDS}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT}
        self._pixels: dict[int, np.ndarray] = {}  # the original pixels of textures that were drawn over

    def apply(self, variation: SceneVariation) -> list[int]:
        """Change the model; the caller must call `forward`. Returns the textures whose pixels changed, which the caller
        must upload to each renderer."""
        for name, values in self._fields.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values
        changed = self._restore_textures()
        if variation.camera is not None:
            self._shift_cameras(variation.camera)
        if variation.light is not None:
            self._shift_lights(variation.light)
        for part, surface in (("table", variation.table), ("background", variation.background)):
            if surface is not None:
                changed |= self._cover(self._materials[part], surface)
        return sorted(changed)

    # ---- cameras -----------------------------------------------------------------------------------------

    def _shift_cameras(self, shift: CameraShift) -> None:
        model = self._model
        turn = rotation_by(np.asarray(shift.turn))
        for camera in range(model.ncam):
            pose = rotation_matrix(model.cam_quat[camera])
            if model.cam_bodyid[camera] == 0:  # it stands in the scene
                arm = model.cam_pos[camera] - self._look_at
                vertical = np.array([0.0, 0.0, 1.0])
                aside = np.cross(vertical, arm)
                aside = aside / np.linalg.norm(aside) if np.linalg.norm(aside) > 1e-6 else np.array([0.0, 1.0, 0.0])
                move = rotation_by(vertical * shift.around) @ rotation_by(-aside * shift.up)
                model.cam_pos[camera] = self._look_at + shift.distance * (move @ arm)
                pose = move @ pose
            model.cam_quat[camera] = _quaternion(pose @ turn)
            model.cam_fovy[camera] = min(model.cam_fovy[camera] * shift.field, _WIDEST_DEG)

    # ---- lights ------------------------------------------------------------------------------------------

    def _shift_lights(self, shift: LightShift) -> None:
        model, headlight = self._model, self._model.vis.headlight
        factor = shift.intensity * np.asarray(shift.colour)
        down, along = np.array([0.0, 0.0, -1.0]), np.array([np.cos(shift.around), np.sin(shift.around), 0.0])
        for light in range(model.nlight):
            if shift.tilt:
                direction = np.cos(shift.tilt) * down + np.sin(shift.tilt) * along
                distance = np.linalg.norm(model.light_pos[light] - self._look_at)
                model.light_dir[light] = direction
                model.light_pos[light] = self._look_at - direction * distance
            if shift.shadows:
                model.light_castshadow[light] = 1
        for name in ("light_diffuse", "light_ambient"):
            getattr(model, name)[:] = np.clip(getattr(model, name) * factor, 0.0, 1.0)
        for name in ("ambient", "diffuse"):
            getattr(headlight, name)[:] = np.clip(getattr(headlight, name) * factor, 0.0, 1.0)

    # ---- surfaces ----------------------------------------------------------------------------------------

    def _cover(self, materials: Sequence[int], surface: Surface) -> set[int]:
        model, changed = self._model, set()
        for material in materials:
            model.mat_rgba[material, :3] = np.clip(model.mat_rgba[material, :3] * surface.colour, 0.0, 1.0)
            texture = self._texture_of(material)
            if surface.pattern is not None and texture is not None:
                self._draw_over(texture, surface.pattern + material, surface.opacity)
                changed.add(texture)
        return changed

    def _texture_of(self, material: int) -> int | None:
        textures = np.atleast_1d(self._model.mat_texid[material])  # several per material since MuJoCo 3.2
        texture = int(textures[_COLOUR_TEXTURE] if len(textures) > 1 else textures[0])
        return texture if texture >= 0 else None

    def _draw_over(self, texture: int, seed: int, opacity: float) -> None:
        pixels = self._pixels_of(texture)
        self._pixels.setdefault(texture, pixels.copy())
        height, width, _ = pixels.shape
        side = min(height, width)
        tile = draw_pattern(np.random.default_rng(seed), _TILE)
        places = np.arange(side) * _TILE // side
        face = tile[places][:, places]  # [side, side, 3]
        whole = np.tile(face, (-(-height // side), -(-width // side), 1))[:height, :width]
        pixels[..., :3] = ((1 - opacity) * self._pixels[texture][..., :3] + opacity * whole).round()

    def _restore_textures(self) -> set[int]:
        for texture, pixels in self._pixels.items():
            self._pixels_of(texture)[:] = pixels
        changed = set(self._pixels)
        self._pixels = {}
        return changed

    def _pixels_of(self, texture: int) -> np.ndarray:
        """A view of a texture's pixels in the model: uint8 [H, W, channels]; a cube map has its six sides one below
        the other."""
        model = self._model
        height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
        new = hasattr(model, "tex_data")  # before MuJoCo 3.2 all textures have three channels, in `tex_rgb`
        channels = int(model.tex_nchannel[texture]) if new else 3
        first, data = int(model.tex_adr[texture]), model.tex_data if new else model.tex_rgb
        return np.asarray(data[first : first + height * width * channels].reshape(height, width, channels))


def draw_pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """A pattern of two or more colours, checks, stripes, dots or clouds: uint8 [side, side, 3]."""
    y, x = np.mgrid[:side, :side] / side
    first, second = rng.uniform(0, 255, (2, 3))
    kind, number = int(rng.integers(4)), int(rng.integers(2, 7))
    if kind == 0:
        share = ((np.floor(x * number) + np.floor(y * number)) % 2).astype(float)
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        share = (np.sin(2 * np.pi * number * (x * np.cos(angle) + y * np.sin(angle))) > 0).astype(float)
    elif kind == 2:
        share = (np.hypot((x * number) % 1 - 0.5, (y * number) % 1 - 0.5) < 0.3).astype(float)
    else:
        waves = rng.normal(size=(6, 3))
        share = sum(a * np.sin(2 * np.pi * (3 * b * x + 3 * c * y) + a) for a, b, c in waves)
        share = (share - share.min()) / max(float(np.ptp(share)), 1e-9)
    return np.asarray((1 - share[..., None]) * first + share[..., None] * second).astype(np.uint8)


# ---- rotations ----------------------------------------------------------------------------------------------------


def rotation_by(turn: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] of an axis times an angle [3] (Rodrigues' formula)."""
    angle = float(np.linalg.norm(turn))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """The rotation matrix [3, 3] of a quaternion (w, x, y, z)."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    """The quaternion (w, x, y, z) of a rotation matrix, as MuJoCo computes it."""
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, matrix.flatten())
    return quaternion
