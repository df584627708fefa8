"""What pendulum.py runs in an environment that has Stable-Baselines3; prints {"return": …, "seconds": …}.

The seconds are of learning alone.

python benchmarks/pendulum_sb3.py sac|ppo ENV SEED STEPS START,START,… SETTINGS

SETTINGS is JSON, as pendulum.py's `theirs` makes it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    import gymnasium
    import numpy as np
    import torch
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.env_util import make_vec_env

    name, world, seed, steps, starts, given = sys.argv[1:]
    settings = json.loads(given)
    torch.set_num_threads(1)
    worlds = make_vec_env(world, settings.pop("worlds"), seed=int(seed))
    model: Any = {"sac": SAC, "ppo": PPO}[name]("MlpPolicy", worlds, seed=int(seed), **settings)
    begun = time.monotonic()
    model.learn(int(steps))
    seconds = time.monotonic() - begun
    env, returns = gymnasium.make(world), []
    for start in starts.split(","):
        observation, _ = env.reset(seed=int(start) % 2**32)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    print(json.dumps({"return": float(np.mean(returns)), "seconds": seconds}))


if __name__ == "__main__":
    main()
