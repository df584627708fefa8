"""Closed-loop evaluation: the policy acts in the world, and what it achieves is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from atlas.cores import available_cores
from atlas.errors import InputError
from atlas.policy.processor import PolicyProcessor
from atlas.progress import progress_bar
from atlas.rollout.environment import EnvironmentSpec
from atlas.rollout.executor import ChunkExecutor
from atlas.rollout.report import EpisodeOutcome, EvaluationReport
from atlas.rollout.seeds import Purpose, episode_seed
from atlas.rollout.video import film
from atlas.rollout.workers import EnvironmentPool, Segment
from atlas.rollout.worlds import environment_spec
from atlas.tracking.media import write_mp4
from atlas.types import Observation


@dataclass(frozen=True)
class PlannedEpisode:
    number: int
    seed: int
    instruction: str


@dataclass(frozen=True)
class Probe:
    """Changes what the policy is told, to see what it relies on; the scoring stays the same."""

    shuffle_instructions: bool = False  # the next of the environment's instructions in place of the right one
    blind: bool = False  # black images

    def apply(self, observation: Observation, instructions: Sequence[str]) -> Observation:
        if self.shuffle_instructions:
            other = instructions[(instructions.index(observation.instruction) + 1) % len(instructions)]
            observation = replace(observation, instruction=other)
        if self.blind:
            black = {camera: np.zeros_like(image) for camera, image in observation.images.items()}
            observation = replace(observation, images=black)
        return observation


def plan_episodes(env: str, episodes: int, purpose: Purpose, seed: int) -> list[PlannedEpisode]:
    """Episodes in turn over the environment's instructions, with seeds that no other purpose uses."""
    instructions = environment_spec(env).instructions
    return [
        PlannedEpisode(i, episode_seed(purpose, seed, i), instructions[i % len(instructions)]) for i in range(episodes)
    ]


class Evaluator:
    """Runs episodes of one environment in worker processes, which live until `close`."""

    def __init__(self, env: str, image_size: int, workers: int | None = None) -> None:
        self.env = env
        self._instructions = environment_spec(env).instructions
        self._pool = EnvironmentPool(env, image_size, workers or available_cores())

    def close(self) -> None:
        self._pool.close()

    def run(
        self,
        executor: ChunkExecutor,
        episodes: Sequence[PlannedEpisode],
        probe: Probe | None = None,
        videos: int = 0,
        video_dir: Path | None = None,
        fps: float = 20.0,
        title: str | None = "evaluating",
    ) -> list[EpisodeOutcome]:
        """Run the episodes, as many at once as there are workers, the policy seeing those that wait together.

        The first `videos` of them are filmed into `video_dir`. Outcomes come in the order of `episodes`.
        """
        probe = probe or Probe()
        waiting = list(reversed(episodes))
        playing: dict[int, PlannedEpisode] = {}
        segments: dict[int, list[Segment]] = {}
        outcomes: dict[int, EpisodeOutcome] = {}
        filmed = {e.number for e in episodes[:videos]} if video_dir is not None else set()

        def begin(worker: int) -> None:
            if waiting:
                episode = waiting.pop()
                playing[worker], segments[worker] = episode, []
                executor.reset(worker, episode.seed)
                self._pool.reset(worker, episode.seed, episode.instruction, episode.number in filmed)

        with one_thread(), progress_bar(title, len(episodes)) as advance:
            for worker in range(len(self._pool)):
                begin(worker)
            while playing:
                seen = {}
                for worker, segment in self._pool.ready().items():
                    segments[worker].append(segment)
                    if segment.observation is None:
                        episode = playing.pop(worker)
                        outcomes[episode.number] = _outcome(episode, segments[worker], video_dir, fps)
                        advance(1)
                        begin(worker)
                    else:
                        seen[worker] = probe.apply(segment.observation, self._instructions)
                if seen:
                    for worker, actions in executor.plan(seen).items():
                        self._pool.run(worker, actions)
        return [outcomes[e.number] for e in episodes]


def evaluate_checkpoint(
    checkpoint: str | Path,
    env: str,
    episodes: int = 100,
    seed: int = 0,
    execute: int | None = None,
    ensemble: float | None = None,
    instruction_shuffle: bool = False,
    blind: bool = False,
    video: Path | None = None,
    workers: int | None = None,
) -> EvaluationReport:
    """Evaluate a saved policy on episodes that neither training nor its selection ever used.

    execute: actions of each chunk that are executed (None: half of it). video: a folder for films of all episodes.
    Raises InputError for an unknown environment, a policy that does not fit it, or a checkpoint that is damaged.
    """
    from atlas.policy import AtlasPolicy

    if episodes < 1:
        raise InputError(f"--episodes must be at least 1, got {episodes}.")
    planned = plan_episodes(env, episodes, "report", seed)
    policy = AtlasPolicy.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    check_agreement(policy.processor, environment_spec(env))
    executor = ChunkExecutor(policy, execute or max(1, policy.processor.action_horizon // 2), ensemble)
    workers = min(workers or available_cores(), episodes)
    evaluator = Evaluator(env, policy.processor.camera_size, workers)
    try:
        outcomes = evaluator.run(
            executor,
            planned,
            Probe(instruction_shuffle, blind),
            videos=episodes if video is not None else 0,
            video_dir=video,
            fps=policy.processor.action_spec.control_hz,
            title=f"evaluating in '{env}'",
        )
    finally:
        evaluator.close()
    return EvaluationReport(env, str(checkpoint), tuple(outcomes))


def check_agreement(processor: PolicyProcessor, spec: EnvironmentSpec) -> None:
    """Refuse to run a policy in a world that speaks another language of cameras, proprio or actions.

    Raises InputError that names what differs.
    """
    differing = []
    missing = [camera for camera in processor.cameras if camera not in spec.cameras]
    if missing:
        differing.append(f"the policy needs the cameras {missing}, the environment has {list(spec.cameras)}")
    if processor.proprio_dim != spec.proprio_dim:
        differing.append(
            f"the policy's proprio has {processor.proprio_dim} numbers, the environment's {spec.proprio_dim}"
        )
    if processor.action_spec != spec.action_spec:
        differing.append(f"the policy's actions are {processor.action_spec}, the environment's {spec.action_spec}")
    if differing:
        raise InputError(f"The policy does not fit the environment '{spec.name}': {'; '.join(differing)}.")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: a policy that waits for its simulators must not spin on the cores they need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _outcome(
    episode: PlannedEpisode, segments: Sequence[Segment], video_dir: Path | None, fps: float
) -> EpisodeOutcome:
    success = segments[-1].success
    frames = [frame for segment in segments for frame in segment.frames]
    path = None
    if frames and video_dir is not None:
        outcome = "success" if success else "failure"
        path = video_dir / f"episode_{episode.number:03d}_{episode.instruction.replace(' ', '_')}_{outcome}.mp4"
        write_mp4(path, np.stack(film(frames, episode.instruction, success, fps)), fps)
    return EpisodeOutcome(
        instruction=episode.instruction,
        seed=episode.seed,
        success=success,
        reward=sum(s.reward for s in segments),
        length=sum(s.steps for s in segments),
        video=None if path is None else str(path),
    )
