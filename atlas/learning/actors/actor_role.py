"""`--role actor`: plays with the learner's weights, and sends the experience until the learner has enough."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack

import numpy as np
import torch

from atlas.config import Config, SacBaseConfig
from atlas.environments.rendering import RenderingGPU, render_on
from atlas.learning.actors.learner_link import ActorEnd
from atlas.learning.actors.messages import Address, Experience, Taken, Weights, Welcome, WhoAreYou
from atlas.learning.boards.part_trackers import finish_with, part_tracker
from atlas.learning.explorer import EpisodeLog, Explorer
from atlas.learning.run_parts import RESIDUAL, View, begun_view, open_world, told_to_actors
from atlas.learning.sac_learner import Piece
from atlas.learning.sac_run import BehaviourPolicy, piece_of
from atlas.system.process_control.threads import one_thread
from atlas.tracking import RunTracker

logger = logging.getLogger(__name__)

_MOST_ACTORS = 10_000  # episode numbers are interleaved, so that no two actors play the same episode
_UNANSWERED = 4  # unanswered pieces at which an actor waits for the learner


def act(
    config: Config, env: str, learner: Address, key: str | None, checkpoint: str | None = None, name: str = "sac"
) -> int:
    """Play until the learner has enough; return the number of steps played. name: of the settings, see `learn_here`.

    Raises InputError if the learner refuses this actor, LearnerGone (exit 1) if none answers.
    """
    settings: SacBaseConfig = getattr(config.learning, name)
    with ExitStack() as held, one_thread():
        view = begun_view(config, name, env, checkpoint)
        end = ActorEnd(learner, key, told_to_actors(view, env), settings.connect_timeout)
        held.callback(end.close)
        welcome = end.hello()
        render_on(RenderingGPU.first_shown())
        world = open_world(env, view, config, name == RESIDUAL)
        held.callback(world.close)
        tracker = part_tracker(config, "actor" if end.actor == 0 else f"actor-{end.actor}", 0)
        finish_with(held, tracker)
        explorer = Explorer(world, config.seed, end.actor, _MOST_ACTORS, limit=settings.episode_steps)
        return _Player(view, settings, config.seed, end, welcome, explorer, tracker).play()


class _Player:
    def __init__(
        self,
        view: View,
        settings: SacBaseConfig,
        seed: int,
        end: ActorEnd,
        welcome: Welcome,
        world: Explorer,
        board: RunTracker,
    ) -> None:
        self.board = board
        self.view, self.settings, self.end, self.world = view, settings, end, world
        self.behaviour = BehaviourPolicy(view, settings, seed, end.actor)
        self.log = EpisodeLog()
        self.unsafe: deque[Experience] = deque()  # sent, but not in a checkpoint of the learner yet
        self.sent, self.arrived = -1, -1
        self.elsewhere = welcome.steps  # the steps of all actors, as last reported by the learner
        self.own_then = 0  # this actor's own steps at that time
        self.replay_size, self.done = 0, False
        self._load_weights(welcome.weights)

    def play(self) -> int:
        pieces: list[Piece] = []
        self.behaviour.begin(self.world.episodes)
        row = self.view.look(self.world.observation)
        first = row
        while not self.done:
            scaled = self.behaviour.act(row, self.steps)
            after, ended = self.world.step(self.view.in_units(scaled))
            pieces.append(piece_of(first, scaled, after, self.view))
            self.log.decided(after.actions)
            first = {}
            if ended is not None or len(pieces) >= self.settings.steps_per_message:
                self._send(pieces, ended is not None)
                pieces = []
            if ended is not None:
                exploring = self.behaviour.exploring(self.steps)
                self.board.log(self.log.ended(ended, exploring, self.replay_size), self.log.steps)
                self.behaviour.begin(self.world.episodes)
            row = self.view.look(self.world.observation)
            if not pieces:
                first = row
            self._listen(0)
            while not self.done and self.sent - self.arrived >= _UNANSWERED:
                self._listen(1.0)
        return self.log.steps

    @property
    def steps(self) -> int:
        """The steps of all actors, as far as this one knows."""
        return self.elsewhere + self.log.steps - self.own_then

    def _send(self, pieces: list[Piece], ended: bool) -> None:
        self.sent += 1
        joined = _joined(pieces)
        message = Experience(self.end.actor, self.sent, int(ended), joined)
        self.unsafe.append(message)
        self.end.send(message)

    def _listen(self, seconds: float) -> None:
        """Handle the learner's messages; reconnect if it is silent for too long."""
        while (message := self.end.receive(seconds)) is not None:
            if isinstance(message, Weights):
                self._load_weights(message.weights)
            elif isinstance(message, WhoAreYou):
                self._resend_after(self.end.hello())
            elif isinstance(message, Taken):
                self.arrived, self.done = message.arrived, message.done
                self.elsewhere, self.own_then = message.steps, self.log.steps
                self.replay_size = message.replay_size
                while self.unsafe and self.unsafe[0].number <= message.safe:
                    self.unsafe.popleft()
            seconds = 0
        if not self.done and self.end.silent and self.sent > self.arrived:
            self._resend_after(self.end.hello())

    def _resend_after(self, welcome: Welcome) -> None:
        """Resend the pieces that a restarted learner lacks in its checkpoint."""
        logger.warning("The learner is there again; it lacks pieces from %d on", welcome.arrived + 1)
        self.arrived = welcome.arrived
        self._load_weights(welcome.weights)
        for message in self.unsafe:
            if message.number > welcome.arrived:
                self.end.send(message)

    def _load_weights(self, weights: dict[str, np.ndarray]) -> None:
        self.view.load_weights({name: torch.tensor(values) for name, values in weights.items()})


def _joined(pieces: list[Piece]) -> Piece:
    """Consecutive pieces joined into one that is complete in itself."""
    last = pieces[-1]
    return Piece(
        first=pieces[0].first,
        actions=np.concatenate([piece.actions for piece in pieces]),
        rewards=np.concatenate([piece.rewards for piece in pieces]),
        seen_then={name: np.concatenate([piece.seen_then[name] for piece in pieces]) for name in last.seen_then},
        steps=sum(piece.steps for piece in pieces),
        terminated=last.terminated,
        over=True,
    )
