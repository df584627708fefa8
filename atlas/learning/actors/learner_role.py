"""`--role learner`: receives experience from actors, learns, and sends them its weights."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from atlas.config import Config, SacBaseConfig
from atlas.errors import InputError
from atlas.learning.actors.learner_link import LearnerEnd
from atlas.learning.actors.messages import Address, Experience, Hello, Taken, Weights, Welcome, WhoAreYou
from atlas.learning.online_run import OnlineRun
from atlas.learning.rank_group import RankGroup, one_device
from atlas.learning.returns import OnlineResult
from atlas.learning.run_parts import told_to_actors
from atlas.learning.sac_learner import SacLearner
from atlas.system.process_control.threads import one_thread
from atlas.training.guards.signals import Interrupted, StopRequest, listening

logger = logging.getLogger(__name__)

_QUIET = 30.0  # seconds of silence after which an actor is named in the log
_AT_ONCE = 20  # updates between two looks for messages


def learn_from_actors(
    config: Config,
    env: str,
    listen: Address,
    key: str | None,
    checkpoint: str | None = None,
    on_listening: Callable[[int], None] = lambda port: None,
    now_and_then: Callable[[], None] = lambda: None,
    name: str = "sac",
) -> OnlineResult:
    """Run SAC on the experience of actors; resumes the same run if it was stopped. name: of the settings, see
    `learn_here`.

    on_listening: called with the port. now_and_then: called while waiting for actors, and between updates.

    Raises InputError, also for a port that is in use; Interrupted after a signal, with a checkpoint written.
    """
    with ExitStack() as held, one_thread(), listening() as stop:
        group = RankGroup(device=one_device(config.distributed))
        run = OnlineRun(config, name, env, held, stop, checkpoint, group)
        end = LearnerEnd(listen, key, told_to_actors(run.view, env))
        held.callback(end.close)
        learner = SacLearner(run)
        hub = _Hub(run, learner, end, stop)
        run.between_episodes = hub.hear_all
        return hub.serve(on_listening, now_and_then)


class _Hub:
    def __init__(self, run: OnlineRun, learner: SacLearner, end: LearnerEnd, stop: StopRequest) -> None:
        self.stop = stop
        assert isinstance(run.settings, SacBaseConfig)
        if run.settings.keep_successes:
            key = f"learning.{run.name}.keep_successes"
            raise InputError(f"{key} is true, but actors elsewhere send no images; leave out --actors and --role.")
        self.run, self.learner, self.end, self.settings = run, learner, end, run.settings
        facts = learner.begun_with
        # {an actor's number: its last piece}: the last that has arrived, and the last that is in a checkpoint.
        self.arrived: dict[int, int] = {int(actor): last for actor, last in facts.get("arrived", {}).items()}
        self.safe = dict(self.arrived)
        self.actors = int(facts.get("actors", 0))  # numbers given out so far
        self.tokens: dict[str, int] = {}  # {an actor's token: its number}, for actors that have said hello
        self.last_heard: dict[int, float] = {}
        self.pushed = learner.sac.updates
        self.waiting: deque[tuple[bytes, Experience]] = deque()  # messages that arrived while episodes were played

    def serve(self, on_listening: Callable[[int], None], now_and_then: Callable[[], None]) -> OnlineResult:
        before, learner = self.run.before(), self.learner
        logger.info("Listening for actors on port %d", self.end.port)
        on_listening(self.end.port)
        if self.run.start_is_unjudged:
            learner.look()  # the policy of the start may remain the best
        saved = learner.steps
        begun = time.monotonic() - learner.seconds
        while not learner.done or (learner.owed > 0 and learner.ended is None):
            self._hear(0.0 if learner.owed > 0 else 0.5)
            learner.learn(min(_AT_ONCE, max(0, learner.owed)))
            if learner.sac.updates - self.pushed >= self.settings.push_interval:
                self.pushed = learner.sac.updates
                self.end.push(Weights(self.pushed, self._weights()))
            learner.seconds = time.monotonic() - begun
            if learner.steps - learner.looked >= self.settings.eval_interval:
                paused = time.monotonic()
                learner.look()
                begun += time.monotonic() - paused
            if self.stop.signal is not None or learner.steps - saved >= self.settings.save_interval:
                saved = learner.steps
                self._save()
            if self.stop.signal is not None:
                raise Interrupted(self.stop.signal)
            self._notice_silence()
            now_and_then()
        if not learner.evaluated:
            learner.look()
        self._save()
        for client, actor in list(self.end.clients()):
            self._acknowledge(client, actor)
        done = learner.steps, learner.episodes, learner.sac.updates, learner.seconds, learner.ended
        return self.run.conclude(before, *done, policy_updates=learner.policy_updates)

    def hear_all(self) -> None:
        """Handle messages between the episodes of an evaluation: welcome actors, and tell the others that the learner
        is alive. Their experience is queued until the evaluation is over."""
        while (received := self.end.receive(0)) is not None:
            client, message = received
            if isinstance(message, Hello):
                self._welcome(client, message)
                self.waiting = deque(each for each in self.waiting if self.end.is_known(each[0]))
            else:
                self.last_heard[message.actor] = time.monotonic()
                self.waiting.append((client, message))
        for client, actor in self.end.clients():
            self._acknowledge(client, actor)

    def _hear(self, seconds: float) -> None:
        """Handle a message; actors that are ahead wait until the updates that are due are made."""
        if self.learner.owed > 2 * _AT_ONCE:
            return
        received = self.waiting.popleft() if self.waiting else self.end.receive(seconds)
        if received is None:
            return
        client, message = received
        if isinstance(message, Hello):
            self._welcome(client, message)
        else:
            self._take(client, message)

    def _welcome(self, client: bytes, hello: Hello) -> None:
        again = 0 <= hello.actor < _LARGEST_NUMBER
        actor = hello.actor if again else self.tokens.setdefault(hello.token, self.actors)
        self.actors = max(self.actors, actor + 1)
        self.end.known(client, actor)
        self.last_heard[actor] = time.monotonic()
        logger.info("Actor %d is there%s", actor, " again" if again else "")
        arrived = self.arrived.get(actor, -1)
        self.end.answer(client, Welcome(actor, arrived, self.learner.steps, self._weights()))

    def _take(self, client: bytes, message: Experience) -> None:
        if not self.end.is_known(client):
            self.end.answer(client, WhoAreYou())  # it knows the learner from before a restart, and will send this again
            return
        last = self.arrived.get(message.actor, -1)
        if message.number == last + 1 and not self.learner.done:
            self.learner.take(message.piece)
            self.learner.episodes += message.episodes
            self.arrived[message.actor] = message.number
        self.last_heard[message.actor] = time.monotonic()
        self._acknowledge(client, message.actor)

    def _acknowledge(self, client: bytes, actor: int) -> None:
        learner = self.learner
        arrived, safe = self.arrived.get(actor, -1), self.safe.get(actor, -1)
        self.end.answer(client, Taken(arrived, safe, learner.steps, learner.replay.decisions, learner.done))

    def _save(self) -> None:
        arrived = {str(actor): last for actor, last in self.arrived.items()}
        self.learner.save({"arrived": arrived, "actors": self.actors})
        self.safe = dict(self.arrived)

    def _notice_silence(self) -> None:
        now = time.monotonic()
        for actor in [actor for actor, then in self.last_heard.items() if now - then > _QUIET]:
            logger.warning("Actor %d has not been heard of for %.0f s; learning goes on", actor, _QUIET)
            del self.last_heard[actor]

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.run.view.weights().items()}


_LARGEST_NUMBER = 10_000
