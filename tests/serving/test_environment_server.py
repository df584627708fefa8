"""A world behind a websocket is the world that it is here."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'atlas-vla[gym]'")
pytest.importorskip("websockets", reason="websockets is not installed: pip install 'atlas-vla[serve]'")

from atlas.environments.catalog import environment_spec, make_environment
from atlas.environments.environment import FeelsContacts, NamesTarget, NamesTaskThings, Simulator
from atlas.errors import InputError
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.evaluation import Evaluator
from atlas.serving.access import Access, Limits
from atlas.serving.protocols.environment_protocol import serving_worlds
from atlas.system.process_control.notices import said_once
from atlas.types import Observation
from tests.bad_input.table import refused
from tests.rollout.still_actor import Still
from tests.serving.running import TellingActor, running

TOY = "gym:tests.rollout.gym_toy:Toy-v0?success=solved&instruction=go right"


@contextmanager
def served(env: str) -> Iterator[str]:
    """Worlds of this name, served by a thread of this process; gives the address."""
    ready, found = threading.Event(), {}

    async def serve() -> None:
        async with serving_worlds(env, Access(port=0), Limits()) as port:
            found.update(port=port, loop=asyncio.get_running_loop(), stop=asyncio.Event())
            ready.set()
            await found["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield f"ws://127.0.0.1:{found['port']}"
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()


class KillsOnce(Still):
    """Kills the world's process when it is first asked."""

    def __init__(self) -> None:
        super().__init__(2)
        self.killed = False

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        if not self.killed:
            self.killed = True
            for process in multiprocessing.active_children():
                if process.name.startswith("world"):
                    process.kill()
        return super().plan(observations)


def test_a_world_at_an_address_plays_like_the_one_here(caplog: pytest.LogCaptureFixture) -> None:
    """Each episode with its own start; one whose world dies is begins again, and named; what the world refuses is
    said, and the next message works."""
    here = make_environment(TOY, 12)
    with served(TOY) as address:
        there = make_environment(address, 12)
        assert environment_spec(address, 12) == there.spec and not isinstance(there, Simulator)
        for field in ("instructions", "cameras", "image_size", "proprio_dim", "action_spec", "action_bounds", "judged"):
            assert getattr(there.spec, field) == getattr(here.spec, field)
        with pytest.raises(InputError, match="it cannot take 'go left'"):
            there.reset(seed=1, instruction="go left")
        for seed in (5, 4 * 10**12):
            seen = [env.reset(seed=seed, instruction="go right") for env in (here, there)]
            assert np.array_equal(seen[0].images["pixels_top"], seen[1].images["pixels_top"])
            assert np.array_equal(seen[0].proprio, seen[1].proprio) and seen[1].instruction == "go right"
            results = [env.step(np.array([0.7, 0.0])) for env in (here, there)]
            assert results[0].reward == results[1].reward and results[1].executed is not None
            assert results[1].executed.tolist() == [0.25, 0.0]
        with pytest.raises(InputError, match="not finite"):
            there.step(np.array([np.nan, 0.0]))
        assert there.step(np.zeros(2), observe=False).observation is None
        there.close()

        outcomes = {}
        for name, actor in ((TOY, Still(2)), (address, KillsOnce())):
            evaluator = Evaluator(name, 12, workers=1)
            with caplog.at_level(logging.WARNING):
                outcomes[name] = evaluator.run(actor, plan_episodes(name, 2, "report", 0), title=None)
            evaluator.close()
        assert outcomes[TOY] == outcomes[address]
        assert "in episode 0" in caplog.text and "begins again" in caplog.text


def test_a_simulator_at_an_address_is_one(caplog: pytest.LogCaptureFixture) -> None:
    """Its server says once if it renders in software."""
    pytest.importorskip("robosuite")
    with caplog.at_level("INFO"), said_once(), served("cubes") as address:
        there = make_environment(address, 16)
        assert isinstance(there, Simulator)
        there.reset(seed=3, instruction="pick up the red cube")
        state, places = there.get_state(), there.positions()
        there.step(np.array([1.0, 0, 0, 0, 0, 0, 0]))
        moved = there.positions()["hand"]
        there.set_state(state)

        assert np.allclose(there.positions()["hand"], places["hand"]) and not np.allclose(moved, places["hand"])
        assert there.picture(64).shape == (64, 64, 3)
        assert (
            isinstance(there, FeelsContacts) and isinstance(there, NamesTarget) and isinstance(there, NamesTaskThings)
        )
        assert (there.contact_forces(), there.target_object(), there.task_things()) == ({}, "red cube", None)
        again = there.reset(init_state=state, instruction="pick up the red cube")
        assert again.images["agentview"].shape == (16, 16, 3)
        there.close()
    assert len([line for line in caplog.messages if "'cubes' is rendered in software" in line]) == 1 or list(
        Path("/dev").glob("nvidia[0-9]*")
    )


def test_an_address_without_a_world_is_refused(tmp_path: Path) -> None:
    nowhere = ["eval", "--checkpoint", "x", "--env", "ws://127.0.0.1:9"]
    refused(tmp_path, nowhere, "There is no world at ws://127.0.0.1:9", "atlas environment serve")
    with running(TellingActor()) as port, pytest.raises(InputError, match="if it is a policy server"):
        environment_spec(f"ws://127.0.0.1:{port}", 16)
    refused(tmp_path, ["environment", "serve", "--env", "kitchen"], "Unknown environment 'kitchen'")
