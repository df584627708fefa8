"""The tables that `atlas eval` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas.cli.output import print_table, say

if TYPE_CHECKING:
    from atlas.rollout.verdicts.reproduction import Reproduction
    from atlas.rollout.verdicts.robustness import RobustnessReport
    from atlas.rollout.verdicts.until_clear import ClearComparison

_COLUMNS = ("instruction", "episodes", "successes", "success rate", "95% interval")
_NAMED_EPISODES = 5


def print_evaluation(report: dict[str, Any], robustness: RobustnessReport | None) -> None:
    """report: `EvaluationReport.to_dict`, with its failures where they are known."""
    rows = [(name, *_counts(part)) for name, part in [*report["per_instruction"].items(), ("all", report)]]
    print_table(f"{report['checkpoint']} in {report['env']}", _COLUMNS, rows)
    say(f"mean episode length: {report['mean_episode_length']:.1f} steps")
    if "per_tier" in report:
        tiers = [(tier, *_counts(part)) for tier, part in report["per_tier"].items()]
        print_table(f"by tier; their mean is {report['mean_of_tiers']:.1%}", ("tier", *_COLUMNS[1:]), tiers)
    if "mean_reward" in report:
        say(f"mean reward: {report['mean_reward']:.4g}")
    if failed := {kind: count for kind, count in (report.get("failures") or {}).items() if count}:
        from atlas.rollout.verdicts.failures import FAILURE_WORDS

        say(f"how it failed: {'; '.join(f'{count} {FAILURE_WORDS[kind]}' for kind, count in failed.items())}")
    if robustness is not None:
        from atlas.rollout.verdicts.robustness import ROW_TITLES

        title = f"success under perturbations, {len(robustness.plain)} episodes a level"
        print_table(title, ROW_TITLES, robustness.rows())


def print_comparison(found: ClearComparison) -> None:
    rows = [(report.checkpoint, *_counts(report.to_dict())) for report in (found.first, found.second)]
    print_table(f"two policies in {found.first.env}", ("policy", *_COLUMNS[1:]), rows)
    told = found.to_dict()
    low, high = (f"{100 * bound:+.1f}" for bound in told["ci95"])
    say(f"difference: {100 * told['difference']:+.1f} points (95% interval {low} to {high})")
    say(f"{found.verdict}.")


def print_reproduction(found: Reproduction) -> None:
    told = found.to_dict()
    n = told["episodes"]
    rows = [("then", f"{told['successes_then']}/{n}"), ("now", f"{told['successes_now']}/{n}")]
    print_table(f"{told['file']}, again", ("", "successes"), rows)
    if found.holds == "exactly":
        say(f"It holds exactly: each of {n} episodes ended as it did ({told['same_length']} after as many steps).")
    else:
        verdict = "It holds within chance" if found.holds == "within chance" else "It does not hold"
        named = ", ".join(
            f"seed {each['seed']} ('{each['instruction']}')" for each in told["differing"][:_NAMED_EPISODES]
        )
        say(f"{verdict}: {len(told['differing'])} of {n} episodes ended otherwise, such as {named}.")
    for name, (then, now) in told["software_changed"].items():
        say(f"{name} was {then} then, and is {now} now.")


def _counts(part: dict[str, Any]) -> tuple[str, ...]:
    from atlas.rollout.proportions import wilson_interval

    low, high = wilson_interval(part["successes"], part["episodes"])
    return str(part["episodes"]), str(part["successes"]), f"{part['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"
