"""How fast each world is, in one process: steps a second without pictures, and observations a second with them.

    python benchmarks/worlds.py [--size 96] [--seconds 5] [WORLD ...]

A world that is not installed says so. The seconds are those that this process computed: other programs on the machine
do not count, and a world that computes in several threads is no faster for it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from machine import describe

from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.environment import Environment
from atlas.errors import InputError

WORLDS = (
    *("cubes", "metaworld-drawer-open", "aloha-transfer-cube", "pusht", "gym:Pendulum-v1", "libero_object"),
    "gym:lerobot_env_so101/SO101PickCube-v0?make.image_obs=true",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="pixels of an image's side")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number, of this process")
    parser.add_argument("worlds", nargs="*", default=WORLDS)
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    print("| world | cameras | steps/s | observations/s | images/s |\n|---|---|---|---|---|")
    for name in arguments.worlds:
        try:
            print(measured(name, arguments.size, arguments.seconds), flush=True)
        except InputError as error:
            print(f"| `{name}` | not here: {str(error).splitlines()[0]} | | | |", flush=True)


def measured(name: str, size: int, seconds: float) -> str:
    """A row of the table. Raises InputError where the world is not installed."""
    spec = environment_spec(name, size)
    env = make_environment(name, size)
    try:
        steps = rate(env, seconds, observe=False)
        seen = rate(env, seconds, observe=True)
    finally:
        env.close()
    cameras = f"{len(spec.cameras)} of {spec.image_size[0]} x {spec.image_size[1]}" if spec.cameras else "none"
    return f"| `{name}` | {cameras} | {steps:.3g} | {seen:.3g} | {seen * len(spec.cameras):.3g} |"


def rate(env: Environment, seconds: float, observe: bool) -> float:
    """Steps a second of what this process computes. An arm that holds still keeps its scene as it is."""
    first = env.reset(seed=0)
    spec = env.spec.action_spec
    action = np.zeros(spec.dim) if spec.delta or first.proprio.shape != (spec.dim,) else first.proprio
    env.step(action)
    done, begun = 0, time.process_time()
    while time.process_time() - begun < seconds:
        if env.step(action, observe=observe).done:
            env.reset(seed=0)
        done += 1
    return done / (time.process_time() - begun)


if __name__ == "__main__":
    main()
