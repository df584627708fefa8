"""Common gymnasium environments as presets, with the settings that their spaces do not give."""

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
    """An environment by gymnasium's id, and how to read it.

    prepare: called with the environment once it is made. draw: draws its picture, uint8 [H, W, 3], with this many
    pixels on the shorter side; None: the environment's `render` does.
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
    """Absolute joint targets of two arms at 50 Hz. The action space claims -1 to 1, which the elbows' initial angles
    exceed, so actions are not clipped."""
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
    """Turn off the three images of 640 x 480 that gym-aloha renders in every step; one is drawn when it is needed."""
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
