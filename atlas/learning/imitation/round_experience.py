"""The experience of one round, stored episode by episode: a round that was stopped keeps its episodes and resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas.data.episode import RecordedEpisode
from atlas.environments.catalog import environment_spec
from atlas.learning.explorer import Ended, summary_aliases
from atlas.learning.imitation.kept_episodes import KeptEpisodes
from atlas.rollout.episode_plan import PlannedEpisode
from atlas.rollout.experience import PlayedEpisode
from atlas.rollout.success_report import EpisodeOutcome
from atlas.system.documents import read_json
from atlas.system.files import write_json

_FACTS, _PLAYED = "facts.json", "played.jsonl"


class RoundExperience:
    """The episodes of a round, in its folder.

    <round>/episode_…     those that are kept, see KeptEpisodes
            played.jsonl  a line an episode, whether it is kept or not, once that is done
            facts.json    when all are played
    """

    def __init__(self, folder: Path, env: str, learned_by: str, keeps: Callable[[PlayedEpisode], bool]) -> None:
        self.folder, self._horizon = folder, environment_spec(env).horizon
        self.keeps = keeps
        self._episodes = KeptEpisodes(folder, env, learned_by)
        self._played = _lines(folder / _PLAYED)
        self._begun, self._before = time.monotonic(), len(self._played)

    @property
    def facts(self) -> dict[str, Any] | None:
        """The facts of the round; None if it is not complete."""
        return read_json(self.folder / _FACTS) if (self.folder / _FACTS).exists() else None

    def missing(self, planned: Sequence[PlannedEpisode]) -> list[PlannedEpisode]:
        """The episodes that are still to be played."""
        played = {line["number"] for line in self._played}
        return [episode for episode in planned if episode.number not in played]

    def take(self, planned: PlannedEpisode, played: PlayedEpisode, recorded: RecordedEpisode | None) -> None:
        """Record an episode that is over in played.jsonl, and write it if it is kept."""
        if recorded is not None:
            self._episodes.take(planned.number, recorded)
        assert played.trace is not None
        outcome = played.outcome
        line = {
            "number": planned.number,
            "kept": recorded is not None,
            "success": outcome.success,
            "reward": outcome.reward,
            "length": outcome.length,
            "action_size": float(np.linalg.norm(played.trace.executed, axis=1).mean()),
        }
        self._played.append(line)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _PLAYED).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write the round's facts and metrics, once all episodes are played."""
        self._episodes.finish()
        lines = sorted(self._played, key=lambda line: int(line["number"]))
        rewards, lengths = ([line[name] for line in lines] for name in ("reward", "length"))
        new_steps = sum(line["length"] for line in self._played[self._before :])
        sizes = np.average([line["action_size"] for line in lines], weights=lengths)
        metrics = {
            "episode_reward": float(np.mean(rewards)),
            "max_episode_reward": max(rewards),
            "min_episode_reward": min(rewards),
            "avg_episode_reward_10": float(np.mean(rewards[-10:])),
            "episode_length": float(np.mean(lengths)),
            "avg_episode_length_10": float(np.mean(lengths[-10:])),
            "avg_action_magnitude": float(sizes),
        }
        if new_steps:
            metrics["steps_per_second"] = new_steps / (time.monotonic() - self._begun)
        write_json(
            self.folder / _FACTS,
            {
                "episodes": len(lines),
                "steps": sum(lengths),
                "kept": sum(line["kept"] for line in lines),
                "metrics": metrics,
                "summary": aliases(
                    "Train", [(line["reward"], line["length"], line["success"]) for line in lines], self._horizon
                ),
            },
        )


def aliases(prefix: str, episodes: Sequence[tuple[float, int, bool]], horizon: int) -> dict[str, float]:
    """See `summary_aliases`, for episodes of (reward, length, success); without durations, because several episodes are
    played at a time."""
    return summary_aliases(
        prefix,
        [
            Ended(reward, length, success, not success and length >= horizon, None)
            for reward, length, success in episodes
        ],
    )


def numbers_in(outcomes: Sequence[EpisodeOutcome]) -> list[tuple[float, int, bool]]:
    return [(outcome.reward, outcome.length, outcome.success) for outcome in outcomes]


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, without an incomplete last one."""
    if not file.exists():
        return []
    whole, _, torn = file.read_text().rpartition("\n")
    if torn:
        file.write_text(f"{whole}\n" if whole else "")
    return [json.loads(line) for line in whole.splitlines()]
