"""What the policy server itself adds to an answer: an actor that answers at once, behind openpi's protocol.

    python benchmarks/serve_overhead.py [--requests 500] [--size 224]

One client asks again as soon as it is answered, over loopback, from the thread beside the server's. Prints percentiles
of the time from sending an observation of two images to having its actions, without that in the actor. The lowest are
those of an idle machine, whatever else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from atlas.serving.server_bench import made_up_message
from atlas.system.array_codec import unpack
from tests.serving.running import TellingActor, running

PERCENTILES = (1, 10, 50, 90, 99)


async def ask(port: int, message: bytes, requests: int) -> np.ndarray:
    """Of each request the ms that it took, less those in the actor: float64 [requests]."""
    from websockets.asyncio.client import connect

    took = []
    async with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        await connection.recv()
        for _ in range(requests):
            begin = time.perf_counter()
            await connection.send(message)
            answer = await connection.recv()
            seconds = time.perf_counter() - begin
            assert isinstance(answer, bytes)
            took.append(1000 * seconds - unpack(answer)["policy_timing"]["infer_ms"])
    return np.array(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--size", type=int, default=224, help="pixels of the two images")
    arguments = parser.parse_args()
    actor = TellingActor()
    message = made_up_message(actor.processor.cameras, actor.processor.proprio_dim, arguments.size)
    with running(actor) as port:
        took = asyncio.run(ask(port, message, arguments.requests))
    found = ", ".join(
        f"p{p} {value:.2f}" for p, value in zip(PERCENTILES, np.percentile(took, PERCENTILES), strict=True)
    )
    print(f"{arguments.requests} requests of {len(message) / 1000:.0f} kB, ms beside the actor: {found}")


if __name__ == "__main__":
    main()
