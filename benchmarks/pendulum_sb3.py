"""What pendulum.py runs in an environment that has Stable-Baselines3; prints {"return": …, "seconds": …}.

The seconds are of learning alone.

python benchmarks/pendulum_sb3.py sac|ppo ENV SEED STEPS START,START,…
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

SAC = {
    "learning_rate": 3e-4,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "batch_size": 256,
    "tau": 0.005,
    "gamma": 0.99,
    "ent_coef": "auto_1.0",
}
PPO = {"learning_rate": 3e-4, "n_steps": 512, "batch_size": 64, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95}


def main() -> None:
    import gymnasium
    import numpy as np
    import torch
    from stable_baselines3 import PPO as OtherPPO
    from stable_baselines3 import SAC as OtherSAC
    from stable_baselines3.common.env_util import make_vec_env

    name, world, seed, steps, starts = sys.argv[1:]
    torch.set_num_threads(1)
    if name == "sac":
        model: Any = OtherSAC("MlpPolicy", gymnasium.make(world), seed=int(seed), **SAC)
    else:
        net = {"pi": [256, 256], "vf": [64, 64]}
        kwargs = {"net_arch": net}
        model = OtherPPO(
            "MlpPolicy", make_vec_env(world, 4, seed=int(seed)), seed=int(seed), policy_kwargs=kwargs, **PPO
        )
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
