"""What late answers cost, and what joining chunks gives back: success by delay and by the way chunks are joined.

    python benchmarks/late_chunks.py --policy outputs/flow [--env cubes] [--episodes 30] [--execute 4]
        [--delays 0,50,100,200] [--ways none,0.3,guided] [--workers 2]

Every combination plays the same episodes. `guided` is for policies that make actions of noise.
"""

from __future__ import annotations

import argparse
from contextlib import closing

import torch
from machine import describe

from atlas.rollout.actor import image_size_for
from atlas.rollout.chunk_timeline import Blend
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator, load_actor
from atlas.rollout.proportions import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="outputs/flow", help="a run, a checkpoint, or a policy's folder")
    parser.add_argument("--env", default="cubes")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--execute", type=int, default=4, help="actions of each chunk")
    parser.add_argument("--delays", default="0,50,100,200", help="ms")
    parser.add_argument("--ways", default="none,0.3,guided", help="none, a weight, or guided")
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    planned = plan_episodes(arguments.env, arguments.episodes, "report", 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{describe()}\n\n| delay | joined | success | 95% interval | mean length |\n|---|---|---|---|---|")
    size = image_size_for(load_actor(arguments.policy, arguments.env, device, arguments.execute, None)[0])
    with closing(Evaluator(arguments.env, size, arguments.workers)) as evaluator:
        for delay in map(float, arguments.delays.split(",")):
            for way in arguments.ways.split(","):
                blend: Blend = None if way == "none" else "guided" if way == "guided" else float(way)
                actor, _ = load_actor(
                    arguments.policy, arguments.env, device, arguments.execute, None, delay_ms=delay, blend=blend
                )
                outcomes = evaluator.run(actor, planned, title=f"{delay:g} ms, {way}")
                won = sum(outcome.success for outcome in outcomes)
                low, high = wilson_interval(won, len(outcomes))
                length = sum(outcome.length for outcome in outcomes) / len(outcomes)
                interval = f"{100 * low:.0f} to {100 * high:.0f}%"
                print(f"| {delay:g} ms | {way} | {won}/{len(outcomes)} | {interval} | {length:.1f} |", flush=True)


if __name__ == "__main__":
    main()
