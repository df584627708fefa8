"""An evaluation's twins: a few of its episodes again, told another task, and with black images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from atlas.environments.catalog import environment_spec
from atlas.rollout.actor import AblatedActor, Actor
from atlas.rollout.episode_plan import PlannedEpisode, plan_episodes
from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport

logger = logging.getLogger(__name__)

TWINS = ("instruction_shuffle", "blind")
TWIN_WORDS = {"instruction_shuffle": "told another task", "blind": "with black images"}
Play = Callable[[Actor, Sequence[PlannedEpisode], str], Sequence[EpisodeOutcome]]


def play_twin(probe: str, report: EvaluationReport, actor: Actor, few: int, play: Play) -> EvaluationReport | None:
    """The twin of a report: its first `few` episodes, a quarter of them at most, with falsified inputs.

    probe: of `TWINS`. actor: who played the report's episodes. play: (actor, episodes, title) -> their outcomes. None
    without episodes, for a world with one instruction, and for a policy that looks at nothing.
    """
    spec = environment_spec(report.env)
    if not few:
        return None
    if probe == "instruction_shuffle" and len(spec.instructions) < 2:
        logger.info("No probe with another instruction: '%s' has only one.", report.env)
        return None
    if probe == "blind" and (actor.processor is None or not actor.processor.cameras):
        logger.info("No probe with black images: the policy looks at none.")
        return None
    planned = plan_episodes(report.env, min(few, -(-len(report.outcomes) // 4)), report.purpose, report.seed)
    deceived = AblatedActor(
        actor, spec.instructions, shuffle_instructions=probe == "instruction_shuffle", blind=probe == "blind"
    )
    outcomes = play(deceived, planned, f"probing: {probe.replace('_', ' ')}")
    return EvaluationReport(
        report.env, report.checkpoint, tuple(outcomes), report.purpose, report.step, report.seed, probes=(probe,)
    )
