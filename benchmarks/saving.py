"""How long a checkpoint holds up training: written in the background, and written while training waits.

    python benchmarks/saving.py [--megabytes 5 100 400] [--rounds 5] [--folder .]

Uses policies with `--megabytes` MB of weights, AdamW's state and averaged weights, which makes four times as much to
write. Both ways wait for the disk (fsync) before a checkpoint counts. While one is written in the background, training
steps continue and are timed, as are equally many steps without. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from machine import describe

from atlas.checkpoints import Checkpoints
from atlas.checkpoints.background_writer import BackgroundWriter
from atlas.checkpoints.contents import Snapshot, TrainingState, random_state
from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.run_folder import Retention
from atlas.config import load_config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.training.average import WeightAverage
from atlas.training.optimizer import make_optimizer
from atlas.types import ActionSpec, Batch

LAYERS, HORIZON, SIZE, BATCH = 8, 8, 64, 4
QUIET_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[5, 100, 400], help="of weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; the disk matters")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"\n{describe()}\n")
    print(
        "| weights, MB | checkpoint, MB | training waits, s | in the background: held, s | of it | first time, s |",
        end="",
    )
    print(" written in, s | a step, s | a step meanwhile, s |\n|---|---|---|---|---|---|---|---|---|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(prefix="atlas-saving-", dir=arguments.folder) as folder:
            print(measure(Training(megabytes, device), Path(folder), arguments.rounds), flush=True)


class Training:
    """A policy of the wanted size that is trained on one batch of random numbers."""

    def __init__(self, megabytes: float, device: torch.device) -> None:
        width = 64 * max(1, round(math.sqrt(megabytes * 1e6 / 4 / (12 * LAYERS)) / 64))
        config = load_config({}, [f"model.fusion.dim={width}", f"model.fusion.layers={LAYERS}"])
        self.policy = ModularPolicy(config.model, make_processor()).to(device)
        self.optimizer = make_optimizer(self.policy, config.training)
        self.average = WeightAverage(self.policy, config.training.ema_decay)
        self.batch = make_batch().to(device)
        self.state = TrainingState(step=0, samples_seen=0, world_size=1)

    def step(self) -> float:
        """Returns the seconds that it took."""
        begin = time.perf_counter()
        self.policy(self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.policy, self.state.step)
        self.state.step += 1
        if self.batch.proprio.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def now(self) -> Snapshot:
        ranks = [{"random": random_state(), "sums": {}}]
        return Snapshot.of(self.average.policy, self.policy, self.optimizer, self.state, ranks)


@dataclass
class Times:
    """Seconds."""

    waiting: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)
    quiet_steps: list[float] = field(default_factory=list)
    steps_meanwhile: list[float] = field(default_factory=list)


def measure(training: Training, folder: Path, rounds: int) -> str:
    """A row of the table."""
    checkpoints, memory, times = Checkpoints(folder, Retention(last_n=2)), HostMemory(), Times()
    writer = BackgroundWriter(checkpoints)
    for _ in range(2):
        training.step()
    for _ in range(rounds + 1):
        times.quiet_steps += [training.step() for _ in range(QUIET_STEPS)]
        times.waiting.append(save_and_wait(checkpoints, training))
        training.step()

        begin = time.perf_counter()
        done: list[float] = []
        writer.begin(training.now().copied(memory), lambda _, done=done: done.append(time.perf_counter()))  # type: ignore[misc]
        times.held.append(time.perf_counter() - begin)
        while not done:
            times.steps_meanwhile.append(training.step())
        times.writing.append(done[0] - begin)
        writer.wait()
    assert not writer.failed, writer.failed
    first, held, waiting = times.held[0], times.held[1:], times.waiting[1:]
    weights = sum(value.nbytes for value in training.policy.own_state_dict().values())
    cells = [
        f"{weights / 1e6:.0f}",
        f"{training.now().nbytes / 1e6:.0f}",
        f"{statistics.median(waiting):.3f}",
        f"{statistics.median(held):.4f} ({min(held):.4f} to {max(held):.4f})",
        f"{100 * statistics.median(held) / statistics.median(waiting):.1f}%",
        f"{first:.4f}",
        f"{statistics.median(times.writing[1:]):.2f}",
        f"{statistics.median(times.quiet_steps):.3f}",
        f"{statistics.median(times.steps_meanwhile):.3f} ({len(times.steps_meanwhile)} steps)",
    ]
    return f"| {' | '.join(cells)} |"


def save_and_wait(checkpoints: Checkpoints, training: Training) -> float:
    begin = time.perf_counter()
    checkpoints.write(training.now())
    checkpoints.prune()
    return time.perf_counter() - begin


def make_processor() -> PolicyProcessor:
    rng = np.random.default_rng(0)
    columns = [ColumnStatistics.of(rng.normal(size=(50, n))) for n in (7, 8)]
    statistics_ = (DatasetStatistics("made up", 10, 2, *columns),)
    scaling = load_config({}).model.processor
    return PolicyProcessor(("agentview", "eye_in_hand"), SIZE, SIZE, HORIZON, 8, ActionSpec(), statistics_, scaling)


def make_batch() -> Batch:
    actions = torch.rand(BATCH, HORIZON, 7) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    return Batch(
        images=torch.randint(0, 256, (BATCH, 2, 3, SIZE, SIZE), dtype=torch.uint8),
        proprio=torch.randn(BATCH, 8),
        instruction=["pick up the red cube"] * BATCH,
        source=torch.zeros(BATCH, dtype=torch.int64),
        actions=actions,
        action_is_pad=torch.zeros(BATCH, HORIZON, dtype=torch.bool),
    )


if __name__ == "__main__":
    main()
