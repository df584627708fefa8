"""What figures, distributions and maps (`logging.media`) cost: short trainings with all of them and without any.

    python benchmarks/media.py [--data data/cubes] [--steps 1000] [--rounds 10] [key=value ...]

The two take turns in one process; each round gives a ratio of their times, from the first step to the closed tracker.
In 1000 steps each kind is logged once, as often as in the default job; in fewer steps it is also logged once, and the
ratio is larger: the last line says what it amounts to in the default job. Evaluations are not included, as the cost of
their media is measured with them. `wandb.enabled=true wandb.mode=offline` adds the second sink.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence

from machine import describe

from atlas.config import load_config
from atlas.prepare import prepare
from atlas.train import build_trainer, make_accelerator
from atlas.training.media.loggers import due_at_validation

KINDS = ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
OFF = [f"logging.media.{kind}.interval=0" for kind in KINDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    ratios, extra, inside, plain = [], [], [], []
    first_use: dict[str, float] = {}
    for number in range(arguments.rounds + 1):
        runs = [("on", []), ("off", OFF)]
        if number % 2:  # the second one finds warm caches, so they also take turns at that
            runs.reverse()
        seconds = {}
        for name, media in runs:
            seconds[name], parts = train(arguments, f"{name}{number}", media)
            if name == "on":
                inside.append(parts)
        if number == 0:  # warms up; and matplotlib is imported
            first_use = inside.pop()
            continue
        ratios.append(seconds["on"] / seconds["off"])
        extra.append(seconds["on"] - seconds["off"])
        plain.append(seconds["off"])
        shown = ", ".join(f"{kind} {value:.2f}" for kind, value in inside[-1].items())
        print(f"on {seconds['on']:.1f} s, off {seconds['off']:.1f} s, ratio {ratios[-1]:.4f}; {shown} s", flush=True)

    print(f"\n{describe()}\n")
    low, high = interval_of_median(ratios)
    print(
        f"All media over none: {statistics.median(ratios):.4f} (median of {len(ratios)} rounds of {arguments.steps} "
        f"steps; 95% interval {low:.4f} to {high:.4f})"
    )
    report_inside(arguments.steps, inside, first_use, extra, plain)


def train(arguments: argparse.Namespace, name: str, media: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Seconds of a whole training, and of each kind of media in it, on the training thread."""
    overrides = [
        f"data.path={arguments.data}",
        f"output_dir={tempfile.mkdtemp(prefix='atlas-media-')}",
        f"run_name={name}",
        f"training.max_steps={arguments.steps}",
        "evaluation.episodes=0",
        *media,
        *arguments.overrides,
    ]
    prepared = prepare(load_config(None, overrides))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    assert trainer.media is not None
    start = time.perf_counter()
    trainer.train()
    trainer.tracker.finish()
    return time.perf_counter() - start, dict(trainer.media.seconds)


def report_inside(
    steps: int,
    inside: Sequence[dict[str, float]],
    first_use: dict[str, float],
    extra: Sequence[float],
    plain: Sequence[float],
) -> None:
    """A table of what each kind takes, and the sum over a default job."""
    config = load_config()
    assert config.training.max_steps is not None
    length, validation = config.training.max_steps, config.training.val_interval
    total, run_total = 0.0, 0.0
    print("\n| kind | seconds each time | times in the default job | seconds in it |\n|---|---|---|---|")
    for kind in KINDS:
        wanted = getattr(config.logging.media, kind).interval
        count = times(kind, wanted, length, validation)
        once = statistics.median(parts[kind] for parts in inside) / times(kind, min(wanted, steps), steps, validation)
        total += count * once
        run_total += statistics.median(parts[kind] for parts in inside)
        print(f"| {kind} | {once:.2f} | {count} | {count * once:.1f} |")
    imports = sum(first_use.values()) - run_total
    training = length * statistics.median(plain) / steps
    print(f"| first use (imports, fonts) | {imports:.2f} | 1 | {imports:.1f} |")
    print(
        f"\nOn the training thread in the default job: {total + imports:.1f} s of {training:.0f} s, "
        f"{100 * (total + imports) / training:.2f}%"
    )
    scale = total / run_total if run_total else 0.0
    low, high = (1 + (scale * value + imports) / training for value in interval_of_median(extra))
    middle = 1 + (scale * statistics.median(extra) + imports) / training
    print(f"Whole cost in the default job, by the difference of the runs: {middle:.4f} ({low:.4f} to {high:.4f})")


def times(kind: str, interval: int, length: int, val_interval: int) -> int:
    """How often a kind is logged in a run."""
    if kind == "gradient_logger":
        return length // interval
    validations = sorted({*range(val_interval, length + 1, val_interval), length})
    return sum(due_at_validation(interval, step, min(val_interval, length)) for step in validations)


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval of the median from the order of the values, without assumptions on their distribution; all of them
    if there are too few for that."""
    ordered, n = sorted(values), len(values)
    outside, rank = 0.5**n, 0
    while rank + 1 < n // 2 and outside + math.comb(n, rank + 1) * 0.5**n <= 0.025:
        rank += 1
        outside += math.comb(n, rank) * 0.5**n
    return ordered[rank], ordered[n - 1 - rank]


if __name__ == "__main__":
    main()
