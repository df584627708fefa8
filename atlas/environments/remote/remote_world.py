"""A world in another Python environment or on another machine: `--env ws://host:port`, `atlas environment serve`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from atlas.environments.environment import EnvironmentSpec, StepResult
from atlas.environments.remote.remote_messages import (
    WorldKind,
    observation_from_message,
    result_from_message,
    spec_from_message,
)
from atlas.errors import InputError, first_line
from atlas.system.array_codec import pack, unpack
from atlas.system.safe_text import printable
from atlas.system.websocket_client import Peer, connect, import_websockets
from atlas.types import Observation

SCHEMES = ("ws://", "wss://")
KEY_FILE = "ATLAS_WORLD_KEY_FILE"  # an environment variable that names the file with the server's key
_WORLD = Peer(
    name="world",
    key_setting=KEY_FILE,
    start="atlas environment serve --env NAME",
    protocol="Atlas's protocol for worlds",
    largest_answer=256 * 2**20,
)
_OPEN_SECONDS, _ANSWER_SECONDS = 20.0, 300.0  # a scene may take a while to make


class WorldLost(RuntimeError):
    """The connection to a world's server was lost."""


@lru_cache(maxsize=8)
def remote_spec(url: str, image_size: int) -> EnvironmentSpec:
    """Describe what the world at an address offers; it is asked once per process. Raises InputError where no world
    answers."""
    return _spec_and_kind(url, image_size)[0]


def start_remote(url: str, image_size: int) -> RemoteEnvironment:
    """The world at an address: a RemoteSimulator where it is a simulator, a RemoteFeelingSimulator where it reports
    contacts too."""
    kinds: dict[WorldKind, type[RemoteEnvironment]] = {
        "world": RemoteEnvironment,
        "simulator": RemoteSimulator,
        "feeling simulator": RemoteFeelingSimulator,
    }
    return kinds[_spec_and_kind(url, image_size)[1]](url, image_size)


class RemoteEnvironment:
    """A world at an address, with its own connection and its own world there.

    Its methods raise InputError for what the world refuses, and WorldLost where the connection ends.
    """

    def __init__(self, url: str, image_size: int = 128) -> None:
        """Raises InputError where no world answers."""
        self._url, self._open = url, ExitStack()
        self._connection, greeting = _begin(url, image_size, self._open)
        self.spec, _ = spec_from_message(greeting, url)

    def reset(self, *, seed: int | None = None, instruction: str | None = None) -> Observation:
        """See `Environment.reset`."""
        return self._reset(seed=seed, instruction=instruction)

    def step(self, action: np.ndarray, observe: bool = True) -> StepResult:
        """See `Environment.step`."""
        return result_from_message(self._ask("step", action=np.asarray(action, np.float64), observe=observe))

    def picture(self, size: int) -> np.ndarray | None:
        """See `Pictured.picture`."""
        drawn = self._ask("picture", size=size)
        return None if drawn is None else np.array(drawn)

    def close(self) -> None:
        self._open.close()

    def _reset(self, **how: Any) -> Observation:
        observation = observation_from_message(self._ask("reset", **how))
        assert observation is not None
        return observation

    def _ask(self, what: str, **more: Any) -> Any:
        return _ask(self._connection, self._url, {"do": what, **more})


class RemoteSimulator(RemoteEnvironment):
    """A simulator at an address."""

    def reset(
        self, *, seed: int | None = None, instruction: str | None = None, init_state: np.ndarray | None = None
    ) -> Observation:
        """See `Simulator.reset`."""
        return self._reset(seed=seed, instruction=instruction, init_state=init_state)

    def observe(self) -> Observation:
        """See `Simulator.observe`."""
        observation = observation_from_message(self._ask("observe"))
        assert observation is not None
        return observation

    def get_state(self) -> np.ndarray:
        """See `Simulator.get_state`."""
        return np.array(self._ask("get_state"), np.float64)

    def set_state(self, state: np.ndarray) -> None:
        """See `Simulator.set_state`."""
        self._ask("set_state", state=np.asarray(state, np.float64))

    def positions(self) -> dict[str, np.ndarray]:
        """See `Simulator.positions`."""
        return {name: np.array(place) for name, place in self._ask("positions").items()}


class RemoteFeelingSimulator(RemoteSimulator):
    """A simulator at an address that reports what its robot touches, and, where it can, what the robot must touch."""

    def contact_forces(self) -> dict[str, float]:
        """See `FeelsContacts.contact_forces`."""
        return {str(name): float(force) for name, force in self._ask("contact_forces").items()}

    def target_object(self) -> str | None:
        """See `NamesTarget.target_object`."""
        target = self._ask("target_object")
        return None if target is None else str(target)

    def task_things(self) -> frozenset[str] | None:
        """See `NamesTaskThings.task_things`."""
        things = self._ask("task_things")
        return None if things is None else frozenset(map(str, things))


# ---- talking ---------------------------------------------------------------------------------------------


def _spec_and_kind(url: str, image_size: int) -> tuple[EnvironmentSpec, WorldKind]:
    with ExitStack() as opened:
        return spec_from_message(_begin(url, image_size, opened)[1], url)


def _begin(url: str, image_size: int, opened: ExitStack) -> tuple[Any, Any]:
    """A connection, and the description of the world there. Raises InputError."""
    connection = _connect(url, opened)
    try:
        return connection, _ask(connection, url, {"do": "start", "image_size": image_size})
    except WorldLost as lost:
        raise InputError(f"There is no world at {url}: {lost}") from None


def _connect(url: str, opened: ExitStack) -> Any:
    import_websockets(f"A world at {url}")
    key = None
    if file := os.environ.get(KEY_FILE):
        try:
            key = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"{KEY_FILE} is {file}, which cannot be read ({first_line(error)}).") from None
    return connect(url, _WORLD, key, _OPEN_SECONDS, opened)


def _ask(connection: Any, url: str, message: dict[str, Any]) -> Any:
    """The answer's value. Raises InputError for what the world refuses, RuntimeError where the world failed, and
    WorldLost."""
    from websockets.exceptions import ConnectionClosed

    try:
        connection.send(pack(message))
        frame = connection.recv(_ANSWER_SECONDS)
    except (ConnectionClosed, TimeoutError) as error:
        raise WorldLost(f"the connection to the world at {url} was lost ({first_line(error)})") from None
    if isinstance(frame, str):  # a server's last message
        raise WorldLost(f"the connection to the world at {url} was lost: {printable(frame[:300])}")
    answer = unpack(frame)
    if not isinstance(answer, dict) or not {"value", "error"} & set(answer):
        raise InputError(f"The server at {url} is not an Atlas world; if it is a policy server, give it as --policy.")
    if "error" in answer:
        text = printable(str(answer["error"])[-4000:])
        raise InputError(text) if answer.get("input") else RuntimeError(f"the world at {url} failed:\n{text}")
    return answer["value"]
