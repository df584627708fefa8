"""Writes episodes in LIBERO's HDF5 layout: one file per task, with images as robosuite returns them (upside down)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.data.orientation import turn_upright
from atlas.system.files import atomic_path


def write_libero_file(
    path: Path, instruction: str, episodes: Iterable[RecordedEpisode], env_args: dict[str, Any]
) -> None:
    """Write one task's episodes as data/demo_0, demo_1, …; the file appears when it is complete.

    Cameras `X` become `obs/X_rgb`. `env_args` names the environment, so that readers know the world.
    """
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        data = file.create_group("data")
        total = 0
        for index, episode in enumerate(episodes):
            assert episode.instruction == instruction
            _write_demo(data.create_group(f"demo_{index}"), episode)
            total += len(episode.actions)
        data.attrs["problem_info"] = json.dumps(
            {"problem_name": env_args["env_name"], "domain_name": "robosuite", "language_instruction": instruction}
        )
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["bddl_file_name"] = ""
        data.attrs["num_demos"] = len(data)
        data.attrs["total"] = total


def _write_demo(group: h5py.Group, episode: RecordedEpisode) -> None:
    length = len(episode.actions)
    group.attrs["num_samples"] = length
    position, rotation, fingers = np.split(episode.proprio.astype(np.float64), [3, 6], axis=1)
    group["actions"] = episode.actions
    group["robot_states"] = np.concatenate([fingers, position, _quaternions(rotation)], axis=1)
    init_state = episode.init_state
    if episode.sim_states is not None:
        group["states"] = episode.sim_states
        init_state = episode.sim_states[0] if init_state is None else init_state
    if init_state is not None:
        group.attrs["init_state"] = init_state
    if episode.model_xml is not None:
        group.attrs["model_file"] = episode.model_xml
    if episode.rewards is not None:
        whole = episode.rewards.astype(np.uint8)  # as LIBERO stores them; rewards between 0 and 1 stay as they are
        group["rewards"] = whole if np.array_equal(whole, episode.rewards) else episode.rewards
    dones = np.zeros(length, np.uint8)
    dones[-1] = 1
    group["dones"] = dones
    observations = group.create_group("obs")
    for camera, images in episode.images.items():
        observations[f"{camera}_rgb"] = turn_upright(images, "upside_down")
    observations["ee_pos"] = position
    observations["ee_ori"] = rotation
    observations["ee_states"] = np.concatenate([position, rotation], axis=1)
    observations["gripper_states"] = fingers
    if episode.joints is not None:
        observations["joint_states"] = episode.joints


def _quaternions(axis_angles: np.ndarray) -> np.ndarray:
    """Axis-angle [T, 3] to quaternions xyzw [T, 4]."""
    angles = np.linalg.norm(axis_angles, axis=1, keepdims=True)
    axes = axis_angles / np.maximum(angles, 1e-12)
    return np.concatenate([axes * np.sin(angles / 2), np.cos(angles / 2)], axis=1)
