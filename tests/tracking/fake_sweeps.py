"""A fake wandb server that knows sweeps too: it hands out the points of a grid, one after the other."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from fake_wandb import ENTITY, PROJECT, FakeWandb
from tracked_run import KEY

ROOT = Path(__file__).parents[2]


class FakeSweeps(FakeWandb):
    """sweeps: by id, the file that made them. handed_out: by the run's id, the values that it was given.

    Names and shapes of requests and answers are those that wandb 0.31 was seen to send and accept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.handed_out: dict[str, dict[str, Any]] = {}
        self._left: dict[str, list[dict[str, Any]]] = {}
        self._agents: dict[str, str] = {}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertSweep":
            self.operations.append(operation)
            return {"upsertSweep": {"sweep": self._make(variables), "configValidationWarnings": []}}
        if operation in ("SweepWithRuns", "Sweep", "GetSweep"):
            self.operations.append(operation)
            return {"project": {"sweep": self._look_up(variables.get("sweep") or variables["name"])}}
        if operation == "CreateAgent":
            self.operations.append(operation)
            agent = f"agent{len(self._agents)}"
            self._agents[agent] = variables["sweep"]
            return {"createAgent": {"agent": {"id": agent}}}
        if operation == "Heartbeat":
            commands = self._commands(self._agents[variables["id"]], json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}
        return super().answer(operation, variables)

    def _make(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = f"sweep{len(self.sweeps)}"
        config = yaml.safe_load(variables["config"])
        self.sweeps[id] = config
        choices = {key: choice.get("values") or [choice.get("value")] for key, choice in config["parameters"].items()}
        self._left[id] = [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]
        project = {
            "id": "1",
            "name": variables.get("projectName") or PROJECT,
            "entity": {"id": "1", "name": variables.get("entityName") or ENTITY},
        }
        return {"name": id, "project": project}

    def _look_up(self, id: str) -> dict[str, Any] | None:
        if id not in self.sweeps:
            return None
        config = yaml.safe_dump(self.sweeps[id])
        return {
            "id": f"{id}-gid",
            "name": id,
            "displayName": None,
            "method": self.sweeps[id]["method"],
            "state": "RUNNING",
            "description": None,
            "config": config,
            "createdAt": "2025-01-01T00:00:00",
            "heartbeatAt": None,
            "updatedAt": None,
            "earlyStopJobRunning": False,
            "bestLoss": None,
            "controller": None,
            "scheduler": None,
            "runCount": 0,
            "runCountExpected": None,
            "runs": {"edges": []},
        }

    def _commands(self, sweep: str, running: dict[str, bool]) -> list[dict[str, Any]]:
        if running:
            return []
        if not self._left[sweep]:
            return [{"type": "exit"}]
        point = self._left[sweep].pop(0)
        run = f"{sweep}run{len(self.handed_out)}"
        self.handed_out[run] = point
        args = {key: {"value": value} for key, value in point.items()}
        return [{"type": "run", "run_id": run, "args": args, "program": self.sweeps[sweep].get("program")}]


def environment_for(server: FakeWandb, home: Path) -> dict[str, str]:
    """The environment of somebody who has logged in to the server, with a separate home."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = {"WANDB_DIR": home, "WANDB_CACHE_DIR": home / "cache", "WANDB_CONFIG_DIR": home / "config"}
    places |= {"WANDB_DATA_DIR": home / "data", "HOME": home, "NETRC": home / ".netrc"}
    python = Path(sys.executable)
    return {
        **kept,
        **{name: str(place) for name, place in places.items()},
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",  # which would be sent to this server, in a form that it does not know
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")])),
        # train.sh takes the active environment: the one of these tests.
        "VIRTUAL_ENV": str(python.parents[1]),
        "PATH": os.pathsep.join([str(python.parent), kept["PATH"]]),
    }
