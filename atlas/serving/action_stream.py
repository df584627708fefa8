"""Actions at the robot's rate from a slower policy: the next chunk is requested while the current one is executed.

with AtlasClient(url, execute=16) as client, ActionStream(client) as stream:
    while True:
        robot.send(stream.step(observe()))  # once a control step
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from atlas.data.sampling.history import SeenFrames
from atlas.errors import InputError
from atlas.rollout.actor import Actor, FollowingActor, history_of
from atlas.rollout.chunk_timeline import Blend, ChunkTimeline, RunningChunk
from atlas.types import Observation

_EPISODE = 0  # the only episode's number
_RECENT_DELAYS = 10  # the longest of these is the delay expected of the next answer


class ActionStream:
    """One episode of an actor, one action at a time.

    `step` waits only where no action is planned for the current step: before the first chunk, and where an answer takes
    longer than the remaining actions last. The stream counts the steps that an answer takes and drops the actions for
    steps that have passed by then, as `evaluation.delay_ms` does in a simulator.
    """

    def __init__(self, actor: Actor, ask_at: int | None = None, blend: Blend = None, seed: int = 0) -> None:
        """actor: its `plan` gives whole chunks. ask_at: how many actions are left when the next chunk is requested;
        None: half of the chunk. blend: the previous chunk's weight where two chunks overlap; None: 0; guided: the actor
        makes the new chunk continue the rest of the previous one, and expects the longest of the recent delays.

        Raises InputError for numbers out of range, and for an actor that cannot be guided.
        """
        weight = 0.0 if blend in (None, "guided") else float(blend)
        if (ask_at is not None and ask_at < 1) or not 0 <= weight < 1:
            raise InputError(f"ask_at must be at least 1, and blend from 0 to below 1; got {ask_at} and {blend}.")
        if blend == "guided" and not (isinstance(actor, FollowingActor) and actor.follows):
            raise InputError(
                "blend is guided, which is for policies that make actions from noise, such as those with a "
                "flow-matching head, here or behind an Atlas server; this one does not. Give a weight instead, such as "
                "0.3."
            )
        self._actor, self._ask_at, self._blend, self._guided = actor, ask_at, weight, blend == "guided"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asking")
        self._pending: Future[np.ndarray] | None = None
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        """Begin an episode, with nothing planned. Waits for an answer that is still on its way, and drops it."""
        if self._pending is not None:
            self._pending.exception()
        self._pending = None
        self._timeline = ChunkTimeline(self._blend)
        self._now = self._requested_at = 0
        self.delays: list[int] = []  # steps from requesting a chunk to having it; the first chunk does not count
        self.waits = 0  # steps for which nothing was planned, except the first
        self._frames = SeenFrames(history_of(self._actor))
        self._actor.reset(_EPISODE, seed)

    def step(self, observation: Observation) -> np.ndarray:
        """The action [A] of this step, in the ActionSpec's units. An actor that looks at earlier frames sees those of
        earlier steps. Raises what the actor raises."""
        self._frames.add(observation)
        observation = self._frames.latest()
        if self._pending is not None and self._pending.done():
            self._take()
        if self._left <= 0:
            self.waits += self._now > 0
            if self._pending is None:
                self._request(observation)
            while self._left <= 0:
                self._take()
                if self._left <= 0:  # all of it was for steps that have passed
                    self._request(observation)
        if self._pending is None and self._left <= self._threshold:
            self._request(observation)
        actions = self._timeline.take(self._now, 1)
        assert actions is not None
        self._now += 1
        action: np.ndarray = actions[0]
        return action

    def close(self) -> None:
        """Wait for an answer that is on its way, and end the thread."""
        self._thread.shutdown(wait=True)

    def __enter__(self) -> ActionStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _left(self) -> int:
        return self._timeline.end - self._now

    def _request(self, observation: Observation) -> None:
        self._requested_at = self._now
        rest = self._timeline.take(self._now, self._left) if self._guided and self._left > 0 else None
        if rest is None:
            self._pending = self._thread.submit(lambda: self._actor.plan({_EPISODE: observation})[_EPISODE])
            return
        actor, running = self._actor, RunningChunk(rest, max(self.delays[-_RECENT_DELAYS:], default=0))
        assert isinstance(actor, FollowingActor)
        self._pending = self._thread.submit(
            lambda: actor.plan_following({_EPISODE: observation}, {_EPISODE: running})[_EPISODE]
        )

    def _take(self) -> None:
        """Wait for the requested chunk, and put it on the timeline."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        chunk = pending.result()
        if not len(chunk):
            raise InputError("The policy has no more actions: the episode is over.")
        if self._now > self._requested_at:
            self.delays.append(self._now - self._requested_at)
        self._threshold = self._ask_at if self._ask_at is not None else max(1, len(chunk) // 2)
        if self._now - self._requested_at < len(chunk):
            self._timeline.add(chunk, self._requested_at, self._now)
