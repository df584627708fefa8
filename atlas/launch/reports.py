"""The reports that ranks leave in their launcher's folder: how and why each ended, for the launcher to report once.

`code_3` holds the exit code of rank 3, `report_3.json` its error, `stack_3` its stack when it was asked or crashed;
`hang` exists once some rank has found that nothing moves.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from atlas.system.documents import read_json
from atlas.system.files import write_json

HANG = "hang"
IN_GOOD_ORDER = (0, 130, 143)  # the exit codes of ranks that are done, or were told to stop
# How gloo and NCCL say that another process is gone; both also raise plain RuntimeErrors.
_CONNECTION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was aborted)|broken pipe|socket (timeout|error)|failed to recv"
    r"|process group|watchdog",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Report:
    """Why a rank ended."""

    rank: int
    kind: Literal["error", "input", "hang"]
    text: str  # a traceback; for wrong input its message; for a hang what the rank did last
    summary: str  # in one line
    consequence: bool  # whether it only says that another rank is gone
    time: float  # seconds since 1970

    def write(self, folder: Path) -> None:
        """Leave it for the launcher. The first one is kept: errors while a rank ends are consequences."""
        path = folder / f"report_{self.rank}.json"
        if not path.exists():
            write_json(path, asdict(self))


def read_reports(folder: Path) -> dict[int, Report]:
    """The reports there are, by rank."""
    reports = [Report(**read_json(path)) for path in folder.glob("report_*.json")]
    return {report.rank: report for report in reports}


def write_code(folder: Path, rank: int, code: int) -> None:
    """Leave a rank's exit code, which torchrun does not keep."""
    (folder / f"code_{rank}").write_text(str(code))


def read_codes(folder: Path) -> dict[int, int]:
    """The exit codes there are, by rank."""
    texts = {path: path.read_text() for path in folder.glob("code_*")}
    return {int(path.name.removeprefix("code_")): int(text) for path, text in texts.items() if text}


def is_consequence(error: BaseException) -> bool:
    """Whether an error only says that another process is gone. The first error of a chain decides: while it unwinds,
    its rank's connections may break as well.
    """
    first = list(_chain(error))[-1]
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch.distributed, "DistError") and isinstance(first, torch.distributed.DistError):
        return True
    return isinstance(first, RuntimeError | ConnectionError) and bool(_CONNECTION.search(str(first)))


def own_frames(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """A stack, outermost frame first, without the frames in which the command line or a thread called the package."""
    outer = [i for i, frame in enumerate(stack) if f"{os.sep}typer{os.sep}" in frame.filename]
    start = outer[-1] + 1 if outer else 0
    while start < len(stack) - 1 and stack[start].name in ("_bootstrap", "_bootstrap_inner", "run"):
        start += 1
    return stack[start:]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        yield now
        seen.add(id(now))
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def now() -> float:
    """Seconds since 1970: all ranks of a machine share this clock."""
    return time.time()
