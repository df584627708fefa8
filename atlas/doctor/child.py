"""Runs trials in separate processes, so that a trial that hangs or crashes harms nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.errors import InputError
from atlas.system.files import write_json
from atlas.system.process_control.interpreter import module_command, safe_environment

_LONGEST_QUOTE = 400
_KILLED_SECONDS = 10.0
_NOISE = ("warn", "deprecat")


@dataclass(frozen=True)
class Trial:
    """The end of a trial process. code: None if it took too long; negative if a signal ended it."""

    code: int | None
    seconds: float  # its time limit
    stderr: str
    answer: Any = None  # its result
    error: str | None = None  # its own description of what went wrong

    @property
    def worked(self) -> bool:
        return self.code == 0 and self.answer is not None

    @property
    def why(self) -> str:
        """Say what went wrong, as the end of a sentence."""
        if self.code is None:
            return f"it did not end within {self.seconds:.0f} s"
        words = self.error or last_words(self.stderr)
        if self.code < 0:
            name = signal.Signals(-self.code).name
            return f"it was killed by {name}" + (f"; its last words: {words}" if words else "")
        return words or f"it ended with exit code {self.code} and no message"


def last_words(stderr: str) -> str:
    """The last line with words, preferring lines that are not warnings, with secrets removed."""
    from atlas.system.safe_text import redact

    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if any(character.isalnum() for character in line)]  # without rules such as -----
    telling = [line for line in lines if not any(word in line.lower() for word in _NOISE)] or lines
    return redact(telling[-1])[:_LONGEST_QUOTE].rstrip(".") if telling else ""


def try_module(
    module: str,
    arguments: Sequence[str],
    seconds: float,
    environment: Mapping[str, str | None] | None = None,
) -> Trial:
    """Run `python -m module FILE arguments…`, whose main part calls `answer(FILE, …)`.

    environment: variables to set, or to remove (None). After `seconds` the process and all that it started are killed.
    """
    with tempfile.TemporaryDirectory(prefix="atlas-doctor-") as folder:
        answered, stderr = Path(folder) / "answer.json", Path(folder) / "stderr"
        command = [*module_command(module), str(answered), *arguments]
        # Into files: a process that outlives its parent would keep a pipe open, and reading would wait for it.
        with stderr.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=_environment(environment or {}),
                start_new_session=True,
            )
            code: int | None = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(seconds)
            finally:
                _end(process)
        text = stderr.read_text(encoding="utf-8", errors="replace")
        return Trial(code, seconds, text, **(json.loads(answered.read_text()) if answered.exists() else {}))


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    changed = {**os.environ, **safe_environment(os.environ), **changes}
    return {name: value for name, value in changed.items() if value is not None}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, also those in other sessions."""
    import psutil

    children: list[Any] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(children, _KILLED_SECONDS)


def answer(path: str | Path, work: Callable[[], Any]) -> None:
    """Do the work in a trial process and write its result, or its error, as JSON; exit with 0, or with 1.

    Where several processes do the same work, the first failure is kept, because the others follow from it.
    """
    try:
        result = {"answer": work()}
    except Exception as error:
        traceback.print_exc()
        if not Path(path).exists():
            write_json(Path(path), {"error": str(error) if isinstance(error, InputError) else _cause(error)})
        raise SystemExit(1) from None
    if os.environ.get("RANK", "0") == "0":
        write_json(Path(path), result)


def _cause(error: Exception) -> str:
    from atlas.system.safe_text import cause

    return cause(error)[:_LONGEST_QUOTE].rstrip(".")
