"""HDF5 files of other layouts for tests, made of LIBERO's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "type": "OSC_POSE",
            "control_delta": True,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        },
    },
}


def as_robomimic(root: Path, env_args: dict[str, Any] | None = None) -> Path:
    """Turn a folder of LIBERO files into robomimic's layout: other keys, quaternions, upright images, no language."""
    for path in sorted(root.glob("*.hdf5")):
        with h5py.File(path, "a") as file:
            data = file["data"]
            del data.attrs["problem_info"]
            data.attrs["env_args"] = json.dumps(env_args or ENV_ARGS)
            for demo in data.values():
                _turn(demo)
        path.rename(path.with_name(path.stem + "_robomimic.hdf5"))
    return root


def store_late(root: Path) -> Path:
    """Move the observations of a folder of LIBERO files up by a row, as LIBERO's own script stores them: each row has
    the one that its action led to. The last row keeps its own instead of it."""
    for path in sorted(root.glob("*.hdf5")):
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                for values in demo["obs"].values():
                    values[:-1] = values[1:]
    return root


def _turn(demo: h5py.Group) -> None:
    obs = demo["obs"]
    for camera, name in (("agentview", "agentview"), ("eye_in_hand", "robot0_eye_in_hand")):
        obs[f"{name}_image"] = obs[f"{camera}_rgb"][:][:, ::-1]
        del obs[f"{camera}_rgb"]
    obs["robot0_eef_quat"] = quaternions(obs["ee_ori"][:])
    obs.move("ee_pos", "robot0_eef_pos")
    obs.move("gripper_states", "robot0_gripper_qpos")
    for key in ("ee_ori", "ee_states", "joint_states"):
        if key in obs:
            del obs[key]
    for name in ("init_state", "problem_info", "bddl_file_name"):
        demo.attrs.pop(name, None)


def quaternions(axis_angles: np.ndarray) -> np.ndarray:
    """Axis-angles [T, 3] as unit quaternions [T, 4], scalar last."""
    angle = np.linalg.norm(axis_angles, axis=1, keepdims=True)
    axis = axis_angles / np.maximum(angle, 1e-12)
    return np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=1)
