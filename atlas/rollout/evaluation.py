"""Closed-loop evaluation: an actor acts in the world, and its successes are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from atlas.data.episode import RecordedEpisode
from atlas.environments.catalog import environment_spec
from atlas.environments.environment import EnvironmentSpec
from atlas.environments.perturbations.choices import PerturbationChoice, choose_perturbations
from atlas.environments.rendering import RenderingGPU
from atlas.errors import InputError
from atlas.launch import acting_device
from atlas.policies.processor import PolicyProcessor
from atlas.registry import resolve_policy
from atlas.rollout.actor import AblatedActor, Actor, history_of, image_size_for
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.chunk_timeline import Blend, usual_execute
from atlas.rollout.episode_plan import PlannedEpisode, Purpose, plan_episodes
from atlas.rollout.episode_player import Segment
from atlas.rollout.experience import Keeper, Played, PlayedEpisode, ended
from atlas.rollout.filming.attention_column import Look
from atlas.rollout.filming.film_choice import films_of_episodes
from atlas.rollout.filming.watched_actor import WatchedActor
from atlas.rollout.input_recorder import InputRecorder, RecordedActor
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.traces import Film
from atlas.rollout.transitions import Transition
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.robustness import FEW_EPISODES, by_choice, plan_perturbed
from atlas.rollout.workers import EnvironmentPool, WorkerDied
from atlas.system.paths import check_folder
from atlas.system.process_control.cores import available_cores
from atlas.system.process_control.threads import one_thread
from atlas.system.progress import progress_bar
from atlas.types import Observation

logger = logging.getLogger(__name__)

MOST_WORKERS = 16  # of one process, unless a number was given
_TRIES = 3  # for an episode whose worker dies


class Evaluator:
    """Runs episodes of one environment in worker processes, which live until `close`.

    Each takes memory, also on the GPU. There are as many workers as cores, but no more than episodes, and no more than
    16 unless asked for.
    """

    def __init__(
        self,
        env: str,
        image_size: int,
        workers: int | None = None,
        beat: Callable[[str], None] = lambda what: None,
        gpu: RenderingGPU | None = None,
    ) -> None:
        """beat: called with a description after every piece of an episode and every film. gpu: renders, if given."""
        self.env = env
        self._beat = beat
        self._workers = workers or min(available_cores(), MOST_WORKERS)
        self._pool = EnvironmentPool(env, image_size, 0, gpu)

    def close(self) -> None:
        self._pool.close()

    def run(
        self,
        actor: Actor,
        episodes: Sequence[PlannedEpisode],
        videos: int = 0,
        video_dir: Path | None = None,
        title: str | None = "evaluating",
        looks: Mapping[int, Sequence[Look]] | None = None,
    ) -> list[EpisodeOutcome]:
        """Run the episodes, then film every step of the first `videos` of them into `video_dir`, and the worst in one
        film. Returns the outcomes in the order of `episodes`.

        looks: {an episode's seed: where the policy looked}, as a WatchedActor fills it; drawn into the films.
        """
        filmed = videos if video_dir is not None else 0
        played = self.play(actor, episodes, record=filmed > 0, title=title)
        outcomes = [p.outcome for p in played]
        if video_dir is not None and filmed:
            kept = [(each.number, p.outcome, p.trace) for each, p in zip(episodes[:filmed], played, strict=False)]
            orders, together = films_of_episodes(kept, video_dir, looks or {})
            made = set(self.film([*orders, *together], "filming" if title else None))
            for i, order in enumerate(orders):
                if order.path in made:
                    outcomes[i] = replace(outcomes[i], video=str(order.path))
        return outcomes

    def play(
        self,
        actor: Actor,
        episodes: Sequence[PlannedEpisode],
        record: bool = False,
        title: str | None = "evaluating",
        on_transition: Callable[[PlannedEpisode, Transition], None] | None = None,
        hand_over: Mapping[int, int] | None = None,
        keeper: Keeper | None = None,
        intermediate: bool = False,
    ) -> list[PlayedEpisode]:
        """Run the episodes, as many at once as there are workers; the actor plans for all that wait together.

        record: keep traces for films. on_transition: called with each decision's transition as soon as its actions are
        over, in the order of the episode's decisions. intermediate: transitions with what was seen after every action,
        which takes longer. hand_over: {the episode's number: the number of decisions after
        which the world's expert takes over from the actor}. keeper: is given each episode when it has ended, with what
        was seen in it, where it asks for that of a recorded one. Returns the episodes in the order of `episodes`.
        An episode whose worker dies begins again in another one, with a warning, and its transitions come again. Raises
        WorkerDied where this happens to one episode three times.
        """
        hand_over, handed_over = hand_over or {}, set[int]()
        self._pool.grow(min(self._workers, len(episodes)))
        waiting = list(reversed(episodes))
        playing: dict[int, PlannedEpisode] = {}
        segments: dict[int, list[Segment]] = {}
        shown: dict[int, Observation] = {}
        played: dict[int, PlayedEpisode] = {}
        judged = environment_spec(self.env).judged
        deaths: dict[int, int] = {}

        def answers() -> dict[int, Segment | RecordedEpisode]:
            try:
                return self._pool.answers()
            except WorkerDied as death:
                episode = playing.pop(death.worker, None)
                if episode is not None:
                    deaths[episode.number] = deaths.get(episode.number, 0) + 1
                    if deaths[episode.number] >= _TRIES:
                        raise
                    waiting.append(episode)
                    handed_over.discard(episode.number)
                    logger.warning(
                        "%s, in episode %d (seed %d, '%s'): the episode begins again in another process",
                        *(death, episode.number, episode.seed, episode.instruction),
                    )
                self._pool.restart(death.worker)
                begin(death.worker)
                return {}

        def begin(worker: int) -> None:
            if waiting:
                episode = waiting.pop()
                playing[worker], segments[worker] = episode, []
                actor.reset(worker, episode.seed)
                self._pool.begin(worker, episode, record, on_transition is not None, history_of(actor), intermediate)

        def end(worker: int, recorded: RecordedEpisode | None = None) -> None:
            episode = playing.pop(worker)
            if keeper is not None:
                keeper.take(episode, played[episode.number], recorded)
            advance(1)
            begin(worker)

        with one_thread(), progress_bar(title, len(episodes)) as advance:
            for worker in range(len(self._pool)):
                begin(worker)
            while playing:
                seen: dict[int, Observation] = {}
                for worker, segment in answers().items():
                    if isinstance(segment, RecordedEpisode):
                        end(worker, segment)
                        continue
                    segments[worker].append(segment)
                    self._beat("a piece of an episode")
                    if on_transition is not None and segment.executed is not None:
                        on_transition(playing[worker], Transition.between(shown[worker], segment))
                    if segment.done:
                        episode = playing[worker]
                        over = episode.number in handed_over
                        played[episode.number] = done = ended(episode, segments[worker], judged, over)
                        if keeper is not None and keeper.keeps(done) and done.trace is not None:
                            first = done.handed_over or 0
                            self._pool.record(worker, Played(done.trace, episode.instruction, first))
                        else:
                            end(worker)
                    else:
                        assert segment.observation is not None
                        seen[worker] = segment.observation
                shown |= seen
                for worker in [w for w in seen if hand_over.get(playing[w].number) == len(segments[w]) - 1]:
                    self._pool.hand_over(worker)
                    handed_over.add(playing[worker].number)
                    del seen[worker]
                if seen:
                    for worker, actions in actor.plan(seen).items():
                        self._pool.run(worker, actions)
        return [played[e.number] for e in episodes]

    def record(self, played: Sequence[Played], title: str | None = None) -> Iterator[tuple[int, RecordedEpisode]]:
        """Render finished episodes of a simulator, as many at once as there are workers. Yields (the index in `played`,
        the episode) as they are ready."""
        self._pool.grow(min(1, len(played)))
        waiting = list(reversed(range(len(played))))
        rendering: dict[int, int] = {}

        def begin(worker: int) -> None:
            if waiting:
                rendering[worker] = waiting.pop()
                self._pool.record(worker, played[rendering[worker]])

        with progress_bar(title, len(played)) as advance:
            for worker in range(len(self._pool)):
                begin(worker)
            while rendering:
                for worker, episode in self._pool.recorded().items():
                    yield rendering.pop(worker), episode
                    self._beat("an episode's images")
                    advance(1)
                    begin(worker)

    def film(self, orders: Sequence[Film], title: str | None = None) -> list[Path]:
        """Make films of finished episodes, as many at once as there are workers; returns those that were made.

        A film that cannot be made, for example on a full disk, is left out with a warning.
        """
        self._pool.grow(min(1, len(orders)))  # this process may not have played any episode itself
        waiting = sorted(orders, key=len)  # the longest begins first
        filming: dict[int, Film] = {}
        made = []

        def begin(worker: int) -> None:
            if waiting:
                filming[worker] = waiting.pop()
                self._pool.film(worker, filming[worker])

        with progress_bar(title, len(orders)) as advance:
            for worker in range(len(self._pool)):
                begin(worker)
            while filming:
                for worker, problem in self._films_made().items():
                    if worker not in filming:  # an idle worker died
                        continue
                    path = filming.pop(worker).path
                    self._beat("a film")
                    if problem is None:
                        made.append(path)
                    else:
                        logger.warning("The film %s could not be made: %s", path, problem)
                    advance(1)
                    begin(worker)
        return made

    def _films_made(self) -> dict[int, str | None]:
        try:
            return self._pool.filmed()
        except WorkerDied as death:
            self._pool.restart(death.worker)
            return {death.worker: str(death)}


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
    recorder: InputRecorder | None = None,
    perturb: Sequence[str] = (),
    perturb_episodes: int = FEW_EPISODES,
    purpose: Purpose = "report",
    cameras: Mapping[str, str] | None = None,
    delay_ms: float = 0.0,
    blend: Blend = None,
    show_attention: bool = False,
) -> EvaluationReport:
    """Evaluate a saved policy on episodes that neither training nor its selection ever used.

    execute: how many actions of each chunk are executed (None: half of it). video: a folder for films of all episodes.
    recorder: records the policy's inputs and actions. perturb: see `choose_perturbations`; the first `perturb_episodes`
    of the episodes are played again under each perturbation. purpose: whose episodes to play; others than 'report'
    repeat those of training. cameras: {a LeRobot policy's: the environment's}. delay_ms, blend: see ChunkExecutor.
    show_attention: show in films where the policy looks. Raises InputError for an unknown environment or perturbation,
    a policy that does not fit it, a damaged checkpoint, and a folder that cannot be made.
    """
    choices = check_request(env, episodes, video, perturb, probed=instruction_shuffle or blind)
    device = acting_device()
    folder = resolve_policy(checkpoint)
    executor, execute = load_actor(checkpoint, env, device, execute, ensemble, cameras, delay_ms, blend)
    actor: Actor = executor
    if recorder is not None:
        recorder.policy = executor.policy
        actor = RecordedActor(actor, recorder)
    looks: dict[int, list[Look]] | None = None
    if show_attention:
        actor = watched = WatchedActor(actor, executor.policy, executor.processor.source_for(env))
        looks = watched.looks
    report = evaluate_actor(
        actor,
        str(checkpoint),
        env,
        episodes,
        seed,
        instruction_shuffle,
        blind,
        video,
        workers,
        RenderingGPU.of(device),
        perturb,
        perturb_episodes,
        purpose,
        looks,
    )
    protocol = Protocol(
        env,
        episodes,
        seed,
        purpose,
        execute,
        ensemble,
        instruction_shuffle,
        blind,
        perturb=tuple(f"{choice.name}:{choice.level}" for choice in choices),
        perturb_episodes=min(perturb_episodes, episodes) if choices else 0,
        delay_ms=delay_ms,
        blend=blend,
        cameras=cameras,
    )
    return replace(report, evidence=gather_evidence(folder, protocol))


def check_request(
    env: str, episodes: int, video: Path | None, perturb: Sequence[str] = (), probed: bool = False
) -> list[PerturbationChoice]:
    """Check a request before the policy is loaded; returns the perturbations. Raises InputError for a wrong
    environment, number of episodes, perturbation or folder for films."""
    if episodes < 1:
        raise InputError(f"--episodes must be at least 1, got {episodes}.")
    choices = choose_perturbations(perturb, environment_spec(env))
    if choices and probed:
        raise InputError("--perturb cannot be combined with --instruction-shuffle or --blind: evaluate once with each.")
    if video is not None:
        check_folder("The folder for films", video)
    return choices


def evaluate_actor(
    actor: Actor,
    name: str,
    env: str,
    episodes: int = 100,
    seed: int = 0,
    instruction_shuffle: bool = False,
    blind: bool = False,
    video: Path | None = None,
    workers: int | None = None,
    gpu: RenderingGPU | None = None,
    perturb: Sequence[str] = (),
    perturb_episodes: int = FEW_EPISODES,
    purpose: Purpose = "report",
    looks: Mapping[int, Sequence[Look]] | None = None,
) -> EvaluationReport:
    """Evaluate an actor on episodes that neither training nor its selection ever used; see `evaluate_checkpoint`.

    name: the actor's name in the report. gpu: renders, if given. looks: see `Evaluator.run`.
    """
    spec = environment_spec(env)
    choices = choose_perturbations(perturb, spec)
    planned = plan_episodes(env, episodes, purpose, seed)
    if instruction_shuffle and len(spec.instructions) < 2:
        raise InputError(f"--instruction-shuffle needs another instruction, and '{env}' has {len(spec.instructions)}.")
    if blind and not spec.cameras:
        raise InputError(f"--blind makes images black, and '{env}' has no cameras.")
    if not spec.judged:
        logger.warning("'%s' does not report success: only its rewards can be compared.", env)
    if instruction_shuffle or blind:
        actor = AblatedActor(actor, spec.instructions, instruction_shuffle, blind)
    if video is not None:
        video.mkdir(parents=True, exist_ok=True)
    with closing(Evaluator(env, image_size_for(actor), workers, gpu=gpu)) as evaluator:
        videos, title = 0 if video is None else episodes, f"evaluating in '{env}'"
        outcomes = evaluator.run(actor, planned, videos, video, title, looks)
        again = plan_perturbed(planned[:perturb_episodes], choices)
        perturbed = evaluator.run(actor, again, title=f"perturbed in '{env}'") if again else []
    probes = {"instruction_shuffle": instruction_shuffle, "blind": blind}
    return EvaluationReport(
        env,
        name,
        tuple(outcomes),
        purpose,
        seed=seed,
        probes=tuple(k for k, on in probes.items() if on),
        perturbed=by_choice(choices, perturbed),
        tiers=spec.tiers,
    )


def load_actor(
    checkpoint: str | Path,
    env: str,
    device: torch.device,
    execute: int | None,
    ensemble: float | None,
    cameras: Mapping[str, str] | None = None,
    delay_ms: float = 0.0,
    blend: Blend = None,
) -> tuple[ChunkExecutor, int]:
    """An actor for a saved policy in a world, and how many actions of each chunk it executes; see `usual_execute`.

    Raises InputError for a damaged checkpoint, and for a policy that does not fit the environment.
    """
    from atlas.policies.base import load_policy

    policy = load_policy(checkpoint, cameras=cameras, device=device)
    check_policy_fits(policy.processor, environment_spec(env))
    horizon, hz = policy.processor.action_horizon, policy.processor.action_spec.control_hz
    execute = execute or usual_execute(horizon, hz, delay_ms, policy.validated_execute)
    return ChunkExecutor(policy, execute, ensemble, env, delay_ms=delay_ms, blend=blend), execute


def check_policy_fits(processor: PolicyProcessor, spec: EnvironmentSpec) -> None:
    """Raise InputError, which names the differences, where cameras, proprio or actions of world and policy differ."""
    if spec.choices is not None:
        raise InputError(
            f"The policy does not fit the environment '{spec.name}', which has {spec.choices} discrete actions: a "
            "policy's actions are continuous."
        )
    differing = []
    missing = [camera for camera in processor.cameras if camera not in spec.cameras]
    if missing:
        differing.append(f"the policy needs the cameras {missing}, the environment has {list(spec.cameras)}")
    if processor.proprio_dim != spec.proprio_dim:
        differing.append(
            f"the policy's proprio has {processor.proprio_dim} numbers, the environment's {spec.proprio_dim}"
        )
    for what, own, wanted in processor.action_spec.differences(spec.action_spec):
        differing.append(f"{what} is {own} in the policy's actions, and {wanted} in the environment's")
    if differing:
        raise InputError(f"The policy does not fit the environment '{spec.name}': {'; '.join(differing)}.")
