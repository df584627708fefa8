"""The last evaluation of a run: the best checkpoint on episodes that did not choose it, as it is, deceived, blind, and
under perturbations where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atlas.config import EvaluationConfig
from atlas.environments.catalog import environment_spec
from atlas.environments.perturbations.choices import choose_perturbations
from atlas.policies.base import load_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.rollout.episode_plan import plan_episodes
from atlas.rollout.input_recorder import InputRecorder, RecordedActor
from atlas.rollout.success_report import EvaluationReport
from atlas.rollout.verdicts.evidence import Protocol, gather_evidence
from atlas.rollout.verdicts.robustness import ROW_TITLES, RobustnessReport, by_choice, plan_perturbed
from atlas.rollout.verdicts.twins import TWINS, play_twin
from atlas.tracking import RunTracker
from atlas.training.judging.closed_loop import ClosedLoop


@dataclass(frozen=True)
class FinalEvaluation:
    """The results of the best checkpoint. report: None without rollouts at the end."""

    report: EvaluationReport | None = None
    probes: Mapping[str, EvaluationReport] = field(default_factory=dict)

    @property
    def robustness(self) -> RobustnessReport | None:
        return None if self.report is None else RobustnessReport.of(self.report)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of results.json: what they say of success, and what it takes to believe it."""
        if self.report is None:
            return {"final_evaluation": None}
        whole = self.report.to_file()
        kept = ("format", "evidence", "outcomes", "perturbed_outcomes")
        robustness = None if self.robustness is None else self.robustness.to_dict()
        levels = {name: each["levels"] for name, each in robustness["perturbations"].items()} if robustness else {}
        return {
            "final_evaluation": self.report.to_dict(),
            "probes": {name: probe.to_dict() for name, probe in self.probes.items()},
            "perturbations": levels,
            "robustness": robustness,
            "failures": self.report.failures(),
            **{key: whole[key] for key in kept},
        }

    def metrics(self) -> dict[str, float]:
        """`eval/blind/success_rate` and so on: what is not shown of the final evaluation elsewhere."""
        found = {f"eval/{name}/success_rate": probe.success_rate for name, probe in self.probes.items()}
        return found | (self.robustness.metrics() if self.robustness is not None else {})


def evaluate_finally(
    closed_loop: ClosedLoop | None,
    config: EvaluationConfig,
    checkpoint: Path,
    device: Any,
    dataset: str | None,
    shown: InputRecorder,
) -> FinalEvaluation:
    """Every rank calls it and gets all of it. dataset: the fingerprint of the training data. shown: is told what the
    policy is shown and says on this rank, in the episodes in which nothing is changed."""
    if closed_loop is None or not config.final_episodes:
        return FinalEvaluation()
    env = closed_loop.env
    policy = shown.policy = load_policy(checkpoint, device=device)
    actor = ChunkExecutor.configured(policy, config, env)
    step = int(checkpoint.name.removeprefix("step_"))
    spec = environment_spec(env)
    choices = choose_perturbations(config.perturbations, spec)
    few = plan_episodes(env, min(config.perturbation_episodes, config.final_episodes), "final", config.seed)
    protocol = Protocol(
        env,
        config.final_episodes,
        config.seed,
        "final",
        config.execute,
        config.ensemble,
        perturb=tuple(f"{choice.name}:{choice.level}" for choice in choices),
        perturb_episodes=len(few) if choices else 0,
        delay_ms=config.delay_ms,
        blend=config.blend,
    )
    evidence = gather_evidence(checkpoint / "policy", protocol, dataset)
    report = closed_loop.run(
        RecordedActor(actor, shown),
        "final",
        config.final_episodes,
        str(checkpoint),
        step,
        config.video,
        evidence=evidence,
    )
    found = {probe: play_twin(probe, report, actor, config.probe_episodes, closed_loop.outcomes) for probe in TWINS}
    probes = {probe: twin for probe, twin in found.items() if twin is not None}
    if choices:
        perturbed = closed_loop.outcomes(actor, plan_perturbed(few, choices), "perturbed")
        report = replace(report, perturbed=by_choice(choices, perturbed))
    return FinalEvaluation(report, probes)


def show_finally(found: FinalEvaluation, tracker: RunTracker) -> None:
    """Log what the boards have not seen yet; on the main rank."""
    metrics = found.metrics()
    if metrics:
        tracker.log(metrics)
    robustness = found.robustness
    if robustness is not None:
        from atlas.drawing.robustness_figure import draw_robustness

        tracker.log_table("eval/perturbations", ROW_TITLES, robustness.rows())
        tracker.log_figure("eval/perturbations_figure", draw_robustness(robustness))
