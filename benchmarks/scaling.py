"""What training together costs: processes that exchange gradients, compared with the same ones each on its own.

    python benchmarks/scaling.py [--data data/cubes] [--processes 2] [--rounds 20] [--steps 20] [key=value ...]

Every process is pinned to its own cores (on GPUs: has its own GPU). In each round all of them train `steps` steps
alone, at the same time, and then as many together, so that both share the machine's memory and its noise; each round's
ratio is the rate together over the sum of the rates alone. On GPUs `--processes 1,2,4,8` gives the scaling table. The
last lines project to more GPUs from what was measured here: the step alone, the bytes that an exchange moves, and the
speed of the link. With DDP the exchange overlaps the backward pass, so the projection, in which it waits for all of it,
is the worst case. Prints what docs/benchmarks.md contains.
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
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from machine import describe
from media import interval_of_median

from atlas.config import load_config
from atlas.prepare import prepare
from atlas.train import build_trainer, make_accelerator
from atlas.training import Trainer
from atlas.training.guards.signals import StopRequest
from atlas.training.prepared_run import PreparedRun

PROJECTED = (8, 64)  # GPUs
_LINK_ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cubes", help="recorded demonstrations (the default: made when absent)")
    parser.add_argument("--processes", default="2", help="their numbers, such as 1,2,4,8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
        return
    counts = [int(number) for number in arguments.processes.split(",")]
    found = [run(arguments, count) for count in counts]
    print(f"\n{describe()}\n")
    print("| processes | alone, samples/s (sum) | together, samples/s | together over alone, 95% interval |")
    print("|---|---|---|---|")
    for count, each in zip(counts, found, strict=True):
        low, high = interval_of_median(each["ratios"])
        ratio = statistics.median(each["ratios"])
        print(f"| {count} | {each['alone']:.0f} | {each['together']:.0f} | {ratio:.3f} ({low:.3f} to {high:.3f}) |")
    last = found[-1]
    print(f"\nAn exchange is of {last['bytes'] / 1e6:.1f} MB; the link carries {last['link'] / 1e9:.2f} GB/s.")
    for count in PROJECTED:
        print(f"Projection for {count}: at least {100 * projected(count, last):.0f}% of {count} alone.")


def projected(count: int, found: dict[str, float]) -> float:
    """The share of the summed rate that `count` processes keep if the exchange waits for the whole backward pass.

    A ring moves 2 (n - 1) / n of the bytes through each process's link (Patarasuk and Yuan, 2009).
    """
    exchange = 2 * (count - 1) / count * found["bytes"] / found["link"]
    return found["step"] / (found["step"] + exchange)


def run(arguments: argparse.Namespace, count: int) -> dict:  # type: ignore[type-arg]
    """Start `count` processes of this script, and read what they found."""
    overrides = [f"data.path={arguments.data}", "evaluation.episodes=0", "checkpoint.save_interval=1000000"]
    steps = 2 * arguments.steps * (arguments.rounds + 1)
    overrides += [f"training.max_steps={steps}", f"training.log_interval={steps}", f"training.val_interval={steps}"]
    with tempfile.TemporaryDirectory(prefix="atlas-scaling-") as folder:
        prepare(load_config(None, [*overrides, f"output_dir={folder}", "run_name=run", *arguments.overrides]))
        threads = max(1, (os.cpu_count() or 1) // count)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(count),
            __file__,
        ]
        command += [f"--data={folder}/run/config.yaml", f"--rounds={arguments.rounds}", f"--steps={arguments.steps}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "ATLAS_SCALING": str(Path(folder) / "found.json")}
        subprocess.run(command, check=True, env=environment)
        return json.loads((Path(folder) / "found.json").read_text())  # type: ignore[no-any-return]


# ---- in each process -------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    """Train alone and together in turn; the first process writes the results."""
    config = load_config(arguments.data)
    accelerator = make_accelerator(config)
    rank, world = accelerator.process_index, accelerator.num_processes
    if accelerator.device.type == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // world)
        os.sched_setaffinity(0, cores[rank * share : (rank + 1) * share] or cores)
    trainer = build_trainer(PreparedRun(config), accelerator)
    batches = trainer._train_batches()
    trainer.model.train()
    samples = arguments.steps * config.data.batch_samples
    stop, step, alone, together = StopRequest(), 0, [], []
    for number in range(arguments.rounds + 1):
        seconds = []
        for on_its_own in (True, False) if number % 2 else (False, True):
            if world > 1:
                dist.barrier()
            with by_itself(trainer) if on_its_own and world > 1 else nothing():
                start = time.perf_counter()
                for _ in range(arguments.steps):
                    trainer._optimize(batches, step, stop)
                    step += 1
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
            seconds.append((on_its_own, time.perf_counter() - start))
        rates = torch.tensor(
            [samples / took for _, took in sorted(seconds)], dtype=torch.float64, device=accelerator.device
        )
        every = accelerator.gather(rates[None]).cpu()  # [processes, (together, alone)]
        if number:  # the first round warms up
            together.append(float(every[:, 0].min()) * world)
            alone.append(float(every[:, 1].sum()))
    link, size = link_speed(trainer)
    trainer.tracker.finish()
    if rank == 0:
        found = {
            "alone": statistics.median(alone),
            "together": statistics.median(together),
            "ratios": [t / a for t, a in zip(together, alone, strict=True)],
            "step": world * samples / arguments.steps / statistics.median(alone),
            "bytes": size,
            "link": link,
        }
        Path(os.environ["ATLAS_SCALING"]).write_text(json.dumps(found))
    accelerator.wait_for_everyone()  # none leaves the group while another still uses it, as in `atlas train`
    accelerator.end_training()
    # A thread of gloo may still hold a tensor of the last exchange, and aborts the process if it lets go of it while
    # Python shuts down (github.com/pytorch/pytorch/pull/179291).
    os._exit(0)


@contextmanager
def by_itself(trainer: Trainer):  # type: ignore[no-untyped-def]
    """Within it, the trainer's steps exchange nothing with other processes."""
    model, several = trainer.model, trainer.consensus._several
    trainer.model, trainer.consensus._several = trainer.policy, False
    with trainer.strategy.accumulating():
        yield
    trainer.model, trainer.consensus._several = model, several


@contextmanager
def nothing():  # type: ignore[no-untyped-def]
    yield


def link_speed(trainer: Trainer) -> tuple[float, int]:
    """Bytes per second through each process's link while this policy's gradients are summed, and their bytes."""
    count = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    world, device = trainer.accelerator.num_processes, trainer.accelerator.device
    if world == 1:
        return float("inf"), 4 * count
    gradients = torch.zeros(count, device=device)
    seconds = []
    for _ in range(_LINK_ROUNDS):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * (world - 1) / world * 4 * count / statistics.median(seconds), 4 * count


if __name__ == "__main__":
    main()
