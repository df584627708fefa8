"""Whether malformed messages can do more than be refused: a served policy, and clients that send what they should not.

    python benchmarks/serve_fuzz.py [--frames 10000] [--seed 0] [--protocols openpi groot vla-eval lerobot]

For each protocol a server in a process of its own gets so many messages: damaged ones, cut ones, ones of random bytes,
of other values, nested deeply, with arrays that are not as they say. A valid client asks throughout and must get the
right answers. Prints for each protocol how the messages were answered and the server's memory before and after; the
exit code is 1 where the valid client was not served, the server ended, or its memory grew by more than 64 MiB. Linux
only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from atlas.errors import InputError
from atlas.system.array_codec import pack, unpack
from tests.serving.malformed import malformed
from tests.serving.running import libero_message

GROWTH = 64 * 2**20  # bytes
_BETWEEN = 25  # messages, between two requests of the valid client
_SETTLE = 500  # messages, before memory is first looked at


def serve(protocol: str, told: Connection) -> None:
    """A server, in a process of its own."""
    import asyncio

    from atlas.serving.access import Access
    from atlas.serving.server import ServerSettings, serve_until_stopped
    from tests.serving.running import TellingActor

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the policy is told to fail now and then, and logs it
    settings = ServerSettings(protocol, Access(port=0))
    asyncio.run(serve_until_stopped(TellingActor(), settings, told.send))


@dataclass
class Talk:
    """How a protocol is talked to. valid: asks as one should, and says whether the answer was right. hostile: sends a
    message, and says how it was answered."""

    whole: bytes
    valid: Callable[[int], bool]
    hostile: Callable[[bytes | str], str]


def websocket_talk(port: int, whole: bytes, valid: Callable[[Any, int], bool], greets: bool) -> Talk:
    """greets: whether the server speaks first."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    def opened() -> Any:
        return connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, close_timeout=1)

    asking = opened().__enter__()

    def hostile(message: bytes | str) -> str:
        with opened() as connection, suppress(TimeoutError):
            if greets:
                connection.recv(10)
            connection.send(message)
            try:
                answer = connection.recv(0.5)
                return "told in words" if isinstance(answer, str) else "answered"
            except ConnectionClosed:
                return "closed"
        return "ignored"

    return Talk(whole, lambda pixel: valid(asking, pixel), hostile)


def openpi_talk(port: int) -> Talk:
    def valid(connection: Any, pixel: int) -> bool:
        connection.send(pack(libero_message(pixel)))
        while "actions" not in (answer := unpack(connection.recv(10))):
            pass  # the greeting
        return bool(answer["actions"][0, 2] == pixel)

    return websocket_talk(port, pack(libero_message()), valid, greets=True)


def vla_eval_talk(port: int) -> Talk:
    def message(pixel: int, seq: int) -> bytes:
        image = np.full((32, 32, 3), pixel, np.uint8)
        seen = {"images": {"agentview": image, "wrist": image}, "states": np.zeros(8), "task_description": "go"}
        return pack({"type": "observation", "payload": seen, "seq": seq, "timestamp": 0.0}, "vla-eval")

    def valid(connection: Any, pixel: int) -> bool:
        start = {"type": "episode_start", "payload": {}, "seq": 0, "timestamp": 0.0}
        connection.send(pack(start, "vla-eval"))
        connection.send(message(pixel, 1))
        return bool(unpack(connection.recv(10))["payload"]["actions"][2] == pixel)

    return websocket_talk(port, message(7, 3), valid, greets=False)


def groot_talk(port: int) -> Talk:
    import zmq

    def opened() -> Any:
        socket = zmq.Context.instance().socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def message(pixel: int) -> bytes:
        image = np.full((1, 1, 32, 32, 3), pixel, np.uint8)
        state = np.zeros((1, 1, 8), np.float32)
        seen = {"video.agentview": image, "video.eye_in_hand": image, "state.state": state, "language.task": [["go"]]}
        return pack({"endpoint": "get_action", "data": {"observation": seen, "options": None}}, "groot-npy")

    asking, sending = opened(), opened()

    def valid(pixel: int) -> bool:
        asking.send(message(pixel))
        return bool(unpack(asking.recv())[0]["position"][0, 0, 2] == pixel)

    def hostile(frame: bytes | str) -> str:
        sending.send(frame if isinstance(frame, bytes) else frame.encode())
        return "told in words" if "error" in unpack(sending.recv()) else "answered"

    return Talk(message(7), valid, hostile)


def lerobot_talk(port: int) -> Talk:
    import grpc

    from tests.serving.lerobot_messages import Client, dumps, observation

    def opened() -> Client:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        robot = Client(channel)
        robot.begin(checkpoint="policy")
        return robot

    asking, sending = opened(), opened()
    steps = iter(range(10**9))

    def valid(pixel: int) -> bool:
        asking.send(observation(next(steps), pixel, must_go=True))
        return bool(asking.actions()[0].action[2] == pixel)

    def hostile(frame: bytes | str) -> str:
        try:
            sending.send(frame if isinstance(frame, bytes) else frame.encode())
            return "answered"
        except grpc.RpcError as error:
            return "told in words" if error.code() == grpc.StatusCode.INVALID_ARGUMENT else str(error.code())

    return Talk(dumps(observation(must_go=True)), valid, hostile)


TALKS = {"openpi": openpi_talk, "groot": groot_talk, "vla-eval": vla_eval_talk, "lerobot": lerobot_talk}


def memory_of(process: int) -> int:
    """Bytes that are resident."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fuzz(protocol: str, frames: int, seed: int) -> bool:
    """Prints a line; whether all went well."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(protocol, theirs), daemon=True)
    process.start()
    talk = TALKS[protocol](ours.recv())
    rng, answers, right, asked, before = random.Random(f"{seed} {protocol}"), Counter[str](), 0, 0, 0
    begin = time.monotonic()
    for number in range(frames):
        if number == min(_SETTLE, frames // 2):
            before = memory_of(process.pid or 0)
        try:
            answers[talk.hostile(malformed(talk.whole, rng))] += 1
        except (InputError, OSError) as error:
            answers[type(error).__name__] += 1
        if number % _BETWEEN == 0:
            asked += 1
            with suppress(Exception):
                right += talk.valid(number % 251)
    alive = process.is_alive()
    after = memory_of(process.pid or 0) if alive else 0
    process.terminate()
    process.join(10)
    how = ", ".join(f"{count} {what}" for what, count in answers.most_common())
    print(
        f"{protocol}: {frames} messages in {time.monotonic() - begin:.0f} s: {how}; valid client {right} of {asked}; "
        f"memory {before / 2**20:.0f} MiB, then {after / 2**20:.0f} MiB{'' if alive else '; THE SERVER ENDED'}",
        flush=True,
    )
    return alive and right == asked and after - before < GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocols", nargs="*", default=list(TALKS), choices=list(TALKS))
    arguments = parser.parse_args()
    went_well = [fuzz(protocol, arguments.frames, arguments.seed) for protocol in arguments.protocols]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main())
