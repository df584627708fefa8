"""Watches the ranks of one launcher: if one fails, the others end soon; a second signal ends all of them at once.

torchrun tells the ranks to stop when one has failed, and waits. But they may be stuck in a collective that never
returns, be stopped, or take long to close their trackers. This thread gives each a time that depends on what it does,
and then kills it with everything it has started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from atlas.launch.failure_report import Ending, exit_code, summary
from atlas.launch.meeting import Meeting
from atlas.launch.rank import ASK_FOR_STACK
from atlas.launch.reports import HANG, IN_GOOD_ORDER, now, read_codes, read_reports

_LOOK_SECONDS = 0.1
# Counted from a failure. Together with the time to notice it, these stay below the 30 s that torchrun waits.
_STUCK_SECONDS = 10  # for ranks that have not announced their end: most are stuck in a collective
_ENDING_SECONDS = 20  # for those that have: they close their trackers
_ECHO_SECONDS = 1.0  # within which a signal may be the same one, passed on by a wrapper
_SECOND_SECONDS = 1.0  # from the second signal to SIGKILL
_STACK_SECONDS = 1.0  # from asking for a stack to SIGKILL
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Overseer:
    """Runs beside torchrun while its `with` block lasts. Create it in the main thread, where Python handles signals.

    deaths, ended, stacks: as in `Ending`.
    """

    def __init__(self, folder: Path, processes: int, meeting: Meeting) -> None:
        """folder: where ranks leave their reports; processes: how many ranks there will be; meeting: with the
        launchers of other machines."""
        self._folder, self._processes, self._meeting = folder, processes, meeting
        self.deaths: dict[int, float] = {}
        self.ended: dict[int, str] = {}
        self.stacks: dict[int, str] = {}
        self.signals = 0  # the number of signals that asked to stop
        self._ranks: dict[int, psutil.Process] = {}
        self._failed_at: float | None = None
        self._second_at: float | None = None
        self._last_signal = float("-inf")
        self._asked_at: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="atlas-overseer", daemon=True)

    def __enter__(self) -> Overseer:
        # The numbers of the signals that arrive, whoever handles them.
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        self._over.set()
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)
        self._look()  # a last time, at how the last ones ended
        self.stacks |= self._read_stacks()

    def ending(self, codes: dict[int, int], stopped_by: int | None) -> Ending:
        """Tell how the ranks ended, given the exit codes that torchrun knows and the signal that stopped it."""
        told, reports = read_codes(self._folder), read_reports(self._folder)
        # A rank that failed after reporting success has failed, and one that was killed while ending had failed before.
        failed = {rank: 2 if report.kind == "input" else 1 for rank, report in reports.items()}
        codes = {**told, **codes, **failed, **{rank: code for rank, code in told.items() if code}}
        return Ending(
            codes,
            told,
            reports,
            self.deaths,
            self.ended,
            self.stacks,
            self._meeting.first_failure,
            stopped_by,
            self.signals > 1,
        )

    # ---- the thread --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.is_set():
            ready, _, _ = select.select([self._reading], [], [], _LOOK_SECONDS)
            if ready:
                self._count_signals(os.read(self._reading, 64))
            self._look()
            self._end_those_that_are_due()

    def _count_signals(self, numbers: bytes) -> None:
        for number in numbers:
            at = time.monotonic()
            if number in _STOPPING and at - self._last_signal > _ECHO_SECONDS:
                self._last_signal = at
                self.signals += 1
                if self.signals == 2:
                    self._second_at = at

    def _look(self) -> None:
        if len(self._ranks) < self._processes:
            self._find_ranks()
        for rank, process in self._ranks.items():
            if rank not in self.deaths and not _is_alive(process):
                self.deaths[rank] = now()
        here, elsewhere = self._fails_here(), self._meeting.failures()
        if any(failure.hang for failure in elsewhere):
            (self._folder / HANG).touch()  # the ranks here show their stacks as well
        if (here or self.signals > 1) and not self._meeting.told and self._meeting.cause is None:
            self._tell()
        if self._failed_at is None and (here or elsewhere):
            self._failed_at = time.monotonic()

    def _find_ranks(self) -> None:
        """torchrun starts the ranks and does not tell their process ids; they are the children with a rank."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    variables = child.environ()
                    if "TORCHELASTIC_RUN_ID" in variables:  # otherwise between fork and exec, or something else
                        self._ranks.setdefault(int(variables["RANK"]), child)

    def _fails_here(self) -> bool:
        failed = any(code not in IN_GOOD_ORDER for code in read_codes(self._folder).values())
        return failed or bool(self._lost()) or bool(read_reports(self._folder))

    def _lost(self) -> list[int]:
        """The ranks that are gone without a report. Once this thread has killed some, others may follow that way."""
        known = {*read_codes(self._folder), *read_reports(self._folder)}
        return [] if self.ended else sorted(set(self.deaths) - known)

    def _end_those_that_are_due(self) -> None:
        at = time.monotonic()
        living = {rank: process for rank, process in self._ranks.items() if rank not in self.deaths}
        if self._second_at is not None and at - self._second_at > _SECOND_SECONDS:
            for rank, process in living.items():
                self._kill(rank, process)
        if self._failed_at is None:
            return
        said = {*read_reports(self._folder), *read_codes(self._folder)}
        for rank, process in living.items():
            if at - self._failed_at > (_ENDING_SECONDS if rank in said else _STUCK_SECONDS):
                if rank not in said and self._asks_for_stack(process):
                    continue
                self._kill(rank, process)

    def _asks_for_stack(self, process: psutil.Process) -> bool:
        """When nothing moves, users need each rank's stack; True while it is being waited for."""
        if not (self._folder / HANG).exists() or _status(process) == psutil.STATUS_STOPPED:
            return False
        if self._asked_at is None:
            for rank, each in self._ranks.items():
                if rank not in self.deaths and _status(each) != psutil.STATUS_STOPPED:
                    with contextlib.suppress(psutil.Error):
                        each.send_signal(ASK_FOR_STACK)
            self._asked_at = time.monotonic()
        return time.monotonic() - self._asked_at < _STACK_SECONDS

    def _kill(self, rank: int, process: psutil.Process) -> None:
        stopped = _status(process) == psutil.STATUS_STOPPED
        self.ended.setdefault(rank, "was stopped (SIGSTOP)" if stopped else "was running")
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if process.is_running():
                os.killpg(process.pid, signal.SIGKILL)  # torchrun gives each rank its own process group

    def _tell(self) -> None:
        """Report to the other machines what has failed here first, as far as is known: they cannot wait for more."""
        ending = self.ending({}, None)
        code = exit_code(ending, 0)
        if ending.at_once:
            self._meeting.tell("it was stopped at once, by a second signal", code=128 + signal.SIGTERM)
        elif lost := self._lost():
            self._meeting.tell(f"rank {lost[0]} was killed, or crashed")
        elif (said := summary(ending)) is not None:
            text, consequence = said
            self._meeting.tell(text, consequence=consequence, hang=(self._folder / HANG).exists(), code=code)
        else:
            self._meeting.tell(f"a rank ended with code {code}", code=code)

    def _read_stacks(self) -> dict[int, str]:
        texts = {path: path.read_text(errors="replace").rstrip() for path in self._folder.glob("stack_*")}
        return {int(path.name.removeprefix("stack_")): text for path, text in texts.items() if text}


def _status(process: psutil.Process) -> str | None:
    try:
        status: str = process.status()
    except psutil.Error:
        return None
    return status


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and _status(process) not in (None, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
