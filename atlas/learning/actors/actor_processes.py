"""`--actors N`: the actors of a learner on this machine, each a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from atlas.config import Config
from atlas.errors import InputError
from atlas.learning.actors.actor_group import MOST_RESTARTS, ActorGroup, died_again, patience
from atlas.learning.actors.learner_role import learn_from_actors
from atlas.learning.actors.ray_actors import RayActors
from atlas.learning.returns import OnlineResult
from atlas.learning.run_parts import RESIDUAL
from atlas.system.process_control.interpreter import module_command, safe_environment

logger = logging.getLogger(__name__)


class ActorProcesses(ActorGroup):
    """Actors in processes of this machine; those that die are restarted."""

    def __init__(self, config: Config, env: str, count: int, checkpoint: str | None, name: str = "sac") -> None:
        super().__init__()
        self._count = count
        self._arguments = ["--env", env, *(["--checkpoint", checkpoint] if checkpoint else [])]
        self._arguments += ["--residual"] if name == RESIDUAL else []
        sections = config.model_dump(mode="json")
        self._arguments += [f"{name}={json.dumps(value)}" for name, value in sections.items()]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._restarts = [0] * count
        self._folder = tempfile.TemporaryDirectory(prefix="atlas-actors-")
        self._key_file = Path(self._folder.name) / "key"
        self._port = 0

    def __enter__(self) -> ActorProcesses:
        self._key_file.touch(0o600)
        self._key_file.write_text(self.key)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        until = time.monotonic() + patience(kind)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
        self._folder.cleanup()

    def start(self, port: int) -> None:
        self._port = port
        self._processes = [self._start() for _ in range(self._count)]

    def _look_after(self) -> None:
        """Restart actors that have died; that is an error only if it keeps happening."""
        for place, process in enumerate(self._processes):
            code = process.poll()
            if code in (None, 0):
                continue
            if code == 2:
                raise InputError("An actor's input is wrong; it says above what would be right.")
            if self._restarts[place] >= MOST_RESTARTS:
                raise died_again(f"the last exit code is {code}")
            self._restarts[place] += 1
            logger.warning("An actor's process ended with exit code %d; another one is started", code)
            self._processes[place] = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        role = ["--role", "actor", "--learner", f"127.0.0.1:{self._port}", "--api-key-file", str(self._key_file)]
        command = [*module_command("atlas.cli"), "learn", "sac", *role, *self._arguments]
        environment = {**os.environ, **safe_environment(os.environ)}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment, start_new_session=True)


def learn_with_actors(
    config: Config, env: str, actors: int, checkpoint: str | None = None, ray: bool = False, name: str = "sac"
) -> OnlineResult:
    """Run SAC with a learner in this process and actors in others, which end with it. ray: as Ray tasks. name: of the
    settings, see `learn_here`. Raises InputError."""
    kind: Callable[[Config, str, int, str | None, str], ActorGroup] = RayActors if ray else ActorProcesses
    with kind(config, env, actors, checkpoint, name) as started:
        learner = started.address, started.key, checkpoint
        return learn_from_actors(config, env, *learner, started.start, started.look, name)
