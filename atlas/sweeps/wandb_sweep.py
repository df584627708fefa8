"""Sweeps on wandb's server, which chooses the values: creating one, and working on one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, ModuleType

from atlas.errors import InputError
from atlas.registry.client import import_wandb
from atlas.registry.wandb_variables import project_and_entity
from atlas.sweeps.grid import Sweep, check_values, read_start
from atlas.system.safe_text import cause


class SweepFailed(Exception):
    """wandb did not do what was asked; the message says why."""

    exit_code = 1


class AgentStopped(Exception):
    """A signal has stopped the agent, and its run with a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the agent was stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass(frozen=True)
class CreatedSweep:
    id: str
    entity: str
    project: str
    url: str

    @property
    def path(self) -> str:
        """The argument for an agent."""
        return f"{self.entity}/{self.project}/{self.id}"


def create_sweep(sweep: Sweep, project: str | None = None, entity: str | None = None) -> CreatedSweep:
    """Create a sweep on the server.

    project, entity: default: those in the file, then $WANDB_PROJECT and $WANDB_ENTITY, then atlas-vla and the user's
    own. Raises InputError if the file is wrong or nobody is logged in, SweepFailed if the server refuses.
    """
    start = read_start(sweep)
    if start is not None:
        check_values(sweep, start)
    wandb = _logged_in()
    own_project, own_entity = project_and_entity()
    project = project or sweep.values.get("project") or own_project
    entity = entity or sweep.values.get("entity") or own_entity
    with _failures():
        id = wandb.sweep(sweep.values, entity=entity, project=project)
        api = wandb.Api()
        entity = entity or str(api.default_entity)
        return CreatedSweep(id, entity, project, api.sweep(f"{entity}/{project}/{id}").url)


def run_agent(sweep: str, count: int | None = None) -> None:
    """Train what the server asks for, one run after the other, `count` of them or until the sweep ends.

    sweep: ID, PROJECT/ID or ENTITY/PROJECT/ID.
    Raises InputError if it has another form or nobody is logged in, SweepFailed if the server does not know it, and
    AgentStopped after a signal: it is passed on to the run, which stops with a checkpoint.
    """
    parts = sweep.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InputError(f"'{sweep}' is not a sweep, expected ID, PROJECT/ID or ENTITY/PROJECT/ID.")
    wandb = _logged_in()
    project = project_and_entity()[0] if len(parts) == 1 else None
    with _stopped_by_signals(), _failures():
        wandb.agent(sweep, project=project, count=count, forward_signals=True)


def _logged_in() -> ModuleType:
    wandb = import_wandb()
    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "wandb has no API key: run `wandb login`, or set WANDB_API_KEY. `atlas sweep local` needs no account."
        )
    return wandb


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM stop the agent as Ctrl-C does, and afterwards report that it was stopped, which wandb does not."""
    seen: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        if not seen:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        raise AgentStopped(seen[0])


@contextmanager
def _failures() -> Iterator[None]:
    """Turn wandb's many kinds of errors into one."""
    try:
        yield
    except Exception as error:
        raise SweepFailed(f"wandb: {cause(error)}") from error
