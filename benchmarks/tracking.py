"""What logging scalars costs training: rows of 12 to all sinks, compared with none.

    python benchmarks/tracking.py [--data data/cubes] [--pairs 12] [--steps 50] [--every 1] [key=value ...]

One training, in blocks of steps with logging on and off in turn (on, off, off, on, …), so that both see the same
machine; the ratio of each pair of neighbouring blocks is one measurement. On means console, TensorBoard, wandb (offline
by default) and system metrics. Also prints how long `RunTracker.log` held up the training loop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise

from machine import describe
from media import interval_of_median

from atlas.config import load_config
from atlas.prepare import prepare
from atlas.tracking import RunTracker
from atlas.train import build_trainer, make_accelerator

ROW = 12  # scalars in each call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50, help="per block")
    parser.add_argument("--every", type=int, default=1, help="log in every Nth step (the default config: 50)")
    parser.add_argument("--mode", default="offline", choices=["offline", "online", "disabled"], help="of wandb")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    blocks, calls, dropped = run(arguments)

    ratios = []
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        on, off = (first, second) if first[0] else (second, first)
        ratios.append(on[1] / off[1])
    low, high = interval_of_median(ratios)
    print(f"\n{describe()}\n")
    print(
        f"Training with a row every {arguments.every} steps over training without: {statistics.median(ratios):.4f} "
        f"(median of {len(ratios)} pairs of {arguments.steps} steps; 95% interval {low:.4f} to {high:.4f})"
    )
    calls.sort()
    shown = ", ".join(f"{name} {1e6 * calls[int(q * (len(calls) - 1))]:.1f}" for name, q in QUANTILES.items())
    print(f"RunTracker.log of {ROW} scalars in the loop, {len(calls)} calls, microseconds: {shown}")
    print(f"Rows dropped: {dropped}")


QUANTILES = {"median": 0.5, "p99": 0.99, "longest": 1.0}


def run(arguments: argparse.Namespace) -> tuple[list[tuple[bool, float]], list[float], int]:
    """[(logging is on, seconds)] for the blocks after the first two, the seconds of each call, and the rows dropped."""
    count = 2 * arguments.pairs + 2  # the first two warm up
    overrides = [
        f"data.path={arguments.data}",
        f"output_dir={tempfile.mkdtemp(prefix='atlas-tracking-')}",
        "run_name=tracking",
        f"training.max_steps={count * arguments.steps}",
        f"training.val_interval={count * arguments.steps}",
        f"checkpoint.save_interval={count * arguments.steps}",
        "evaluation.episodes=0",
        "wandb.enabled=true",
        f"wandb.mode={arguments.mode}",
        *[f"logging.media.{kind}.interval=0" for kind in ("gradient_logger", "plot_logger", "action_logger")],
        "logging.media.vis_dataset.interval=0",
        *arguments.overrides,
    ]
    prepared = prepare(load_config(None, overrides))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    config, real = prepared.config, trainer.tracker
    silent = RunTracker(trainer.run_dir, "silent", config.wandb, config.logging, is_main=False)
    marks: list[float] = []
    calls: list[float] = []
    optimize = trainer._optimize

    def step_of_a_block(batches, step, stop):  # type: ignore[no-untyped-def]
        block, within = divmod(step, arguments.steps)
        if within == 0:
            marks.append(time.perf_counter())
        trainer.tracker = real if is_on(block) else silent
        real.step = step
        if is_on(block) and step % arguments.every == 0:
            row = {f"custom/metric_{i}": float(step + i) for i in range(ROW)}
            start = time.perf_counter()
            real.log(row)
            calls.append(time.perf_counter() - start)
        return optimize(batches, step, stop)

    trainer._optimize = step_of_a_block  # type: ignore[method-assign]
    validate = trainer.validate

    def validate_after_the_last_block():  # type: ignore[no-untyped-def]
        marks.append(time.perf_counter())
        return validate()

    trainer.validate = validate_after_the_last_block  # type: ignore[method-assign]
    trainer.train()
    trainer.tracker = real
    dropped = sum(sink.dropped for sink in real._sinks)
    real.finish()
    seconds = [(is_on(i), end - start) for i, (start, end) in enumerate(pairwise(marks))]
    return seconds[2:], calls[arguments.steps // arguments.every :], dropped


def is_on(block: int) -> bool:
    return block % 4 in (0, 3)


if __name__ == "__main__":
    main()
