"""How much of its speed training keeps beside another busy process, depending on how a computation's threads wait.

    python benchmarks/shared_machine.py [--data data/cubes] [--seconds 5] [--rounds 2]

For each setting of the environment a process trains the default policy at batch 64: first alone, then beside one
process that computes without end. Prints the milliseconds per step of both as a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from machine import describe

from atlas.system.process_control.threads import yield_cores

THREADS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def settings() -> dict[str, dict[str, str]]:
    """{name: the variables it sets}."""
    yield_cores()
    ours = os.environ.get("GOMP_SPINCOUNT", "")
    return {
        "as OpenMP has it": {},
        f"as Atlas sets it (GOMP_SPINCOUNT={ours})": {"GOMP_SPINCOUNT": ours},
        "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
        "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
        "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in the process that is measured
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.data, arguments.seconds)))
        return
    for name in THREADS:
        os.environ.pop(name, None)
    rows: dict[str, list[tuple[float, float]]] = {}
    for number in range(arguments.rounds):
        for name, variables in settings().items():
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            rows.setdefault(name, []).append(measured(arguments, variables))
    print(f"{describe()}\n")
    print("| threads | alone, ms a step | beside a busy process | of the speed alone |\n|---|---|---|---|")
    for name, times in rows.items():
        alone, beside = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"| {name} | {alone:.0f} | {beside:.0f} | {alone / beside:.0%} |")


def measured(arguments: argparse.Namespace, variables: dict[str, str]) -> tuple[float, float]:
    """Milliseconds per step, alone and beside a busy process, in a process with these variables."""
    plain = {name: value for name, value in os.environ.items() if name not in THREADS}
    command = [sys.executable, __file__, "--measure", "--data", arguments.data, "--seconds", str(arguments.seconds)]
    ended = subprocess.run(command, env={**plain, **variables}, check=True, stdout=subprocess.PIPE, text=True)
    alone, beside = json.loads(ended.stdout.splitlines()[-1])
    return alone, beside


def measure(data: str, seconds: float) -> tuple[float, float]:
    """Milliseconds per step, alone and beside a busy process."""
    step = training_step(data)
    milliseconds(step, seconds / 3)  # warms up
    alone = milliseconds(step, seconds)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.3)
        beside = milliseconds(step, seconds)
        busy.kill()
    return alone, beside


def training_step(data: str) -> Callable[[], None]:
    """An optimizer step of the default job, with its data, augmentation and averaged weights."""
    import torch

    from atlas.config import load_config
    from atlas.data.sampling.loader import make_loader
    from atlas.train import build_trainer, make_accelerator, prepare
    from atlas.training.average import WeightAverage

    output = tempfile.mkdtemp(prefix="atlas-shared-machine-")
    overrides = [f"data.path={data}", f"output_dir={output}", "run_name=steps", "evaluation.episodes=0"]
    prepared = prepare(load_config(None, overrides))
    trainer = build_trainer(prepared, make_accelerator(prepared.config))
    config = prepared.config
    policy, optimizer = trainer.policy.train(), trainer.optimizer
    average = WeightAverage(policy, config.training.ema_decay)
    batches = iter(
        make_loader(trainer.train_data, trainer.schedule.order.batches(0, 0, config.training.max_steps or 4000), 0)
    )

    def step() -> None:
        batch = next(batches)
        batch.images = trainer.augment(batch.unit_images(), batch)
        policy(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(policy, 0)

    return step


def milliseconds(step: Callable[[], None], seconds: float) -> float:
    """The mean time of the steps within `seconds`."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return 1000 * (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
