"""How fast a replay takes experience and gives it back, from state and with images.

    python benchmarks/replay_sampling.py [--decisions 100000] [--batch 256] [--draws 200]

Prints a table for docs/benchmarks.md: microseconds a decision to add (one at a time), milliseconds to draw a batch, and
the memory of the full replay.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from machine import describe

from atlas.learning.experience_replay import Column, Replay

KINDS = {
    "17 numbers": {"proprio": Column((17,), "float32")},
    "17 numbers, two images of 64 pixels": {
        "proprio": Column((17,), "float32"),
        "agentview": Column((64, 64, 3), "uint8"),
        "eye_in_hand": Column((64, 64, 3), "uint8"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=100_000, help="of state; a tenth of it with images")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    print(describe())
    print("| what is seen | decisions | added, µs each | batch of | drawn, ms | with n-step 3, ms | MB |")
    print("|---|---|---|---|---|---|---|")
    for place, (name, columns) in enumerate(KINDS.items()):
        decisions = arguments.decisions // (10 if place else 1)
        replay = Replay(decisions, columns, 7)
        added = fill(replay, columns, decisions)
        drawn = [draw(replay, arguments.batch, arguments.draws, steps) for steps in (1, 3)]
        cells = [name, f"{decisions:,}", f"{1e6 * added:.1f}", arguments.batch, *(f"{1e3 * s:.2f}" for s in drawn)]
        print(f"| {' | '.join(map(str, cells))} | {replay.nbytes / 1e6:.0f} |")


def fill(replay: Replay, columns: dict[str, Column], decisions: int, length: int = 200) -> float:
    """Seconds a decision."""
    row = {name: np.ones(column.shape, column.dtype) for name, column in columns.items()}
    then = {name: values[None] for name, values in row.items()}
    action, reward = np.zeros((1, 7), np.float32), np.zeros(1, np.float32)
    begun = time.perf_counter()
    for step in range(decisions):
        if step % length == 0:
            replay.begin(row)
        replay.extend(action, reward, then, over=step % length == length - 1)
    return (time.perf_counter() - begun) / decisions


def draw(replay: Replay, batch: int, draws: int, steps: int) -> float:
    """Seconds a batch."""
    random = np.random.default_rng(0)
    begun = time.perf_counter()
    for _ in range(draws):
        replay.draw(batch, random, steps)
    return (time.perf_counter() - begun) / draws


if __name__ == "__main__":
    main()
