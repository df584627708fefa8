"""Environments of gymnasium that people use, under names of their own, with what their spaces do not tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.config.action_sections import SourceGroupConfig
from atlas.config.gym_section import GymConfig

Draw = Callable[[Any, int], np.ndarray]


@dataclass(frozen=True)
class GymPreset:
    """An environment by gymnasium's id, and how it is read.

    prepare: called with the environment when it has been made. draw: draws its picture, uint8 [H, W, 3], with so many
    pixels on the shorter side; None: its own `render`.
    """

    identifier: str
    config: GymConfig
    prepare: Callable[[Any], None] = lambda env: None
    draw: Draw | None = None


def _aloha_arm(arm: Any, first: int) -> list[SourceGroupConfig]:
    joints = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    names = [f"{arm}_{joint}" for joint in joints]
    return [
        SourceGroupConfig(kind="joints", columns=(first, first + 6), names=names, arm=arm),
        SourceGroupConfig(
            kind="gripper", columns=first + 6, names=[f"{arm}_gripper"], arm=arm, continuous=True, open=1.0, closed=0.0
        ),
    ]


def _aloha(task: str, instruction: str) -> GymPreset:
    """Absolute joint targets of two arms at 50 Hz. Its Box says -1 to 1, which its elbows exceed where they begin."""
    config = GymConfig(
        cameras={"top": "render"},
        proprio=["agent_pos"],
        action=[*_aloha_arm("left", 0), *_aloha_arm("right", 7)],
        clip=False,
        success="is_success",
        instruction=instruction,
        make={"obs_type": "pixels_agent_pos"},
    )
    return GymPreset(f"gym_aloha/{task}", config, _without_pictures, _draw_aloha)


def _without_pictures(env: Any) -> None:
    """gym-aloha renders three pictures of 640 x 480 in every step; here one is drawn when it is looked at."""
    simulation = env.unwrapped._env
    model, task = simulation.physics.model, simulation.task
    model.vis.quality.offsamples = 0
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    unseen = {"top": np.zeros((1, 1, 3), np.uint8)}
    task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": unseen}


def _draw_aloha(env: Any, shorter: int) -> np.ndarray:
    return np.array(env.unwrapped._env.physics.render(height=shorter, width=round(shorter * 4 / 3), camera_id="top"))


PRESETS = {
    "aloha-transfer-cube": _aloha(
        "AlohaTransferCube-v0", "Pick up the cube with the right arm and transfer it to the left arm."
    ),
    "aloha-insertion": _aloha("AlohaInsertion-v0", "Insert the peg into the socket."),
    "pusht": GymPreset(
        "gym_pusht/PushT-v0",
        GymConfig(
            cameras={"image": "pixels"},
            proprio=["agent_pos"],
            action=[SourceGroupConfig(kind="other", columns=(0, 2), names=["x", "y"])],
            success="is_success",
            instruction="Push the T-shaped block onto the T-shaped target.",
            make={"obs_type": "pixels_agent_pos"},
        ),
    ),
}
