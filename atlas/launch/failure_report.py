"""The report about failed ranks: the first cause once, a line about the others, and their exit code."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from atlas.launch.meeting import Failure
from atlas.launch.reports import Report

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass
class Ending:
    """The way in which the ranks of one launcher ended."""

    codes: dict[int, int]  # by rank; negative where a signal killed one
    told: dict[int, int]  # the codes that ranks reported themselves
    reports: dict[int, Report]
    deaths: dict[int, float] = field(default_factory=dict)  # when the launcher saw each gone, in seconds since 1970
    ended: dict[int, str] = field(default_factory=dict)  # ranks the launcher had to kill, and what they were doing
    stacks: dict[int, str] = field(default_factory=dict)  # of ranks that crashed or were asked for theirs
    elsewhere: Failure | None = None  # what failed first on another machine
    stopped_by: int | None = None  # the signal that asked the launcher to stop
    at_once: bool = False  # whether a second signal came

    def silent(self) -> dict[int, int]:
        """The codes of ranks that ended without a report, and were not killed by the launcher."""
        known = {*self.told, *self.reports, *self.ended}
        return {rank: code for rank, code in self.codes.items() if code and rank not in known}

    def lost(self) -> set[int]:
        """The ranks that are gone, reported nothing, and were not killed by the launcher."""
        return set(self.deaths) - {*self.told, *self.reports, *self.ended}

    def consequences(self) -> set[int]:
        """The ranks that ended because of another one."""
        waited = {rank for rank in self.ended if rank not in self.reports}
        return {rank for rank, report in self.reports.items() if report.consequence} | waited


@dataclass(frozen=True)
class _Cause:
    rank: int
    time: float
    lines: list[str]
    summary: str


def failure_lines(ending: Ending) -> list[str]:
    """The lines to print; none if all ranks ended well or as they were told to."""
    if ending.at_once and (ending.ended or ending.lost()):
        return ["Ended at once by the second signal."]
    hung = [report for report in ending.reports.values() if report.kind == "hang"]
    if hung:
        return _hang_lines(ending, hung[0])
    cause = _first_cause(ending)
    lines: list[str] = []
    elsewhere = ending.elsewhere
    if elsewhere is not None and (cause is None or (cause.rank in ending.consequences() and not elsewhere.consequence)):
        lines = [f"Node {elsewhere.node} failed first: {elsewhere.text}."]
        cause = None
    elif cause is not None:
        lines = cause.lines
    elif ending.stopped_by is None:
        return []
    return [*lines, *_other_lines(ending, cause)]


def summary(ending: Ending) -> tuple[str, bool] | None:
    """The first cause in one line, and whether it only follows from another machine's; None if there is none."""
    hung = [report for report in ending.reports.values() if report.kind == "hang"]
    cause = _first_cause(ending)
    if hung:
        return hung[0].summary, False
    return None if cause is None else (cause.summary, cause.rank in ending.consequences())


def _first_cause(ending: Ending) -> _Cause | None:
    """The earliest failure that does not follow from another one; if there is none, the earliest."""
    causes = [_of_report(report) for report in ending.reports.values()]
    deaths = {} if ending.stopped_by is not None else ending.silent()
    # A SIGTERM comes from torchrun and follows a failure, unless there was none before.
    terminated = [_of_death(ending, rank) for rank, code in deaths.items() if code == -signal.SIGTERM]
    causes += [_of_death(ending, rank) for rank, code in deaths.items() if code != -signal.SIGTERM]
    consequences = ending.consequences()
    by_themselves = [cause for cause in causes if cause.rank not in consequences]
    if by_themselves:
        return min(by_themselves, key=lambda cause: cause.time)
    if any(code for rank, code in ending.told.items() if rank not in ending.reports):
        return None  # such a rank has printed itself why it ended
    return min([*causes, *terminated], key=lambda cause: cause.time, default=None)


def _of_report(report: Report) -> _Cause:
    lines = [report.text] if report.kind == "input" else [f"Rank {report.rank}:", report.text]
    return _Cause(report.rank, report.time, lines, f"rank {report.rank}: {report.summary}")


def _of_death(ending: Ending, rank: int) -> _Cause:
    code = ending.codes[rank]
    what = f"was killed by {_name(-code)}" if code < 0 else f"ended with code {code} without an error message"
    hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    lines = [f"Rank {rank} {what}{hint}."]
    if -code in _CRASHES and ending.stacks.get(rank):
        lines.append(ending.stacks[rank])
    return _Cause(rank, ending.deaths.get(rank, 0.0), lines, f"rank {rank} {what}")


def _hang_lines(ending: Ending, first: Report) -> list[str]:
    """Each rank has shown its stack already; those that could not are named."""
    lines = [first.summary]
    for rank in sorted(ending.ended):
        lines.append(f"Rank {rank} did not report and was killed; it {ending.ended[rank]}.")
        if ending.stacks.get(rank):
            lines.append(f"Its stack:\n{ending.stacks[rank]}")
    return lines


def _other_lines(ending: Ending, cause: _Cause | None) -> list[str]:
    """A line about the ranks that ended because of the cause, and one for each rank with an error of its own."""
    lines = []
    with_it = ending.consequences()
    same = ending.reports.get(cause.rank) if cause is not None else None
    for rank, report in sorted(ending.reports.items()):
        if same is not None and report.summary == same.summary:
            with_it.add(rank)
        elif rank not in with_it:
            lines.append(f"Rank {rank} also failed: {report.summary}")
    if ending.stopped_by is None:  # ranks that torchrun told to stop had nothing to report
        with_it |= {rank for rank, code in ending.silent().items() if code == -signal.SIGTERM}
    if cause is not None:
        with_it.discard(cause.rank)
    lost = ending.lost() if ending.stopped_by is not None else set()
    if lost:
        lines.append(f"{_ranks(lost)} ended at the signal, before the step was finished.")
    if with_it:
        known = cause is not None or ending.elsewhere is not None
        lines.append(f"{_ranks(with_it)} {'ended with it' if known else 'waited in vain and had to be killed'}.")
    return lines


def _ranks(ranks: Collection[int]) -> str:
    names = [str(rank) for rank in sorted(ranks)]
    if len(names) == 1:
        return f"Rank {names[0]}"
    return f"Ranks {', '.join(names[:-1])} and {names[-1]}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- the exit code ---------------------------------------------------------------------------------------


def exit_code(ending: Ending, processes: int) -> int:
    """The launcher's exit code: that of the ranks that failed by themselves, if any did."""
    codes: Mapping[int, int] = ending.codes
    if ending.stopped_by is not None and (ending.at_once or len(codes) < processes):
        codes = {**codes, -1: -ending.stopped_by}  # some ranks were stopped before they could report how they ended
    consequences = ending.consequences()
    of_themselves = [code for rank, code in codes.items() if rank not in consequences]
    if not any(of_themselves) and ending.elsewhere is not None and any(codes.values()):
        return ending.elsewhere.code
    return common_exit_code(of_themselves) or common_exit_code(codes.values())


def common_exit_code(codes: Iterable[int]) -> int:
    """One exit code for the codes of several ranks; a negative code means a signal killed the rank.

    Wrong input comes first, because the other ranks then fail as a consequence; then any failure; then being stopped
    (130, 143), because the launcher stops the others when one rank fails; 0 if all ended well.
    """
    shell = [128 - code if code < 0 else code for code in codes]
    stopped = (128 + signal.SIGINT, 128 + signal.SIGTERM)
    failed = [code for code in shell if code and code not in stopped]
    if 2 in failed:
        return 2
    return next(iter([*failed, *(code for code in shell if code)]), 0)
