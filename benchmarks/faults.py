"""Whether a training survives being killed at any moment: random strikes at short trainings, which are then resumed.

    python benchmarks/faults.py [--runs 100] [--through-train-sh 20] [--seed 0]

The seed draws who is struck, with which signal and when: while it starts, at some step, or in the middle of a save.
Every training saves each third step, in the background. After a strike no process of the training may be left, and
every checkpoint has to be complete; then it resumes with `--resume auto` (some are struck once more), and its result is
compared with that of an undisturbed training: weights, averaged weights, optimizer and random numbers bit for bit, and
the loss of every step. Most trainings fork from a process that has imported everything; the others go through
`./train.sh`, half of them with two ranks.

Prints a table by kind of strike for docs/benchmarks.md and, last, the number of trainings in which something was
broken; the exit code is 1 if there is one, and its folder stays. Linux only: processes are found through /proc.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import cycle, zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from machine import describe
from trainings import ROOT, Preloaded, Training, record_data, several_preloaded, side_by_side

sys.path += [str(ROOT), str(ROOT / "tests" / "tracking")]  # atlas; the marked processes

from marked_processes import kill

from atlas.checkpoints import saved_steps, verify
from atlas.checkpoints.contents import load_optimizer_state, load_rank_states
from atlas.errors import InputError
from atlas.runs import read_scalars
from atlas.runs.run_directory import RESULTS

STEPS, SAVE_INTERVAL = 40, 3
HANG_SECONDS = 40.0  # distributed.timeout_minutes if one rank is to be stopped; the start may take half of it
MEDIA = ("gradient_logger", "plot_logger", "action_logger", "vis_dataset")
OPTIONS = [
    f"checkpoint.save_interval={SAVE_INTERVAL}",
    "training.val_interval=5",
    "model.fusion.dropout=0.1",  # so that random numbers matter
    *(f"logging.media.{kind}.interval=0" for kind in MEDIA),
]
MEETING_SECONDS = 60.0  # ranks wait this much longer for each other before they have met
DOWN_BOUND = 30.0  # from the strike until no process is left
STOPPED_SECONDS = 3.0  # then a training whose processes are all stopped, and cannot end themselves, is killed
PATIENCE = 300.0  # for a training to reach its strike, or its end
COMPARED = ("policy/model.safetensors", "trainer/weights.safetensors")
CURVES = ("train/loss", "val/loss")
AGAIN, WHILE_STARTING, IN_A_SAVE = 0.3, 0.15, 0.4  # shares of the trainings, and of the strikes
POLL = 0.002

running: list[Training] = []  # the trainings that were started
over = threading.Event()  # no more are to be started


# ---- strikes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Which signal, and who gets it: the only process, one of two ranks, both ranks, or their launcher."""

    signal: signal.Signals
    target: str

    def __str__(self) -> str:
        return f"{self.signal.name} to {self.target}"

    @property
    def stops_all(self) -> bool:
        """Whether no process is left that could end it."""
        return self.signal == signal.SIGSTOP and self.target != "one rank"

    @property
    def hangs(self) -> bool:
        """Whether a rank waits in vain for another."""
        return self.signal == signal.SIGSTOP and not self.stops_all

    def bound(self, started: bool) -> float:
        """Seconds until no process is left; started: whether the training had done a step."""
        hang = HANG_SECONDS + (0.0 if started else MEETING_SECONDS)
        return DOWN_BOUND + (hang if self.hangs else 0.0)


_KILL, _TERM, _STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP
ALONE = [Kind(number, "the process") for number in (_KILL, _TERM, _STOP)]
TOGETHER = [
    *(Kind(number, target) for number in (_KILL, _TERM) for target in ("one rank", "both ranks", "the launcher")),
    *(Kind(_STOP, target) for target in ("one rank", "both ranks")),
]


@dataclass(frozen=True)
class Moment:
    """When a strike happens.

    share: of the steps that are left then; below zero: while the training starts, -1 being its first moment. pause: the
    share of a step to wait then. saved: in the first save that follows, as soon as this share of its files exists;
    None: at once.
    """

    share: float
    pause: float
    saved: float | None


@dataclass(frozen=True)
class Fault:
    """One training, and what happens to it."""

    number: int
    kind: Kind
    rank: int  # which one, if it is one of two
    moments: tuple[Moment, ...]
    ranks: int  # 0: forked; otherwise this many, through ./train.sh

    def __str__(self) -> str:
        how = f"./train.sh, {self.ranks} rank{'s' if self.ranks > 1 else ''}" if self.ranks else "forked"
        return f"{self.number:3d} {self.kind} ({how})"


def draw_faults(runs: int, through_script: int, seed: int) -> list[Fault]:
    """Every kind about as often as the others, in a random order."""
    chance = random.Random(seed)
    scripted = chance.sample(range(runs), through_script)
    ranks = {number: 2 - place % 2 for place, number in enumerate(scripted)}
    kinds = {several: cycle(chance.sample(of, len(of))) for several, of in ((False, ALONE), (True, TOGETHER))}
    faults = []
    for number in range(runs):
        kind = next(kinds[ranks.get(number, 0) > 1])
        moments = tuple(_draw_moment(chance) for _ in range(1 + (chance.random() < AGAIN)))
        faults.append(Fault(number, kind, chance.randrange(2), moments, ranks.get(number, 0)))
    return faults


def _draw_moment(chance: random.Random) -> Moment:
    pause = chance.random()
    if chance.random() < WHILE_STARTING:
        return Moment(chance.uniform(-1, 0), pause, None)
    return Moment(chance.uniform(0, 0.95), pause, chance.random() if chance.random() < IN_A_SAVE else None)


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed training."""

    run_dir: Path
    start: float  # seconds to its first step
    step: float  # seconds
    files: int  # of a checkpoint


def strike(fault: Fault, moment: Moment, training: Training, undisturbed: Undisturbed) -> bool:
    """Send the signal at its moment; False if the training had ended before, or never reached it."""
    begun_at = newest(training.run_dir) or 0
    due = begun_at + moment.share * (STEPS - begun_at)
    if moment.share < 0:
        starting = (1 + moment.share) * undisturbed.start
        come = _wait(training, lambda: time.time() - training.begin >= starting)
    else:
        come = _wait(training, lambda: training.done_steps() >= max(1, due))
    come = come and _wait(training, lambda: len(targets(fault, training)) > 0)
    time.sleep(moment.pause * undisturbed.step)
    if come and moment.saved is not None:
        needed = moment.saved * undisturbed.files
        come = _wait(training, lambda: (count := half_written(training)) is not None and count >= needed)
    struck = targets(fault, training)
    if not come or training.ended:
        return False
    for process in struck:
        kill(process, fault.kind.signal)
    return bool(struck)


def _wait(training: Training, condition: Callable[[], bool]) -> bool:
    """Whether the condition became true while the training ran."""
    while not condition():
        if training.ended or time.time() > training.begin + PATIENCE:
            return False
        time.sleep(POLL)
    return True


def targets(fault: Fault, training: Training) -> list[int]:
    """The processes to strike; none if the ranks do not exist yet."""
    if fault.kind.target in ("the process", "the launcher"):
        return [training.process]
    ranks = {}
    try:
        for child in psutil.Process(training.process).children():
            ranks[child.environ().get("RANK")] = child.pid
    except psutil.Error:
        return []
    if not {"0", "1"} <= ranks.keys():
        return []
    wanted = ("0", "1") if fault.kind.target == "both ranks" else (str(fault.rank),)
    return [ranks[rank] for rank in wanted]


# ---- a run's folder --------------------------------------------------------------------------------------


def newest(run_dir: Path) -> int | None:
    """The step that `latest` names."""
    link = run_dir / "checkpoints" / "latest"
    return int(os.readlink(link).lstrip(".")[len("step_") :].split(".")[0]) if link.is_symlink() else None


def half_written(training: Training) -> int | None:
    """The number of files written by the save in progress; None if there is none."""
    for folder in (training.run_dir / "checkpoints").glob(".step_*.partial"):
        with suppress(FileNotFoundError):  # it has ended meanwhile
            if folder.stat().st_mtime >= training.begin:  # otherwise it is from before an earlier strike
                return sum(len(names) for _, _, names in os.walk(folder))
    return None


def damage(run_dir: Path) -> list[str]:
    """What is wrong with the checkpoints of a training that was struck."""
    root, found = run_dir / "checkpoints", []
    folders = [root / f"step_{step:08d}" for step in saved_steps(root)]
    links = [link for name in ("latest", "best") if (link := root / name).is_symlink()]
    for checkpoint in (*folders, *links):
        try:
            verify(checkpoint)
        except InputError as error:
            found.append(f"{checkpoint.name}: {error}")
    return found


def differences(run_dir: Path, undisturbed: Path) -> list[str]:
    """How a finished training differs from the undisturbed one."""
    mine, other = (folder / "checkpoints" / "latest" for folder in (run_dir, undisturbed))
    if mine.resolve().name != other.resolve().name:
        return [f"latest is {mine.resolve().name}"]
    ours, theirs = _parts(mine), _parts(other)
    found = [f"{what}: not the same" for what in theirs if ours.get(what) != theirs[what]]
    curves, expected = read_scalars(run_dir), read_scalars(undisturbed)
    for tag in CURVES:
        if curves.get(tag) != expected[tag]:
            steps = [step for step, _ in curves.get(tag, [])]
            first = next((e for e, m in zip_longest(expected[tag], curves.get(tag, [])) if e != m), None)
            found.append(f"{tag}: not the same, logged at the steps {steps}, other than expected from {first} on")
    return found


def _parts(checkpoint: Path) -> dict[str, Any]:
    """The parts of a checkpoint that training depends on. Learning rates are set before each step; nothing draws from
    Python's and numpy's generators."""
    moments = load_optimizer_state(checkpoint)["state"]
    parts: dict[str, Any] = {name: (checkpoint / name).read_bytes() for name in COMPARED}
    parts["the optimizer"] = [value.numpy().tobytes() for each in moments.values() for value in each.values()]
    for rank, state in enumerate(load_rank_states(checkpoint)):
        parts[f"random numbers of rank {rank}"] = state["random"]["torch"].tolist()
        parts[f"sums of rank {rank}"] = {name: value.tolist() for name, value in state["sums"].items()}
    return parts


# ---- a training ------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The result of one training. `broken` lists what must not happen."""

    fault: Fault
    strikes: int = 0
    in_a_save: int = 0  # strikes while a checkpoint was half written
    unsaved: int = 0  # strikes before the first checkpoint
    down: float = 0.0  # the longest time until no process was left, in seconds
    lost: list[str] = field(default_factory=list)
    differing: list[str] | None = None  # None: it did not finish
    wrong: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        return [*self.lost, *self.wrong, *(self.differing or [])]


def run_one(fault: Fault, folder: Path, data: Path, undisturbed: Undisturbed, preloaded: Preloaded) -> Outcome:
    """One training with its strikes; none of its processes is left. Its folder stays if something is broken."""
    mine = folder / f"run{fault.number:03d}"
    outcome = Outcome(fault)
    for moment in (*fault.moments, None):
        training = start(mine, fault.ranks, data, preloaded, hangs=fault.kind.hangs and moment is not None)
        try:
            if moment is None:
                end(training, outcome, undisturbed)
            elif strike(fault, moment, training, undisturbed):
                outcome.strikes += 1
                outcome.in_a_save += half_written(training) is not None
                go_down(training, outcome)
                outcome.unsaved += newest(training.run_dir) is None
                outcome.lost += damage(training.run_dir)
            elif not training.ended:
                outcome.wrong.append(f"it did not come to its strike within {PATIENCE:g} s")
            elif training.code != 0:
                outcome.wrong.append(f"it ended before its strike, with exit code {training.code}")
        finally:
            training.kill()
            training.wait(PATIENCE)
        if outcome.broken:
            break
    if not outcome.strikes and not outcome.broken:  # it was over sooner than expected
        shutil.rmtree(mine)
        earlier = tuple(replace(moment, share=0.7 * moment.share) for moment in fault.moments)
        return run_one(replace(fault, moments=earlier), folder, data, undisturbed, preloaded)
    if not outcome.broken:
        shutil.rmtree(mine)
    return outcome


def start(folder: Path, ranks: int, data: Path, preloaded: Preloaded, hangs: bool = False) -> Training:
    """Begin a training, or resume the one in this folder. hangs: a rank of it will be stopped."""
    options = ["--resume", "auto", *OPTIONS, *([f"distributed.timeout_minutes={HANG_SECONDS / 60}"] if hangs else [])]
    training = Training(folder, STEPS, ranks, wandb=False, options=options)
    temporary = folder / "tmp"  # a launcher that is killed leaves something there
    temporary.mkdir(parents=True, exist_ok=True)
    if over.is_set():
        raise SystemExit
    running.append(training)
    training.start(data, {"TMPDIR": str(temporary)}, preloaded)
    return training


def go_down(training: Training, outcome: Outcome) -> None:
    """Wait until no process of a struck training is left, and note how long that took."""
    kind, begin = outcome.fault.kind, time.monotonic()
    bound, saved = kind.bound(training.done_steps() > 0), newest(training.run_dir) or 0
    if kind.stops_all:
        time.sleep(STOPPED_SECONDS)
        if training.ended:
            outcome.wrong.append("it ended while it was stopped")
        kill(training.process, signal.SIGKILL)
        begin = time.monotonic()
    left = training.living()
    while (left or not training.ended) and time.monotonic() - begin < bound:
        time.sleep(0.02)
        left = training.living()
        if kind.stops_all and not training.done_steps() and time.monotonic() - begin > STOPPED_SECONDS:
            # Ranks that were stopped before they had asked the kernel to end with their launcher end once they go on.
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
    outcome.down = max(outcome.down, time.monotonic() - begin)
    if left or not training.ended:
        outcome.wrong.append(f"{bound:g} s after the strike there were left: {sorted(left.values())}")
    if training.code == 0 and not (training.run_dir / RESULTS).exists():
        outcome.wrong.append("its exit code is 0, and it is not done")
    # The last save that must have begun waited for the one before it.
    begun = (training.done_steps() - 1) // SAVE_INTERVAL * SAVE_INTERVAL
    due = training.done_steps() if "stopped by SIGTERM" in training.said() else begun - SAVE_INTERVAL
    found = newest(training.run_dir) or 0
    if found < max(due, saved):
        outcome.lost.append(f"latest is the checkpoint of step {found}, and that of step {max(due, saved)} was written")


def end(training: Training, outcome: Outcome, undisturbed: Undisturbed) -> None:
    """Wait until a training has finished, and compare it."""
    training.wait(PATIENCE)
    if not training.ended:
        outcome.wrong.append(f"it did not finish within {PATIENCE:g} s")
    elif training.code != 0:
        outcome.wrong.append(f"it ended with exit code {training.code} when it went on")
    else:
        outcome.lost += damage(training.run_dir)
        outcome.differing = differences(training.run_dir, undisturbed.run_dir)


def run_undisturbed(ranks: int, folder: Path, data: Path, preloaded: Preloaded) -> Undisturbed:
    training = start(folder / f"undisturbed{ranks}", ranks, data, preloaded)
    try:
        _wait(training, lambda: training.done_steps() >= 1)
        first = time.time() - training.begin
        training.wait(PATIENCE)
    finally:
        training.kill()
        training.wait(PATIENCE)
    if training.code != 0:
        sys.exit(f"A training that nothing happens to is not well:\n{training.said()}")
    step = (training.end - training.begin - first) / STEPS
    latest = training.run_dir / "checkpoints" / "latest"
    files = sum(len(names) for _, _, names in os.walk(latest))
    print(f"undisturbed: {first:.1f} s to the first step, {step * 1000:.0f} ms a step", file=sys.stderr, flush=True)
    return Undisturbed(training.run_dir, first, step, files)


def stop(number: int, _: FrameType | None) -> None:
    """On a signal to this script, exit properly, so that nothing is left running."""
    over.set()
    for training in running:
        training.kill()
    sys.exit(128 + number)


# ---- the whole -------------------------------------------------------------------------------------------


def run_all(faults: Sequence[Fault], data: Path, folder: Path, parallel: int) -> list[Outcome]:
    """Every fault in a separate training, `parallel` at a time."""
    with several_preloaded(parallel) as preloaded:
        wanted = sorted({fault.ranks for fault in faults})
        made = side_by_side(lambda ranks, mine: run_undisturbed(ranks, folder, data, mine), wanted, preloaded)
        undisturbed = dict(zip(wanted, made, strict=True))
        if {0, 1} <= undisturbed.keys() and (other := differences(*(undisturbed[i].run_dir for i in (0, 1)))):
            sys.exit(f"Forked and through ./train.sh, a training is not the same: {'; '.join(other)}.")

        def run(fault: Fault, mine: Preloaded) -> Outcome:
            outcome = run_one(fault, folder, data, undisturbed[fault.ranks], mine)
            show(outcome, folder)
            return outcome

        return side_by_side(run, faults, preloaded)


def show(outcome: Outcome, folder: Path) -> None:
    """One line on stderr, while the others run."""
    line = f"{outcome.fault}: {outcome.strikes} strikes, {outcome.in_a_save} in a save, down in {outcome.down:.1f} s"
    if outcome.broken:
        line += f"\n    BROKEN: {'; '.join(outcome.broken)}; see {folder / f'run{outcome.fault.number:03d}'}"
    print(line, file=sys.stderr, flush=True)


def print_table(outcomes: Sequence[Outcome]) -> None:
    heads = "strike", "n", "struck twice", "strikes in the middle of a save", "before the first checkpoint"
    heads = (*heads, "checkpoints lost or damaged", "finished with the exact weights", "down, at most")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for kind in (*ALONE, *TOGETHER, None):
        of_kind = [outcome for outcome in outcomes if kind in (outcome.fault.kind, None)]
        if of_kind:
            cells = (
                kind or "all",
                len(of_kind),
                sum(outcome.strikes > 1 for outcome in of_kind),
                sum(outcome.in_a_save for outcome in of_kind),
                sum(outcome.unsaved for outcome in of_kind),
                sum(len(outcome.lost) for outcome in of_kind),
                sum(outcome.differing == [] for outcome in of_kind),
                f"{max(outcome.down for outcome in of_kind):.1f} s{' (killed)' if kind and kind.stops_all else ''}",
            )
            print(f"| {' | '.join(map(str, cells))} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--through-train-sh", type=int, default=20, metavar="N", help="how many of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="recorded demonstrations of 32 pixels (default: made)")
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time")
    arguments = parser.parse_args()
    faults = draw_faults(arguments.runs, min(arguments.runs, arguments.through_train_sh), arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="atlas-killed-"))
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    begin = time.monotonic()
    try:
        data = arguments.data.resolve() if arguments.data else record_data(folder)
        outcomes = run_all(faults, data, folder, arguments.parallel)
    finally:
        if over.is_set() or not any(folder.glob("run*")):  # folders stay in which something is broken
            shutil.rmtree(folder)
    broken = sum(bool(outcome.broken) for outcome in outcomes)
    print(f"{describe()}\n")
    print_table(outcomes)
    scripted = sum(outcome.fault.ranks > 0 for outcome in outcomes)
    print(
        f"\nseed {arguments.seed}; {STEPS} steps, saved each third; {sum(outcome.strikes for outcome in outcomes)} "
        f"strikes at {len(outcomes)} trainings, {scripted} of them through ./train.sh; {arguments.parallel} at a time, "
        f"{(time.monotonic() - begin) / 60:.1f} minutes. killed: a training that is stopped altogether cannot end "
        f"itself; after {STOPPED_SECONDS:g} s its first process was killed, and the time is from there. Where one rank "
        f"is stopped, the others wait for distributed.timeout_minutes ({HANG_SECONDS:g} s), and by "
        f"{MEETING_SECONDS:g} s longer before they have met."
    )
    print(f"broken: {broken} of {len(outcomes)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
