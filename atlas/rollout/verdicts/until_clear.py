"""Two policies on the same episodes until it is clear which is better, or until the episodes are used up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.environments.rendering import RenderingGPU
from atlas.errors import InputError
from atlas.launch import acting_device
from atlas.registry import resolve_policy
from atlas.rollout.actor import Actor, image_size_for
from atlas.rollout.episode_plan import PlannedEpisode, plan_episodes
from atlas.rollout.evaluation import Evaluator, load_actor
from atlas.rollout.experience import PlayedEpisode
from atlas.rollout.filming.film_choice import film_order, side_by_side
from atlas.rollout.filming.film_compositions import SideBySideOrder
from atlas.rollout.proportions import paired_interval
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.sequential import SequentialComparison

# Episodes that both play before one looks again. The same for any number of workers, so that it stops at the same one.
_ROUND = 10
_MOST_FILMS = 12


@dataclass(frozen=True)
class ClearComparison:
    """Two reports of the same episodes, and what they say of which policy is better."""

    first: EvaluationReport
    second: EvaluationReport
    counts: SequentialComparison

    def to_dict(self) -> dict[str, Any]:
        counts = self.counts
        both = sum(a.success and b.success for a, b in zip(self.first.outcomes, self.second.outcomes, strict=True))
        neither = counts.alike - both
        difference = (counts.first_only - counts.second_only) / counts.episodes
        return {
            "against": self.second.checkpoint,
            "episodes": counts.episodes,
            "first_only": counts.first_only,
            "second_only": counts.second_only,
            "difference": difference,
            "ci95": list(paired_interval(both, counts.first_only, counts.second_only, neither)),
            "evidence": counts.evidence,
            "error_rate": counts.error_rate,
            "clear": counts.clear,
            "better": self.better,
            "verdict": self.verdict,
        }

    @property
    def better(self) -> str | None:
        """The checkpoint of the better one, where it is clear."""
        if not self.counts.clear:
            return None
        return (self.first if self.counts.first_only > self.counts.second_only else self.second).checkpoint

    @property
    def verdict(self) -> str:
        counts = self.counts
        seen = f"just one succeeds in {counts.first_only} : {counts.second_only} of {counts.episodes} episodes"
        chance = f"{counts.error_rate:.0%} of comparisons of equally good policies end so, however often one looks"
        if counts.clear:
            return f"{self.better} is better: {seen}; at most {chance}"
        return f"not clear which is better: {seen}"


@dataclass(frozen=True)
class Contender:
    """One of two who are compared. folder: of its saved policy; None: it acts elsewhere, and its files are not known.
    execute: actions of each chunk that it executes."""

    name: str
    actor: Actor
    execute: int
    folder: Path | None


def evaluate_until_clear(
    first: str | Path | Contender,
    against: str | Path | Contender,
    env: str,
    most_episodes: int,
    seed: int = 0,
    execute: int | None = None,
    ensemble: float | None = None,
    workers: int | None = None,
    video: Path | None = None,
) -> ClearComparison:
    """Play both on the same episodes, ten at a time, until it is clear which is better, or cannot become so.

    first, against: saved policies, or who acts already; against may also be the file of outcomes of an evaluation.
    execute, ensemble: of saved policies. video: a folder for films of both side by side, of the episodes that just one
    of them solves, then of others. Raises InputError as `evaluate_checkpoint` does, and for a file that shares no
    episodes with those asked for, or that is to be filmed.
    """
    device = acting_device()
    planned = plan_episodes(env, most_episodes, "report", seed)
    file = Path(against) if not isinstance(against, Contender) and Path(against).is_file() else None
    if video is not None and file is not None:
        raise InputError(f"--video films two policies, and {file} holds outcomes: give the policy with --against.")

    def contender(given: str | Path | Contender) -> Contender:
        if isinstance(given, Contender):
            return given
        actor, executed = load_actor(given, env, device, execute, ensemble)
        return Contender(str(given), actor, executed, resolve_policy(given))

    with ExitStack() as stack:

        def player(who: Contender) -> _Player:
            gpu = RenderingGPU.of(device)
            evaluator = stack.enter_context(closing(Evaluator(env, image_size_for(who.actor), workers, gpu=gpu)))
            return _Player(evaluator, who.actor, f"{who.name} in '{env}'", record=video is not None)

        one = contender(first)
        play = player(one)
        play_second: Callable[[Sequence[PlannedEpisode]], list[PlayedEpisode]]
        if file is not None:
            recorded = EvaluationReport.load(file)
            planned = _shared(planned, recorded, file, env, seed)
            play_second, name = _recalled(recorded), recorded.checkpoint
        else:
            other = contender(against)
            play_second, name = player(other), other.name
        counts = SequentialComparison()
        pairs: list[tuple[PlayedEpisode, PlayedEpisode]] = []
        for part in _rounds(planned):
            for pair in zip(play(part), play_second(part), strict=True):
                pairs.append(pair)
                counts.add(pair[0].outcome.success, pair[1].outcome.success)
                if counts.clear:
                    break
            if counts.clear or counts.hopeless(len(planned) - counts.episodes):
                break
        if video is not None:
            video.mkdir(parents=True, exist_ok=True)
            play.evaluator.film(_films(pairs, video, (one.name, name)), "filming")
    n = counts.episodes
    firsts, seconds = [first.outcome for first, _ in pairs], [second.outcome for _, second in pairs]

    def report(who: Contender, outcomes: Sequence[EpisodeOutcome]) -> EvaluationReport:
        protocol = Protocol(env, n, seed, "report", who.execute, ensemble)
        evidence = None if who.folder is None else gather_evidence(who.folder, protocol)
        return EvaluationReport(env, who.name, tuple(outcomes), "report", seed=seed, evidence=evidence)

    second_report = (
        EvaluationReport(env, name, tuple(seconds), recorded.purpose, recorded.step, recorded.seed)
        if file is not None
        else report(other, seconds)
    )
    return ClearComparison(report(one, firsts), second_report, counts)


def _rounds(planned: Sequence[PlannedEpisode]) -> Iterator[Sequence[PlannedEpisode]]:
    return (planned[first : first + _ROUND] for first in range(0, len(planned), _ROUND))


@dataclass(frozen=True)
class _Player:
    """Plays episodes with a policy."""

    evaluator: Evaluator
    actor: Actor
    title: str
    record: bool  # keep what it takes to film them

    def __call__(self, episodes: Sequence[PlannedEpisode]) -> list[PlayedEpisode]:
        return self.evaluator.play(self.actor, episodes, record=self.record, title=self.title)


def _recalled(report: EvaluationReport) -> Callable[[Sequence[PlannedEpisode]], list[PlayedEpisode]]:
    known = {(outcome.instruction, outcome.seed): outcome for outcome in report.outcomes}
    return lambda episodes: [PlayedEpisode(known[e.instruction, e.seed], None) for e in episodes]


def _films(
    pairs: Sequence[tuple[PlayedEpisode, PlayedEpisode]], folder: Path, names: tuple[str, str]
) -> list[SideBySideOrder]:
    """Both side by side: the episodes that just one of them solves first, then those that neither does."""

    def rank(number: int) -> tuple[bool, bool]:
        first, second = (each.outcome.success for each in pairs[number])
        return first == second, first and second

    films = []
    for number in sorted(range(len(pairs)), key=rank)[:_MOST_FILMS]:
        first, second = (film_order(each.trace, each.outcome, folder, "one_of_two") for each in pairs[number])
        films.append(side_by_side(folder, number, first, second, names))
    return films


def _shared(
    planned: Sequence[PlannedEpisode], report: EvaluationReport, file: Path, env: str, seed: int
) -> list[PlannedEpisode]:
    """Those of the episodes that the file has. Raises InputError where it has none, or is of another world."""
    if report.env != env:
        raise InputError(
            f"--against {file} was evaluated in '{report.env}', and this is '{env}'; give --env {report.env}."
        )
    if report.probes:
        raise InputError(f"--against {file} was evaluated with {' and '.join(report.probes)}; give one without.")
    known = {(outcome.instruction, outcome.seed) for outcome in report.outcomes}
    shared = [episode for episode in planned if (episode.instruction, episode.seed) in known]
    if not shared:
        raise InputError(
            f"--against {file} shares no episodes with these: its are those of {report.purpose} and --seed "
            f"{report.seed}, and these of report and --seed {seed}. Write one with `atlas eval --seed {seed} "
            "--out FILE`."
        )
    return shared
