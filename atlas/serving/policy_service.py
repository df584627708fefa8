"""One policy for many clients: waiting requests are planned together, and each session has its own episode."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from atlas.errors import InputError
from atlas.policies.processor import PolicyProcessor
from atlas.rollout.actor import FollowingActor
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.chunk_timeline import RunningChunk
from atlas.types import Observation

logger = logging.getLogger(__name__)

_LIVELY_SECONDS = 1.0  # a session that sent a request within this time may send another at any moment


class PolicyFailure(Exception):
    """The policy failed to plan; the text is for clients."""


class ServedActor(Protocol):
    """The part of a ChunkExecutor that a service uses."""

    @property
    def processor(self) -> PolicyProcessor: ...

    def reset(self, episode: int, seed: int) -> None: ...

    def forget(self, episode: int) -> None: ...

    def plan(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]: ...


@dataclass(frozen=True)
class Answer:
    """A session's next actions, and the time they took."""

    actions: np.ndarray  # float32 [n, A], in the ActionSpec's units
    infer_ms: float  # the policy's time, for all sessions that were planned together
    waited_ms: float  # from the request until the policy began
    together: int  # sessions that were planned together


@dataclass
class _Request:
    session: int
    observation: Observation
    running: RunningChunk | None
    answer: asyncio.Future[Answer]
    requested_at: float


@dataclass
class _Session:
    requested_at: float = field(default=-_LIVELY_SECONDS)  # the time of its last request
    seed: int | None = 0  # of the episode to begin before the next plan; None while an episode runs
    waiting: bool = False


class PolicyService:
    """Plans for all waiting sessions together, in a thread of its own.

    A request is planned at once if the policy is free and no other session is expected to send one. Otherwise it is
    planned with all requests that arrived while the policy was busy, and waits at most `wait_ms` for the sessions that
    sent requests recently.

        async with PolicyService(actor) as service:
            session = service.open()
            answer = await service.act(session, observation)
            service.close(session)
    """

    def __init__(self, actor: ServedActor, most: int = 32, wait_ms: float = 2.0, sessions: int = 100) -> None:
        """most: how many sessions are planned together. sessions: how many may be open at a time."""
        self._actor, self._most, self._wait, self._limit = actor, most, wait_ms / 1000, sessions
        self._sessions: dict[int, _Session] = {}
        self._gone: list[int] = []  # to be forgotten by the actor
        self._requests: deque[_Request] = deque()
        self._work = asyncio.Event()
        self._opened = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PolicyService:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)
        for request in self._requests:
            request.answer.cancel()

    @property
    def processor(self) -> PolicyProcessor:
        return self._actor.processor

    @property
    def full(self) -> bool:
        """Whether no further session can be opened."""
        return len(self._sessions) >= self._limit

    def open(self) -> int:
        """The number of a new session, whose first episode has seed 0. Raises InputError where all sessions are
        taken."""
        if self.full:
            raise InputError(f"All {self._limit} sessions of this server are taken; try again later.")
        self._opened += 1
        self._sessions[self._opened] = _Session()
        return self._opened

    def reset(self, session: int, seed: int = 0) -> None:
        """Begin an episode. seed: for the random numbers that the policy draws."""
        self._sessions[session].seed = seed

    def close(self, session: int) -> None:
        """End a session."""
        if self._sessions.pop(session, None) is not None:
            self._gone.append(session)
            self._work.set()

    @property
    def follows(self) -> bool:
        """Whether a chunk can continue the rest of the previous one."""
        return isinstance(self._actor, FollowingActor) and self._actor.follows

    @property
    def validated_execute(self) -> int | None:
        """See `Policy`."""
        return self._actor.validated_execute if isinstance(self._actor, ChunkExecutor) else None

    async def act(self, session: int, observation: Observation, running: RunningChunk | None = None) -> Answer:
        """The session's next actions. running: the chunk to continue, where the policy `follows`. Raises InputError
        where the session has an unanswered request, PolicyFailure where the policy fails."""
        state = self._sessions[session]
        if state.waiting:
            raise InputError("This session's last request is not answered yet; wait for the answer, then ask again.")
        state.requested_at, state.waiting = time.monotonic(), True
        request = _Request(
            session, observation, running, asyncio.get_running_loop().create_future(), state.requested_at
        )
        self._requests.append(request)
        self._work.set()
        try:
            return await request.answer
        finally:
            state.waiting = False

    # ---- planning ----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            await self._work.wait()
            await self._gather()
            self._work.clear()
            requests = [self._requests.popleft() for _ in range(min(self._most, len(self._requests)))]
            if self._requests:
                self._work.set()
            await self._plan([request for request in requests if not request.answer.done()])

    async def _gather(self) -> None:
        """Wait for the expected requests, until the oldest request has waited long enough."""
        while self._requests and len(self._requests) < min(self._most, self._expected()):
            left = self._requests[0].requested_at + self._wait - time.monotonic()
            self._work.clear()
            try:
                await asyncio.wait_for(self._work.wait(), max(0.0, left))
            except asyncio.TimeoutError:
                return

    def _expected(self) -> int:
        since = time.monotonic() - _LIVELY_SECONDS
        return sum(session.requested_at >= since for session in self._sessions.values())

    async def _plan(self, requests: list[_Request]) -> None:
        gone, self._gone = self._gone, []
        new_episodes = {}
        for request in requests:
            session = self._sessions.get(request.session)
            if session is not None and session.seed is not None:
                new_episodes[request.session], session.seed = session.seed, None
        observations = {request.session: request.observation for request in requests}
        running = {request.session: request.running for request in requests if request.running is not None}
        loop = asyncio.get_running_loop()
        try:
            start, planned, took = await loop.run_in_executor(
                self._thread, self._ask, gone, new_episodes, observations, running
            )
        except Exception as error:  # the sessions get an error, and the service goes on
            logger.exception("The policy failed")
            for request in requests:
                _fail(request, PolicyFailure(f"the policy failed ({type(error).__name__}: {error})"))
            return
        for request in requests:
            if request.answer.done():
                continue
            actions = planned[request.session]
            if not np.isfinite(actions).all():
                _fail(request, PolicyFailure("the policy's actions are not finite numbers, and are not sent"))
                continue
            waited = 1000 * (start - request.requested_at)
            request.answer.set_result(Answer(actions, 1000 * took, waited, len(requests)))

    def _ask(
        self,
        gone: list[int],
        new_episodes: Mapping[int, int],
        observations: Mapping[int, Observation],
        running: Mapping[int, RunningChunk],
    ) -> tuple[float, dict[int, np.ndarray], float]:
        """Return when the policy began, its plans, and the seconds it took. Runs in the policy's thread."""
        for session in gone:
            self._actor.forget(session)
        for session, seed in new_episodes.items():
            self._actor.reset(session, seed)
        start = time.monotonic()
        planned: dict[int, np.ndarray] = {}
        if running:
            assert isinstance(self._actor, FollowingActor)
            planned = self._actor.plan_following(observations, running)
        elif observations:
            planned = self._actor.plan(observations)
        return start, planned, time.monotonic() - start


def _fail(request: _Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def failed(error: Exception) -> str:
    """The message to a client about a fault of the server. Logs an unexpected error."""
    if isinstance(error, asyncio.TimeoutError):
        return "The server failed: the policy took too long."
    if not isinstance(error, PolicyFailure):
        logger.error("A request failed", exc_info=error)
        return f"The server failed ({type(error).__name__}); its log says more."
    return f"The server failed: {error}."
