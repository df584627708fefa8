"""Running a short tracked run in a separate process and home, and reading its wandb files back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import atlas

KEY = "0123456789abcdef0123456789abcdefdeadbeef"  # has a real key's form, but is nobody's
_PREAMBLE = """
import os, sys, time
from pathlib import Path
import numpy as np
from atlas.config import LoggingConfig, WandbConfig
from atlas.tracking import Resumed, RunTracker
from atlas.tracking.sinks import wandb as wandb_sink
from atlas.tracking.sinks.console import setup_logging

run_dir = Path(sys.argv[1])
undo = setup_logging(run_dir, is_main=True)

def make(exit_timeout=30.0, wandb_id=None, resumed=None, **wandb):
    logging = LoggingConfig(exit_timeout_seconds=exit_timeout, system_interval_seconds=0)
    return RunTracker(run_dir, "a-run", WandbConfig(enabled=True, **wandb), logging, resumed=resumed, wandb_id=wandb_id)
"""


@dataclass
class Finished:
    """A run that has ended: its exit code, what it printed, and its folders."""

    code: int
    stdout: str
    stderr: str
    run_dir: Path
    home: Path
    _records: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, code: int) -> None:
        """Fail, with its output, if the run ended with another code or warned."""
        assert (self.code, self.warnings) == (code, []), self.stderr

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if "WARNING" in line]

    def wandb_folder(self) -> Path:
        """The folder of the run, offline or online, that was written last."""
        folders = (self.run_dir / "wandb").glob("*run-*-*")
        # A run that goes offline has a folder of its first attempt too, perhaps of the same second.
        return max(folders, key=lambda path: (path.name.split("run-")[1], path.name.startswith("offline")))

    def wandb_records(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind in the run's transaction log."""
        if not self._records:
            program = Path(sys.executable).with_name("wandb")
            command = [str(program), "leet", "inspect", "--json", str(self.wandb_folder())]
            environment = {**os.environ, "HOME": str(self.home)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=280)
            self._records = [json.loads(line) for line in done.stdout.splitlines()]
        return [record[kind] for record in self._records if record["type"] == kind]

    def files_holding(self, text: str) -> list[Path]:
        places = [path for folder in (self.run_dir, self.home) for path in folder.rglob("*") if path.is_file()]
        return [path for path in places if text.encode() in path.read_bytes()]


def run_script(folder: Path, script: str, **variables: str) -> Finished:
    """Run a script after the preamble above, with `variables` in its environment; its files stay in `folder`."""
    home, run_dir = folder / "home", folder / "run"
    home.mkdir(exist_ok=True)
    run_dir.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_CONFIG_DIR": str(home / "config"),
        "PYTHONPATH": str(Path(atlas.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + textwrap.dedent(script), str(run_dir)],
        env=environment | variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,  # on a busy machine, whose time is not what is tested
    )
    return Finished(done.returncode, done.stdout, done.stderr, run_dir, home)
