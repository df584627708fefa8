"""Whether anything that happens to wandb can hold up a training: random faults, injected into short trainings.

    python benchmarks/tracking_faults.py [--runs 100] [--through-train-sh 20] [--seed 0]

The seed draws which fault and when. Most trainings fork from a process that has imported everything except wandb; the
others go through `./train.sh --wandb`, half of them with two ranks. Prints a table by kind of fault for
docs/benchmarks.md and, last, the number of trainings that broke a bound; the exit code is 1 if there is one. A training
that had ended before its fault is tried again, longer; one that escaped its fault each time proves nothing, and is
counted separately. Linux only: wandb's process is found through /proc.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from machine import describe
from trainings import EXIT_TIMEOUT, ROOT, Preloaded, Training, record_data, several_preloaded, side_by_side

sys.path += [str(ROOT), str(ROOT / "tests" / "tracking")]  # atlas; the faulty servers

from faulty_servers import BlackHole, Closed, FullBacklog, MortalWandb, Refusing
from marked_processes import core_of, kill, left_over

from atlas.runs import read_scalars
from atlas.system.process_control.cores import available_cores

KEY = "0123456789abcdef0123456789abcdefdeadbeef"  # has a real key's form, but is nobody's
START_BOUND = 30.0  # from the start of the process to the first step
GAP_BOUND = 2.0  # between two steps
EXIT_BOUND = EXIT_TIMEOUT + 5.0  # from the last logged value; the end of several ranks takes some time itself
PATIENCE = 120.0  # then a training is killed; all bounds are longer on a machine that has other work
TRAINING_SECONDS = 6.0  # approximately; wandb takes two of them to start
POLL = 0.02
TRIES = 3  # to meet a training with its fault before it has ended


# ---- faults ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One injection. `moment`: the share of the steps after which it happens, if it happens in mid-run."""

    number: int
    kind: str
    variant: str
    moment: float
    ranks: int  # 0: forked; otherwise this many, through ./train.sh


# The kinds, and their variants: which server there is, or what it does.
KINDS = {
    "no key": ("good", "black hole"),
    "refused": ("closed",),
    "black hole": ("black hole", "full backlog"),
    "401": ("401",),
    "503": ("503",),
    "dead proxy": ("closed", "black hole"),
    "wandb-core killed": ("good", "offline", "black hole"),
    "wandb-core stopped": ("good", "offline", "black hole"),
    "server lost in mid-run": ("die", "freeze"),
    "server lost before the end": ("die", "freeze"),
    "SIGTERM": ("good", "offline", "black hole"),
    "folder not writable": ("offline", "good"),
    "disk full": ("offline", "good"),
}
NEEDS_CORE = ("wandb-core killed", "wandb-core stopped", "disk full")
IN_MID_RUN = (*NEEDS_CORE, "server lost in mid-run", "server lost before the end", "SIGTERM")


def draw_faults(runs: int, through_script: int, seed: int) -> list[Fault]:
    """Every kind about as often as the others, in a random order."""
    chance = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < runs:
        kinds += chance.sample(list(KINDS), len(KINDS))
    scripted = chance.sample(range(runs), through_script)
    ranks = {number: 1 + place % 2 for place, number in enumerate(scripted)}
    return [
        Fault(number, kind, chance.choice(KINDS[kind]), chance.uniform(0.0, 0.8), ranks.get(number, 0))
        for number, kind in enumerate(kinds[:runs])
    ]


class Servers:
    """The servers that all trainings share; a good server belongs to one training."""

    def __init__(self, stack: ExitStack) -> None:
        self.closed = stack.enter_context(Closed())
        self.hole = stack.enter_context(BlackHole())
        self.full = stack.enter_context(FullBacklog())
        self.refusing = {status: stack.enter_context(Refusing(int(status))) for status in ("401", "503")}

    def variables(self, fault: Fault, good: MortalWandb) -> dict[str, str]:
        """The environment that a fault needs."""
        key = {} if fault.kind == "no key" else {"WANDB_API_KEY": KEY}
        places = {"closed": self.closed.url, "black hole": self.hole.url, "full backlog": self.full.url}
        places |= {status: server.url for status, server in self.refusing.items()}
        if fault.kind == "dead proxy":
            return key | {"WANDB_BASE_URL": "https://atlas.invalid", "https_proxy": places[fault.variant]}
        if fault.variant == "offline":
            return key | {"WANDB_MODE": "offline"}
        return key | {"WANDB_BASE_URL": places.get(fault.variant, good.url)}


def inject(fault: Fault, training: Training, good: MortalWandb) -> bool:
    """Let the fault happen at its moment; False if the training had ended before."""
    moment = training.steps if fault.kind == "server lost before the end" else fault.moment * training.steps
    needs_core = fault.kind in NEEDS_CORE
    while training.done_steps() < max(1, moment) or (needs_core and core_of(training.mark) is None):
        if training.ended or time.time() > training.begin + crowding() * PATIENCE:
            return False
        time.sleep(POLL)
    core = core_of(training.mark) or 0
    match fault.kind:
        case "server lost in mid-run" | "server lost before the end":
            good.die() if fault.variant == "die" else good.freeze()
        case "SIGTERM":
            kill(training.process, signal.SIGTERM)
        case "wandb-core killed" if core:
            kill(core, signal.SIGKILL)
        case "wandb-core stopped" if core:
            kill(core, signal.SIGSTOP)
        case "disk full" if core:
            resource.prlimit(core, resource.RLIMIT_FSIZE, (1, 1))
    return not training.ended


# ---- judging ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of one training; `broken` names the bounds it broke."""

    fault: Fault
    struck: bool
    start: float
    training: float
    gap: float
    exit: float
    broken: tuple[str, ...]


def judge(fault: Fault, training: Training, struck: bool, left: dict[int, str]) -> Outcome:
    """Times are when TensorBoard was given the values; it must have every step."""
    scalars = read_times(training.run_dir)
    steps, times = zip(*scalars.get("train/loss", [(0, training.begin)]), strict=True)
    last = max((time for tag in scalars.values() for _, time in tag), default=training.begin)
    end = training.end if training.ended else time.time()
    own = [seconds for _, seconds in read_scalars(training.run_dir).get("perf/step_seconds", [])]
    start = times[0] - training.begin if steps[0] else float("inf")
    gap = max([*(b - a for a, b in pairwise(times)), *own[1:]], default=0.0)
    exit = end - last
    expected = 143 if fault.kind == "SIGTERM" and struck else 0
    lost = steps != tuple(range(1, len(steps) + 1)) or (expected == 0 and len(steps) != training.steps)
    crowd = crowding()
    checks = {
        f"the first step came after {start:.1f} s": start > crowd * START_BOUND,
        f"{gap:.1f} s between two steps": gap > crowd * GAP_BOUND,
        f"it ended {exit:.1f} s after the last value": exit > crowd * EXIT_BOUND,
        "it had to be killed": not training.ended,
        f"exit code {training.code}": training.ended and training.code != expected,
        f"processes were left: {sorted(left.values())}": bool(left),
        f"TensorBoard has {len(steps)} steps, to {steps[-1]}": lost,
    }
    broken = tuple(what for what, true in checks.items() if true)
    return Outcome(fault, struck, start, times[-1] - times[0], gap, exit, broken)


def crowding() -> float:
    """How many times longer everything takes beside other work; these trainings alone may fill the cores twice."""
    return max(1.0, os.getloadavg()[0] / available_cores() - 1)


def read_times(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps of every scalar and when they were logged, in seconds since the epoch."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not (run_dir / "tensorboard").is_dir():
        return {}
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={SCALARS: 0})
    events.Reload()
    return {tag: [(event.step, event.wall_time) for event in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}


def run_one(fault: Fault, folder: Path, data: Path, steps: int, servers: Servers, preloaded: Preloaded) -> Outcome:
    """One training with its fault; none of its processes is left. Its folder stays if it broke a bound."""
    training = Training(folder / f"run{fault.number:03d}", steps, fault.ranks)
    struck = True
    with MortalWandb() as good:
        try:
            if fault.kind == "folder not writable":
                training.run_dir.mkdir(parents=True)
                (training.run_dir / "wandb").symlink_to("/proc")  # where root cannot make files either
            training.start(data, servers.variables(fault, good), preloaded)
            if fault.kind in IN_MID_RUN:
                struck = inject(fault, training, good)
            training.wait(training.begin + crowding() * PATIENCE - time.time())
            left = left_over(training.mark) if training.ended else {}
            outcome = judge(fault, training, struck, left)
        finally:
            training.kill()
            training.wait(PATIENCE)
    if not outcome.broken:
        shutil.rmtree(training.folder)
    return outcome


# ---- the whole -------------------------------------------------------------------------------------------


def steps_of_a_training(folder: Path, data: Path, servers: Servers, preloaded: Preloaded) -> int:
    """How many steps take about TRAINING_SECONDS on this machine, from a training without a fault."""
    steps = 60
    outcome = run_one(Fault(999, "none", "good", 0.0, 0), folder, data, steps, servers, preloaded)
    if outcome.broken:
        sys.exit(f"A training without a fault is not well: {'; '.join(outcome.broken)}. See {folder / 'run999'}.")
    print(f"without a fault: first step {outcome.start:.1f} s, exit {outcome.exit:.1f} s", file=sys.stderr)
    return max(50, round(steps * TRAINING_SECONDS / outcome.training))


def run_all(faults: Sequence[Fault], data: Path, folder: Path, parallel: int) -> list[Outcome]:
    """Every fault in a separate training, `parallel` at a time."""
    with ExitStack() as stack:
        servers = Servers(stack)
        preloaded = stack.enter_context(several_preloaded(parallel))
        steps = steps_of_a_training(folder, data, servers, preloaded[0])

        def run(fault: Fault, mine: Preloaded) -> Outcome:
            for longer in range(1, TRIES + 1):
                # Two ranks on the same cores take about twice as long.
                outcome = run_one(fault, folder, data, longer * steps // max(1, fault.ranks), servers, mine)
                show(outcome, folder)
                if outcome.struck or outcome.broken:
                    break
            return outcome

        return side_by_side(run, faults, preloaded)


def show(outcome: Outcome, folder: Path) -> None:
    """One line on stderr, while the others run."""
    fault = outcome.fault
    how = f"./train.sh, {fault.ranks} rank{'s' if fault.ranks > 1 else ''}" if fault.ranks else "forked"
    seconds = f"first step {outcome.start:.1f} s, gap {outcome.gap:.2f} s, exit {outcome.exit:.1f} s"
    missed = "" if outcome.struck else ", ended before its fault"
    line = f"{fault.number:3d} {fault.kind} ({fault.variant}, {how}): {seconds}{missed}"
    if outcome.broken:
        line += f"\n    BROKEN: {'; '.join(outcome.broken)}; see {folder / f'run{fault.number:03d}'}"
    print(line, file=sys.stderr, flush=True)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """n counts trainings that met their fault; any that broke a bound without it is among the broken all the same."""
    print("| fault | n | first step, at most | between steps, at most | exit, at most | bounds broken | not met |")
    print("|---|---|---|---|---|---|---|")
    for kind in [*KINDS, "all"]:
        of_kind = [outcome for outcome in outcomes if kind in (outcome.fault.kind, "all")]
        if of_kind:
            met = [outcome for outcome in of_kind if outcome.struck]
            worst = [max((getattr(o, name) for o in met), default=math.nan) for name in ("start", "gap", "exit")]
            seconds = f"{worst[0]:.1f} s | {worst[1]:.2f} s | {worst[2]:.1f} s"
            broken = sum(bool(outcome.broken) for outcome in of_kind)
            print(f"| {kind} | {len(met)} | {seconds} | {broken} | {len(of_kind) - len(met)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--through-train-sh", type=int, default=20, metavar="N", help="how many of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="recorded demonstrations of 32 pixels (default: made)")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()
    faults = draw_faults(arguments.runs, min(arguments.runs, arguments.through_train_sh), arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="atlas-faults-"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # exit properly: nothing is left running
    begin = time.monotonic()
    data = arguments.data.resolve() if arguments.data else record_data(folder)
    try:
        outcomes = run_all(faults, data, folder, arguments.parallel)
    finally:
        if not any(folder.glob("run*")):  # folders of trainings that broke a bound stay
            shutil.rmtree(folder)
    broken = sum(bool(outcome.broken) for outcome in outcomes)
    print(f"{describe()}\n")
    print_table(outcomes)
    scripted = sum(outcome.fault.ranks > 0 for outcome in outcomes)
    print(
        f"\nseed {arguments.seed}; {scripted} through ./train.sh; {arguments.parallel} at a time, "
        f"{(time.monotonic() - begin) / 60:.1f} minutes; bounds: first step {START_BOUND:g} s, between steps "
        f"{GAP_BOUND:g} s, exit {EXIT_BOUND:g} s with logging.exit_timeout_seconds={EXIT_TIMEOUT:g}"
    )
    print(f"hangs: {broken} of {sum(outcome.struck or bool(outcome.broken) for outcome in outcomes)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
