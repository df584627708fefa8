"""Rendering a MuJoCo scene's cameras fast on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from atlas.environments.rendering import failure_explained
from atlas.environments.scene_variation import Distractor

_HIDDEN_GROUP = 5  # MuJoCo has geom groups 0 to 5; its models use the lower ones
_SHADOW_PIXELS, _SHADOW_REACH = 1024, 0.25  # of a shadow map: its side, and the share of the scene that it covers


class CameraRenderer:
    """Renders fixed cameras of a model as square uint8 images [size, size, 3], upright, RGB.

    Software rendering spends its time on the vertices of detailed meshes, most of them outside the view. Shapes whose
    bounding box lies outside the camera's frustum are skipped, which changes no pixel. Shadows, reflections and
    multisampling are off: they cost half of the time and tell a policy nothing. A variation of the scene may turn
    shadows on, and add things that are seen but not felt.
    """

    def __init__(self, model: Any, data: Any, size: int, hidden_groups: tuple[int, ...] = (0,)) -> None:
        import mujoco

        self.size = size
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize, model.vis.map.shadowclip = _SHADOW_PIXELS, _SHADOW_REACH
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._model, self._data = model, data
        with failure_explained():
            self._renderer = mujoco.Renderer(model, size, size)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        for group in (*hidden_groups, _HIDDEN_GROUP):
            self._options.geomgroup[group] = 0
        centre, half_size = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        self._corners = centre[:, None] + half_size[:, None] * signs  # [geoms, 8, 3], each in its shape's frame
        self._bounded = model.geom_rbound > 0  # planes are endless: always drawn
        self._added: list[tuple[Distractor, float]] = []
        self._shadows = False

    def render(self, camera: str, cull: bool = True) -> np.ndarray:
        """One camera's image of the current state. `cull=False` draws every shape (the same pixels, slowly)."""
        groups = self._model.geom_group.copy()
        if cull and not self._shadows:  # a shape outside the view may cast a shadow into it
            self._model.geom_group[self._outside(camera)] = _HIDDEN_GROUP
        self._renderer.update_scene(self._data, camera=camera, scene_option=self._options)
        self._model.geom_group[:] = groups
        for thing, ground in self._added:
            self._add(thing, ground)
        return np.asarray(self._renderer.render())

    def show(self, things: Sequence[Distractor], centre: np.ndarray, shadows: bool, textures: Sequence[int]) -> None:
        """Draw these things too from now on, on the ground at `centre` [3], m, with shadows or without. textures: the
        model's textures whose pixels have changed."""
        import mujoco

        places = [(thing.place[0] + float(centre[0]), thing.place[1] + float(centre[1])) for thing in things]
        moved = [replace(thing, place=place) for thing, place in zip(things, places, strict=True)]
        self._added = [(thing, float(centre[2])) for thing in moved]
        self._shadows = shadows
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(shadows)
        if textures:
            self._renderer._gl_context.make_current()
            for texture in textures:
                mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, texture)

    def _add(self, thing: Distractor, ground: float) -> None:
        """Put one more shape into the scene that is about to be drawn."""
        import mujoco

        scene = self._renderer.scene
        across, _, height = thing.size
        # MuJoCo gives a cylinder as its radius and half of its length.
        size = (across, height, 0.0) if thing.shape == "cylinder" else thing.size
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            getattr(mujoco.mjtGeom, f"mjGEOM_{thing.shape.upper()}"),
            np.array(size, np.float64),
            np.array([*thing.place, ground + height]),
            np.eye(3).flatten(),
            np.array([*thing.colour, 1.0], np.float32),
        )
        scene.ngeom += 1

    def close(self) -> None:
        self._renderer.close()

    def _outside(self, camera: str) -> np.ndarray:
        """bool [geoms]: the shapes whose bounding box lies wholly beyond one of the frustum's sides."""
        eye = self._data.cam(camera)
        rotations = self._data.geom_xmat.reshape(-1, 3, 3)
        corners = np.einsum("gij,gkj->gki", rotations, self._corners) + self._data.geom_xpos[:, None]
        right, up, back = np.moveaxis((corners - eye.xpos) @ eye.xmat.reshape(3, 3), -1, 0)  # each [geoms, 8]
        reach = -back * np.tan(np.deg2rad(float(self._model.cam(camera).fovy[0])) / 2)  # half the view's width there
        sides = [right > reach, -right > reach, up > reach, -up > reach, back > 0]
        return np.asarray(self._bounded & np.any([side.all(axis=1) for side in sides], axis=0))


def coarsen(model: Any, cells: Mapping[str, float]) -> None:
    """Join the vertices of meshes that are only seen, in a MuJoCo model whose meshes no renderer has read yet.

    cells: the side of the cubes, in m, within which vertices become one, by how a geom's name begins. Meshes that
    collide keep their triangles, and so does what the model weighs: physics is not changed by a bit.
    """
    import mujoco

    for geom in range(model.ngeom):
        seen_only = not model.geom_contype[geom] and not model.geom_conaffinity[geom]
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH or not seen_only:
            continue
        for name, cell in cells.items():
            if model.geom(geom).name.startswith(name):
                _coarsen_mesh(model, int(model.geom_dataid[geom]), cell)


def _coarsen_mesh(model: Any, mesh: int, cell: float) -> None:
    """Each vertex becomes the one of its cell that lies nearest to their mean; triangles that collapse, and those that
    are there already, go. What is left moves to the front of the mesh's own rows."""
    first, number = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    begin, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    points = model.mesh_vert[begin : begin + vertices]  # [V, 3], m
    corners = model.mesh_face[first : first + number]  # [F, 3]
    normals = model.mesh_facenormal[first : first + number]

    _, cells = np.unique(np.floor((points - points.min(0)) / cell), axis=0, return_inverse=True)
    cells = cells.reshape(-1)
    means = np.stack([np.bincount(cells, points[:, axis]) for axis in range(3)], 1) / np.bincount(cells)[:, None]
    order = np.lexsort((np.linalg.norm(points - means[cells], axis=1), cells))
    nearest = order[np.searchsorted(cells[order], np.arange(len(means)))]  # [cells]: a vertex of each

    joined = nearest[cells][corners]
    whole = (joined[:, 0] != joined[:, 1]) & (joined[:, 1] != joined[:, 2]) & (joined[:, 0] != joined[:, 2])
    _, once = np.unique(np.sort(joined[whole], axis=1), axis=0, return_index=True)
    left = np.flatnonzero(whole)[np.sort(once)]
    model.mesh_face[first : first + len(left)] = joined[left]
    model.mesh_facenormal[first : first + len(left)] = normals[left]
    model.mesh_facenum[mesh] = len(left)
