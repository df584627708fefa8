"""What late answers cost, and what joining chunks gives back: success by delay and by the way chunks are joined.

    python benchmarks/late_chunks.py --policy outputs/flow [--env cubes] [--episodes 30] [--execute 4]
        [--delays 0,50,100,200] [--ways none,0.3,guided] [--workers 2] [--server]

Every combination plays the same episodes. `guided` is for policies that make actions of noise. With `--server` the
policy is behind `atlas serve`, in a process of its own, and asked as `atlas eval --policy` asks: the time that this
takes comes on top, and changes no episode.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial

import torch
from default_job import ATLAS
from machine import describe

from atlas.environments.catalog import environment_spec
from atlas.rollout.actor import Actor, image_size_for
from atlas.rollout.chunk_timeline import Blend
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator, load_actor
from atlas.rollout.proportions import wilson_interval
from atlas.serving.policy_client import AtlasClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="outputs/flow", help="a run, a checkpoint, or a policy's folder")
    parser.add_argument("--env", default="cubes")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--execute", type=int, default=4, help="actions of each chunk")
    parser.add_argument("--delays", default="0,50,100,200", help="ms")
    parser.add_argument("--ways", default="none,0.3,guided", help="none, a weight, or guided")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--server", action="store_true", help="the policy is behind `atlas serve`")
    arguments = parser.parse_args()
    planned = plan_episodes(arguments.env, arguments.episodes, "report", 0)
    print(f"{describe()}\n\n| delay | joined | success | 95% interval | mean length |\n|---|---|---|---|---|")
    with ExitStack() as held:
        acting: Callable[..., AbstractContextManager[Actor]]
        if arguments.server:
            url = held.enter_context(serving(arguments.policy))
            acting = partial(client, url, arguments.env, arguments.execute)
        else:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            acting = partial(local, arguments.policy, arguments.env, device, arguments.execute)
        with acting(0.0, None) as actor:
            size = image_size_for(actor)
        evaluator = held.enter_context(closing(Evaluator(arguments.env, size, arguments.workers)))
        for delay in map(float, arguments.delays.split(",")):
            for way in arguments.ways.split(","):
                blend: Blend = None if way == "none" else "guided" if way == "guided" else float(way)
                with acting(delay, blend) as actor:
                    outcomes = evaluator.run(actor, planned, title=f"{delay:g} ms, {way}")
                won = sum(outcome.success for outcome in outcomes)
                low, high = wilson_interval(won, len(outcomes))
                length = sum(outcome.length for outcome in outcomes) / len(outcomes)
                interval = f"{100 * low:.0f} to {100 * high:.0f}%"
                print(f"| {delay:g} ms | {way} | {won}/{len(outcomes)} | {interval} | {length:.1f} |", flush=True)


def local(
    policy: str, env: str, device: torch.device, execute: int, delay: float, blend: Blend
) -> AbstractContextManager[Actor]:
    return nullcontext(load_actor(policy, env, device, execute, None, delay_ms=delay, blend=blend)[0])


def client(url: str, env: str, execute: int, delay: float, blend: Blend) -> AbstractContextManager[Actor]:
    return AtlasClient(url, execute, spec=environment_spec(env), delay_ms=delay, blend=blend)


@contextmanager
def serving(policy: str) -> Iterator[str]:
    """The address at which `atlas serve` answers within the block."""
    command = [*ATLAS, "serve", "--checkpoint", policy, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"at ([\w.]+:\d+) ", server.stdout.readline())
        if found is None:
            sys.exit("`atlas serve` has ended; what it said is above.")
        yield f"ws://{found[1]}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
