"""What VGGT's blocks add to the small VGGT encoder: the same policy with its frame and global blocks, and without.

    python benchmarks/ablation.py [--data data/cubes] [--episodes 100] [key=value ...]

Both see through the same stem (keypoint tokens for each view) and train with the default job's settings; without blocks
the tokens pass through unchanged. The last weights are evaluated, without choosing among checkpoints. Prints a table
for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from default_job import tried
from machine import describe
from torch import Tensor, nn

from atlas.config import load_config
from atlas.policies.modular.vision_encoders.vggt_vision import VGGTVisionEncoder
from atlas.train import build_trainer, make_accelerator, prepare
from atlas.training import Trainer
from atlas.training.prepared_run import PreparedRun


class NoBlock(nn.Module):
    """Replaces a block: tokens pass through unchanged."""

    def forward(self, x: Tensor, by: object, views: int) -> Tensor:
        return x


def without_blocks(vision: VGGTVisionEncoder) -> None:
    aggregator = vision.aggregator
    for blocks in (aggregator.frame_blocks, aggregator.global_blocks):
        for i in range(len(blocks)):
            blocks[i] = NoBlock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    print("| small VGGT encoder | success | 95% interval | by instruction | mean length |\n|---|---|---|---|---|")
    for name, blocks in (("with its blocks", True), ("without", False)):
        print(train_and_try(name, blocks, arguments), flush=True)


def train_and_try(name: str, blocks: bool, arguments: argparse.Namespace) -> str:
    overrides = [
        f"data.path={arguments.data}",
        f"output_dir={tempfile.mkdtemp(prefix='atlas-ablation-')}",
        "run_name=ablation",
        "model.vision.name=vggt",
        "evaluation.episodes=0",
        *arguments.overrides,
    ]
    prepared = prepare(load_config(None, overrides))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    if not blocks:
        trainer = rebuilt_without_blocks(prepared, trainer)
    start = time.monotonic()
    trainer.train()
    print(
        f"{name}: trained in {time.monotonic() - start:.0f} s, val loss {trainer.metrics['val/loss']:.4f}", flush=True
    )
    trainer.tracker.finish()
    with trainer.strategy.judged() as policy:
        return tried(name, policy, prepared.config.evaluation.execute, arguments.episodes)


def rebuilt_without_blocks(prepared: PreparedRun, trainer: Trainer) -> Trainer:
    """The same trainer around the changed policy: optimizer and averaged weights must not hold the removed blocks."""
    assert isinstance(trainer.policy.vision, VGGTVisionEncoder)
    without_blocks(trainer.policy.vision)
    return Trainer(prepared, trainer.policy, trainer.accelerator, trainer.tracker, trainer.schedule)


if __name__ == "__main__":
    main()
