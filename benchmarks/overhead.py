"""What the Trainer costs over a bare PyTorch loop with the same model, data and arithmetic.

    python benchmarks/overhead.py [--data data/cubes] [--steps 40] [--rounds 10] [key=value ...]

The two take turns in one process; each round gives a ratio of their times for all steps except the first. Both read the
same batches through the same loader, augment them, clip gradients and average the weights; the Trainer also meters,
logs to TensorBoard and the console, watches for signals, hangs and non-finite numbers, and saves in the background,
three times in a round: what that holds up is part of its time. Prints the median ratio for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import describe

from atlas.config import load_config
from atlas.data.sampling.loader import make_loader
from atlas.train import build_trainer, make_accelerator, prepare
from atlas.training import Trainer
from atlas.training.average import WeightAverage
from atlas.training.guards.watchdog import Watchdog
from atlas.training.optimizer import learning_rate, make_optimizer
from atlas.training.prepared_run import PreparedRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    ratios, bare_times = [], []
    for number in range(arguments.rounds + 1):
        prepared = prepare_run(arguments, f"round{number}")
        with Watchdog(prepared.heartbeat, 600, rank=0, run_dir=Path(tempfile.mkdtemp(prefix="atlas-overhead-"))):
            trainer = build_trainer(prepared, make_accelerator(prepared.config))
            if number % 2:  # the second one finds warm caches, so they also take turns at that
                ours = trainer_step_seconds(trainer)
                bare = bare_step_seconds(trainer, arguments.steps)
            else:
                bare = bare_step_seconds(trainer, arguments.steps)
                ours = trainer_step_seconds(trainer)
        trainer.tracker.finish()
        if number:  # the first round warms up
            ratios.append(ours / bare)
            bare_times.append(bare)
            print(
                f"bare {1000 * bare:.1f} ms, Trainer {1000 * ours:.1f} ms a step, ratio {ours / bare:.3f}", flush=True
            )
    print(f"\n{describe()}\n")
    print(
        f"Trainer over a bare loop: {statistics.median(ratios):.3f} (median of {len(ratios)} rounds of "
        f"{arguments.steps} steps, {min(ratios):.3f} to {max(ratios):.3f}); bare step "
        f"{1000 * statistics.median(bare_times):.0f} ms"
    )


def prepare_run(arguments: argparse.Namespace, name: str) -> PreparedRun:
    overrides = [
        f"data.path={arguments.data}",
        f"output_dir={tempfile.mkdtemp(prefix='atlas-overhead-')}",
        f"run_name={name}",
        f"training.max_steps={arguments.steps}",
        f"checkpoint.save_interval={max(1, arguments.steps // 4)}",
        "evaluation.episodes=0",
        *arguments.overrides,
    ]
    return prepare(load_config(None, overrides))


def trainer_step_seconds(trainer: Trainer) -> float:
    """The mean of all steps except the first, with everything between them; the final validation and checkpoint come
    after the last."""
    marks: list[float] = []
    optimize = trainer._optimize

    def timed(*given):  # type: ignore[no-untyped-def]
        marks.append(time.perf_counter())
        return optimize(*given)

    trainer._optimize = timed  # type: ignore[method-assign]
    trainer.train()
    return mean_step(marks)


def bare_step_seconds(trainer: Trainer, steps: int) -> float:
    """The same work in the plainest loop."""
    config, policy = trainer.config, trainer.policy
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = make_optimizer(policy, config.training)
    loader = iter(
        make_loader(trainer.train_data, trainer.schedule.order.batches(0, 0, steps), config.data.num_workers or 0)
    )
    average = WeightAverage(policy, config.training.ema_decay) if config.training.ema_decay else None
    policy.train()
    marks = []
    for step in range(steps):
        marks.append(time.perf_counter())
        batch = next(loader)
        batch.images = trainer.augment(batch.images.float() / 255, batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, steps // 10, config.training)
        loss = policy(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(policy, step)
    policy.load_state_dict(start)
    return mean_step(marks)


def mean_step(marks: list[float]) -> float:
    """Seconds per step, from when each began; the first starts workers and fills caches."""
    return (marks[-1] - marks[1]) / (len(marks) - 2)


if __name__ == "__main__":
    main()
