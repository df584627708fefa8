"""LeRobot's own robot client against the server, where LeRobot is installed. It pins other versions of much that Atlas
uses: an environment of its own is best, with Atlas on the PYTHONPATH."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from atlas.serving.access import Access
from atlas.serving.server import ServerSettings
from tests.serving.running import TellingActor, running

robot_client = pytest.importorskip(
    "lerobot.async_inference.robot_client", reason="LeRobot is not installed", exc_type=ImportError
)
configs = pytest.importorskip("lerobot.async_inference.configs", exc_type=ImportError)

SETTINGS = ServerSettings("lerobot", Access(port=0), name="outputs/first")


class Robot:
    """Eight joints, two cameras, and seven numbers to send it."""

    joints = [f"joint_{number}.pos" for number in range(8)]
    observation_features = {**dict.fromkeys(joints, float), "agentview": (32, 32, 3), "eye_in_hand": (32, 32, 3)}
    action_features = {f"motor_{number}.pos": float for number in range(7)}

    def __init__(self) -> None:
        self.done: list[dict[str, float]] = []

    def connect(self) -> None:
        pass

    def disconnect(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        image = np.full((32, 32, 3), 9, np.uint8)
        state = dict.fromkeys(self.joints, float(len(self.done)))
        return {**state, "agentview": image, "eye_in_hand": image}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.done.append(action)
        return action


def client(port: int, checkpoint: str, robot: Robot, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(robot_client, "make_robot_from_config", lambda config: robot)
    config = configs.RobotClientConfig(
        "act", checkpoint, None, 4, task="go", server_address=f"127.0.0.1:{port}", fps=50
    )
    return robot_client.RobotClient(config)


def test_it_executes_actions(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)  # where it writes its log
    robot = Robot()

    with running(TellingActor(), SETTINGS) as port:
        acting = client(port, "outputs/first", robot, monkeypatch)
        assert acting.start()
        threading.Thread(target=acting.receive_actions, daemon=True).start()
        control = threading.Thread(target=acting.control_loop, args=("go",), daemon=True)
        control.start()
        end = time.monotonic() + 20
        while len(robot.done) < 12 and time.monotonic() < end:
            time.sleep(0.02)
        acting.shutdown_event.set()
        control.join(5)

    assert len(robot.done) >= 12
    assert robot.done[0]["motor_2.pos"] == 9 and robot.done[0]["motor_6.pos"] == 0


def test_its_wish_for_another_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)

    with running(TellingActor(), SETTINGS) as port:
        assert not client(port, "somebody/other", Robot(), monkeypatch).start()
