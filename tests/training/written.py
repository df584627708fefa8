"""Checkpoints for tests, and processes that die while they write them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from atlas.checkpoints import Checkpoints
from atlas.checkpoints.background_writer import BackgroundWriter
from atlas.checkpoints.contents import Snapshot, TrainingState, random_state
from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.run_folder import Retention
from atlas.config import load_config
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.training.average import WeightAverage
from atlas.training.optimizer import make_optimizer
from tests.policies.test_policy import make_batch, make_policy


class Training:
    """A policy that has learned one step; its bias reveals at which step it was saved."""

    def __init__(self, averaged: bool = False) -> None:
        self.policy = make_policy()
        self.optimizer = make_optimizer(self.policy, load_config({}).training)
        self.judged = WeightAverage(self.policy, 0.9).policy if averaged else self.policy
        learn(self.policy, self.optimizer)

    def at(self, step: int, **state: Any) -> Snapshot:
        """A view of it at a step; `state` as in TrainingState."""
        with torch.no_grad():
            self.policy.head.pose.bias.fill_(step)
            self.judged.head.pose.bias.fill_(step)
        ranks = [{"random": random_state(), "sums": {"loss": torch.tensor([float(step), 2.0])}}]
        now = TrainingState(**{"step": step, "samples_seen": 8 * step, "world_size": 1, **state})
        return Snapshot.of(self.judged, self.policy, self.optimizer, now, ranks)


def learn(policy: ModularPolicy, optimizer: torch.optim.Optimizer) -> None:
    """One step on a batch that is always the same."""
    optimizer.zero_grad()
    policy(make_batch()).loss.backward()
    optimizer.step()


def step_in(checkpoint: Path) -> int:
    """The step that a checkpoint's weights reveal; all of them must be readable."""
    biases = load_policy(checkpoint).head.pose.bias
    assert (biases == biases[0]).all()
    return int(biases[0])


@dataclass(frozen=True)
class Files:
    """The contents of a checkpoint that is a few small files; `content` is in each."""

    state: TrainingState
    content: str = ""
    nbytes: int = 0

    def write(self, folder: Path) -> None:
        for name in ("policy/model.safetensors", "policy/config.yaml", "policy/processor.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(self.content)
        (folder / "trainer").mkdir()
        (folder / "trainer" / "state.json").write_text(json.dumps(asdict(self.state)))


def small(step: int, content: str = "", **state: Any) -> Files:
    return Files(TrainingState(step, 8 * step, 1, **state), content)


# ---- processes that die ----------------------------------------------------------------------------------


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Run a function in a copy of this process, which is killed when the block ends; its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def save_on_and_on(training: Training, run_dir: Path, first: int) -> None:
    """Save one step after another, each twice, in the background, for ever."""
    memory, writer = HostMemory(), BackgroundWriter(Checkpoints(run_dir, Retention(last_n=2)))
    best = first
    for number in range(first * 2, sys.maxsize):
        step = number // 2
        best = step if step % 3 == 0 else best
        writer.wait()
        writer.begin(training.at(step, best_step=best, checkpoints=number).copied(memory))


def write_until(run_dir: Path, operations: int, step: int) -> bool:
    """Write a small checkpoint in a process that is killed once it has done this many operations on files.

    Returns whether it finished before that.
    """
    child = os.fork()
    if child == 0:
        try:
            _write_until(run_dir, operations, step)
            os._exit(0)
        finally:
            os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == 0


def _write_until(run_dir: Path, operations: int, step: int) -> None:
    left = operations

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and str(run_dir) in str(arguments):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    checkpoints = Checkpoints(run_dir, Retention(last_n=1))
    checkpoints.write(small(step, "new", best_step=step))
    checkpoints.prune()


# What Python tells audit hooks of, before it is done. https://docs.python.org/3/library/audit_events.html
_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link"}
