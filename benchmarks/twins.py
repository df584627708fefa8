"""What can be achieved without looking, or without listening: policies trained that way, and one that may do both.

    python benchmarks/twins.py [--data data/cubes] [--episodes 100] [key=value ...]

Trains the default policy with the default job's settings three times: normally, with images that are black in training
and in evaluation, and with the same words every time. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from default_job import tried
from machine import describe

from atlas.config import load_config
from atlas.data.sampling.chunks import ChunkDataset, Sample
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.processor import PolicyProcessor
from atlas.train import build_trainer, make_accelerator, prepare
from atlas.training import Trainer
from atlas.types import Batch

SAME_WORDS = "pick up a cube"


def unimpaired(batch: Batch) -> Batch:
    return batch


def blind(batch: Batch) -> Batch:
    return replace(batch, images=torch.zeros_like(batch.images))


def deaf(batch: Batch) -> Batch:
    return replace(batch, instruction=[SAME_WORDS] * len(batch))


TWINS = {"trained as it is": unimpaired, "trained blind": blind, "trained without the instruction": deaf}


class Impaired(ChunkDataset):
    """The same samples, changed."""

    def __init__(self, data: ChunkDataset, change) -> None:  # type: ignore[no-untyped-def]
        self.__dict__.update(data.__dict__)
        self._change = change

    def __getitems__(self, samples: Sequence[Sample]) -> Batch:
        return self._change(super().__getitems__(samples))

    def instructions(self) -> list[str]:
        return list(dict.fromkeys(self[0, i].instruction[0] for i in range(len(self))))


class ImpairedPolicy:
    """A policy whose inputs are changed as its training data were."""

    def __init__(self, policy: ModularPolicy, change) -> None:  # type: ignore[no-untyped-def]
        self._policy, self._change = policy, change
        self.processor: PolicyProcessor = policy.processor

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self._policy.parameters()

    def sample(self, batch: Batch, generator: torch.Generator | None = None) -> torch.Tensor:
        return self._policy.sample(self._change(batch), generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    print("| twin | success | 95% interval | by instruction | mean length |\n|---|---|---|---|---|")
    for name in TWINS:
        print(train_and_try(name, arguments), flush=True)


def train_and_try(name: str, arguments: argparse.Namespace) -> str:
    change = TWINS[name]
    overrides = [
        f"data.path={arguments.data}",
        f"output_dir={tempfile.mkdtemp(prefix='atlas-twin-')}",
        "run_name=twin",
        "evaluation.episodes=0",  # takes the last checkpoint, without a choice
        *arguments.overrides,
    ]
    prepared = prepare(load_config(None, overrides))
    plain = build_trainer(prepared, make_accelerator(prepared.config))
    data = prepared.data
    prepared.data = replace(data, train=Impaired(data.train, change), val=Impaired(data.val, change))
    trainer = Trainer(prepared, plain.policy, plain.accelerator, plain.tracker, plain.schedule)
    trainer.train()
    trainer.tracker.finish()
    policy = ImpairedPolicy(load_policy(Path(trainer.run_dir) / "checkpoints" / "latest"), change)
    return tried(name, policy, prepared.config.evaluation.execute, arguments.episodes)


if __name__ == "__main__":
    main()
