"""A policy that Atlas has trained in the cubes world, played there by LeRobot's own evaluation.

    python benchmarks/lerobot_rollouts.py CHECKPOINT --lerobot PYTHON [--episodes 50] [--out DIR] [--right-positions]

CHECKPOINT is of type smolvla, pi0 or pi05. It is exported for LeRobot and played twice on the same starts: by `atlas
eval`, and by `eval_policy` of the package `lerobot` (0.4.4 or newer) with LeRobot's policy class and processors. PYTHON
is the interpreter of an environment that has LeRobot, and what the cubes world needs: mujoco and robosuite. What
LeRobot's policy saw, its noise and the actions that were executed are kept; Atlas's policy is then asked for the
actions of all these decisions. Prints both successes and the largest difference for docs/benchmarks.md.

--right-positions: see lerobot_agreement.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from default_job import ATLAS, run
from machine import describe
from safetensors.torch import load_file, save_file

WORLD = "cubes"
PLAN, PLAYED, DECISIONS = "plan.json", "played.json", "decisions.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="or the working folder, for what this script starts with --play")
    parser.add_argument("--lerobot", metavar="PYTHON")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("--right-positions", action="store_true")
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        play(Path(arguments.checkpoint), arguments.right_positions)
        return
    if arguments.lerobot is None:
        parser.error("--lerobot is missing: the Python of an environment that has LeRobot")
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-lerobot-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = str(Path(arguments.checkpoint).resolve())
    prepare(checkpoint, arguments.episodes, out)
    command = [*ATLAS, "eval", "--checkpoint", checkpoint, "--env", WORLD, "--json"]
    atlas = json.loads(run([*command, "--episodes", str(arguments.episodes)], cwd=out, capture=True))
    flags = ["--right-positions"] if arguments.right_positions else []
    run([arguments.lerobot, str(Path(__file__).resolve()), str(out), "--play", *flags], cwd=out)
    report(checkpoint, out, atlas)


# ---- with Atlas's Python -------------------------------------------------------------------------------------


def prepare(checkpoint: str, episodes: int, out: Path) -> None:
    """Export the policy, and write down what is to be played: the starts of `atlas eval`."""
    from atlas.policies.exporting import export_policy
    from atlas.rollout.episode_plan import plan_episodes

    export_policy(checkpoint, "lerobot", out / "lerobot")
    policy = _load(checkpoint)
    plan = {
        "cameras": {slot: policy.processor.cameras[view] for slot, view in policy.slots.present},
        "camera_size": policy.processor.camera_size,
        "starts": [(each.seed, each.instruction) for each in plan_episodes(WORLD, episodes, "report", seed=0)],
    }
    (out / PLAN).write_text(json.dumps(plan))


def report(checkpoint: str, out: Path, atlas: dict[str, Any]) -> None:
    played: dict[str, Any] = json.loads((out / PLAYED).read_text())
    print(f"\n{describe()}; {played['versions']}\n")
    print("| type | by `atlas eval` | by LeRobot's `eval_policy` | decisions | largest difference of actions |")
    print("|---|---|---|---|---|")
    count, difference = largest_difference(checkpoint, out)
    success = [f"{atlas['successes']}/{atlas['episodes']}", f"{sum(played['success'])}/{len(played['success'])}"]
    print(f"| {' | '.join([played['type'], *success, f'{count:,}', f'{difference:.1e}'])} |")


def largest_difference(checkpoint: str, out: Path) -> tuple[int, float]:
    """How many decisions LeRobot's policy made, and how far Atlas's actions are from the executed ones, at most."""
    from atlas.types import Observation

    policy, plan, kept = _load(checkpoint), json.loads((out / PLAN).read_text()), load_file(out / DECISIONS)
    instructions = json.loads((out / PLAYED).read_text())["instructions"]
    largest = 0.0
    for number, instruction in enumerate(instructions):
        images = {camera: kept[f"image.{slot}"][number].numpy() for slot, camera in plan["cameras"].items()}
        seen = Observation(images, kept["state"][number].numpy(), instruction)
        chunk = policy.sample_chunk(policy.processor.batch([seen]), kept["noise"][number][None])[0]
        done = int(kept["executed"][number])
        largest = max(largest, float((chunk[:done] - kept["actions"][number, :done]).abs().max()))
    return len(instructions), largest


def _load(checkpoint: str) -> Any:
    from atlas.policies.base import load_policy

    return load_policy(checkpoint).eval()


# ---- with LeRobot's Python -----------------------------------------------------------------------------------


@dataclass
class Decision:
    """What the policy saw, the noise it began with, and what was executed of its answer."""

    images: dict[str, np.ndarray]  # uint8 [S, S, 3] each
    state: np.ndarray  # float32 [D]
    instruction: str
    noise: torch.Tensor  # float32 [H, W]
    actions: list[np.ndarray] = field(default_factory=list)


def play(out: Path, right_positions: bool) -> None:
    """Have LeRobot evaluate its policy."""
    from lerobot_agreement import load_exported, versions

    policy, before, after = load_exported(out / "lerobot", right_positions)
    import gymnasium as gym
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import eval_policy

    plan = json.loads((out / PLAN).read_text())
    decisions: list[Decision] = []
    world = _make_world(plan, decisions)
    env = gym.vector.SyncVectorEnv([lambda: world], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    draw = policy.model.sample_noise

    def draw_and_keep(shape: Any, device: Any) -> torch.Tensor:
        noise: torch.Tensor = draw(shape, device)
        decisions.append(Decision(*world.seen(), noise[0].clone()))
        return noise

    policy.model.sample_noise = draw_and_keep
    torch.manual_seed(0)
    nothing = PolicyProcessorPipeline(steps=[])
    found = eval_policy(env, policy, nothing, nothing, before, after, n_episodes=len(plan["starts"]), start_seed=0)
    env.close()
    success = [bool(each["success"]) for each in found["per_episode"]]
    says = {"type": policy.config.type, "versions": versions(), "success": success}
    (out / PLAYED).write_text(json.dumps({**says, "instructions": [each.instruction for each in decisions]}))
    save(decisions, out / DECISIONS)


def _make_world(plan: dict[str, Any], decisions: list[Decision]) -> Any:
    """The cubes as LeRobot's evaluation wants a world. Seed N begins the plan's start N."""
    import gymnasium as gym

    from atlas.environments.catalog import environment_spec, make_environment

    spec, side = environment_spec(WORLD), plan["camera_size"]

    class World(gym.Env[Any, Any]):
        def __init__(self) -> None:
            self._cubes = make_environment(WORLD, side)
            self._seen = self._cubes.reset(seed=0)
            image = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
            state = gym.spaces.Box(-np.inf, np.inf, self._seen.proprio.shape, np.float32)
            pixels = gym.spaces.Dict(dict.fromkeys(plan["cameras"], image))
            self.observation_space = gym.spaces.Dict({"pixels": pixels, "agent_pos": state})
            self.action_space = gym.spaces.Box(-1, 1, (spec.action_spec.dim,), np.float32)
            self._max_episode_steps = spec.horizon
            self.task = self.task_description = ""

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            if seed is not None:  # without one, the vector starts an episode that nobody plays
                start, instruction = plan["starts"][seed]
                self._seen = self._cubes.reset(seed=start, instruction=instruction)
                self.task = self.task_description = instruction
            return self._as_lerobot(), {}

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            decisions[-1].actions.append(np.array(action, np.float32))
            result = self._cubes.step(action)
            self._seen, told = result.observation, {"is_success": result.success}
            return self._as_lerobot(), result.reward, result.terminated, result.truncated, told

        def close(self) -> None:
            self._cubes.close()

        def seen(self) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
            """The slots' images, the state and the instruction."""
            images = {slot: self._seen.images[camera] for slot, camera in plan["cameras"].items()}
            return images, self._seen.proprio.astype(np.float32), self.task

        def _as_lerobot(self) -> dict[str, Any]:
            images, state, _ = self.seen()
            return {"pixels": images, "agent_pos": state}

    return World()


def save(decisions: list[Decision], file: Path) -> None:
    longest = max(len(each.actions) for each in decisions)
    actions = np.zeros((len(decisions), longest, len(decisions[0].actions[0])), np.float32)
    for number, each in enumerate(decisions):
        actions[number, : len(each.actions)] = each.actions
    columns = {f"image.{slot}": np.stack([each.images[slot] for each in decisions]) for slot in decisions[0].images}
    columns |= {"state": np.stack([each.state for each in decisions]), "actions": actions}
    columns["executed"] = np.array([len(each.actions) for each in decisions])
    saved = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    save_file({**saved, "noise": torch.stack([each.noise for each in decisions])}, file)


if __name__ == "__main__":
    main()
