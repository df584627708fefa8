"""One policy for many: what waits is planned together, and nobody's episode depends on another's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from atlas.errors import InputError
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.serving.policy_service import PolicyFailure, PolicyService
from tests.rollout.test_executor import acting, play, seen_by
from tests.serving.running import TellingActor, seen


def served(
    actor: TellingActor | ChunkExecutor, work: Callable[[PolicyService], Awaitable[None]], **limits: float
) -> None:
    async def run() -> None:
        async with PolicyService(actor, **limits) as service:  # type: ignore[arg-type]
            await asyncio.wait_for(work(service), 20)

    asyncio.run(run())


def test_sessions_have_episodes_of_their_own() -> None:
    async def work(service: PolicyService) -> None:
        first, second = service.open(), service.open()
        service.reset(second, seed=9)
        for asked in (1, 2):
            answers = [await service.act(session, seen()) for session in (first, second)]
            assert [answer.actions[0, :2].tolist() for answer in answers] == [[0, asked], [9, asked]]
        service.reset(first, seed=4)
        assert (await service.act(first, seen())).actions[0, :2].tolist() == [4, 1]

    served(TellingActor(), work)


def test_what_waits_while_the_policy_is_busy_is_planned_together() -> None:
    actor = TellingActor(seconds=0.05)

    async def work(service: PolicyService) -> None:
        sessions = [service.open() for _ in range(9)]
        answers = await asyncio.gather(*(service.act(session, seen(session)) for session in sessions))
        assert [int(answer.actions[0, 2]) for answer in answers] == sessions  # each has its own

    served(actor, work, wait_ms=0, most=6)
    assert sum(actor.batches) == 9 and max(actor.batches) <= 6 and len(actor.batches) <= 3


def test_a_request_waits_for_those_that_have_asked_lately_but_not_for_long() -> None:
    actor = TellingActor()

    async def work(service: PolicyService) -> None:
        sessions = [service.open() for _ in range(3)]

        async def act(session: int, after: float) -> float:
            await asyncio.sleep(after)
            return (await service.act(session, seen())).waited_ms

        await asyncio.gather(*(act(session, 0) for session in sessions))
        actor.batches.clear()
        await asyncio.gather(*(act(session, 0.02 * session) for session in sessions))
        assert actor.batches == [3]
        waited = await act(sessions[0], 0)  # nobody else comes
        assert 400 <= waited < 5000

    served(actor, work, wait_ms=500)


def test_who_is_alone_waits_for_nobody() -> None:
    async def work(service: PolicyService) -> None:
        service.open()  # which never asks
        session = service.open()
        for _ in range(3):
            assert (await service.act(session, seen())).waited_ms < 500

    served(TellingActor(), work, wait_ms=1000)


def test_sessions_that_are_closed_are_forgotten() -> None:
    actor = TellingActor()

    async def work(service: PolicyService) -> None:
        for _ in range(20):
            session = service.open()
            await service.act(session, seen())
            service.close(session)
        waiting = service.open()
        asking = asyncio.create_task(service.act(waiting, seen()))
        await asyncio.sleep(0)
        service.close(waiting)
        asking.cancel()
        last = service.open()
        await service.act(last, seen())
        assert set(actor.seeds) == {last}

    served(actor, work, sessions=2)


def test_there_are_no_more_sessions_than_allowed() -> None:
    async def work(service: PolicyService) -> None:
        session = service.open()
        service.open()
        assert service.full
        with pytest.raises(InputError, match="All 2 sessions"):
            service.open()
        service.close(session)
        service.open()

    served(TellingActor(), work, sessions=2)


def test_a_policy_that_fails_fails_for_those_that_asked_and_goes_on() -> None:
    async def work(service: PolicyService) -> None:
        session = service.open()
        with pytest.raises(PolicyFailure, match="ArithmeticError: as it was told to"):
            await service.act(session, seen(instruction="fail"))
        with pytest.raises(PolicyFailure, match="not finite"):
            await service.act(session, seen(instruction="nan"))
        assert len((await service.act(session, seen())).actions)

    served(TellingActor(), work)


def test_a_session_asks_once_at_a_time() -> None:
    async def work(service: PolicyService) -> None:
        session = service.open()
        first = asyncio.create_task(service.act(session, seen()))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="not answered yet"):
            await service.act(session, seen())
        await first

    served(TellingActor(seconds=0.02), work)


@pytest.mark.parametrize("head", ["regression", "flow"])
def test_a_policys_actions_are_those_it_has_without_a_service(head: str) -> None:
    policy = acting(head)
    expected = play(ChunkExecutor(policy, execute=2), {0: 1, 1: 2, 2: 3}, rounds=3)

    async def work(service: PolicyService) -> None:
        async def episode(seed: int) -> np.ndarray:
            session = service.open()
            service.reset(session, seed)
            return np.concatenate([(await service.act(session, seen_by(seed))).actions for _ in range(3)])

        found = await asyncio.gather(*(episode(seed) for seed in (3, 1, 2)))
        for seed, actions in zip((3, 1, 2), found, strict=True):
            np.testing.assert_allclose(actions, expected[seed], rtol=1e-4, atol=1e-4)

    served(ChunkExecutor(policy, execute=2), work)
