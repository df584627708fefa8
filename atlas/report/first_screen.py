"""The first screen of a report: whether a run's policy works, whether that can be believed, and what is wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from atlas.report.curve_drawing import number
from atlas.report.markup import Html, Part, fold, tag
from atlas.report.run_facts import PlayedEvaluation, RunFacts
from atlas.rollout.proportions import wilson_interval

PROBES = {"instruction_shuffle": "with another instruction", "blind": "with black images"}
_FLAGS = {"instruction_shuffle": "--instruction-shuffle", "blind": "--blind"}
_PURPOSES = {
    "final": "the best checkpoint, on episodes never used before",
    "report": "atlas eval, on episodes never used in training",
    "selection": "the last evaluation during training, on episodes that choose the best checkpoint",
}
_OF_LEARNING = {"before": "before learning", "control": "with plain imitation instead", "after": "after learning"}
_STATUS = {"problem": "bad", "ok": "good", "undecided": "quiet"}
_ERRORS = ("position_error_mm", "rotation_error_deg", "joint_error_deg", "joint_error_percent", "gripper_accuracy")
MOST_PROBLEMS = 4


def card(facts: RunFacts, colour: int, several: bool) -> Html:
    """A run's card; with its name and colour where there are several runs."""
    name = tag("h2", tag("i", class_=f"swatch c{colour}"), facts.name, class_="run") if several else None
    return tag(
        "article", name, tag("p", _chips(facts), class_="chips"), _success(facts), _finding(facts), class_="card"
    )


def sentence(facts: RunFacts) -> str:
    """The run's result in one line."""
    played = facts.headline
    if played is not None:
        values = played.values
        if not played.judged:
            return (
                f"A mean reward of {number(played.mean_reward)} in {values['episodes']} episodes of '{values['env']}'"
            )
        return f"Succeeds in {values['successes']} of {values['episodes']} episodes of '{values['env']}'"
    loss = facts.run.scalars.get("val/loss") or facts.run.scalars.get("train/loss")
    if loss:
        return f"Reached a loss of {number(loss[-1][1])} after {loss[-1][0]:,} steps; there were no rollouts"
    return "Nothing has been logged yet"


# ---- success and its twins -----------------------------------------------------------------------------------


def _chips(facts: RunFacts) -> list[Html]:
    summary = facts.summary
    if summary is None:
        return [tag("span", "an evaluation alone", class_="chip")]
    kind = {"finished": "good", "running": "", "stopped": "warn", "unfinished": "warn"}[summary.state]
    steps = (
        f"{summary.steps:,} steps{' in the world' if facts.learned else ''}"
        if summary.total_steps is None
        else f"{summary.steps:,} of {summary.total_steps:,} steps"
    )
    found = [tag("span", summary.state, class_=f"chip {kind}"), tag("span", steps, class_="chip")]
    if summary.started is not None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.started))
        found.append(tag("span", f"begun {when}", class_="chip"))
    return found


def _success(facts: RunFacts) -> Html:
    played = facts.headline
    if played is None:
        why = "No rollouts: there is no simulator for this dataset, or evaluation.episodes is 0. Only errors on "
        return tag("div", tag("p", f"{why}validation episodes are known.", class_="note"), _errors(facts))
    values = played.values
    if not played.judged:
        return _rewards(facts, played)
    low, high = map(float, values["ci95"])
    rate = float(values["success_rate"])
    big = tag(
        "p",
        tag("span", f"{100 * rate:.0f}", tag("small", "%"), class_="big"),
        tag(
            "span",
            tag("b", "success"),
            tag("br"),
            f"95% interval {100 * low:.0f} to {100 * high:.0f}%",
            class_="beside",
        ),
        class_="headline",
    )
    rows = [bar(_OF_LEARNING.get(played.of_learning or "", "unchanged"), values, "")]
    for other in facts.evaluations:
        if other.of_learning is not None and other is not played:
            rows.append(bar(_OF_LEARNING[other.of_learning], other.values, "twin"))
    rows += [_twin(facts, played, probe) for probe in PROBES]
    return tag("div", big, tag("div", rows, class_="bars"), _which(played), _by_instruction(played))


def _which(played: PlayedEvaluation) -> Html:
    """Say which policy was evaluated, and on what."""
    what = _PURPOSES.get(played.purpose, played.purpose)
    if played.of_learning is not None:
        what = f"the policy {_OF_LEARNING[played.of_learning]}, on starts held out from it"
    step = f" Step {played.step:,}." if played.step is not None else ""
    return tag("p", f"In '{played.values['env']}', {what}.{step}", class_="note")


def _rewards(facts: RunFacts, played: PlayedEvaluation) -> Html:
    """Show rewards, in a world that does not report success."""
    big = tag("p", tag("span", number(played.mean_reward), class_="big"), tag("b", "mean reward"), class_="headline")
    others = [each for each in facts.evaluations if each.of_learning is not None and each is not played]
    told = [f"{_OF_LEARNING[str(each.of_learning)]} {number(each.mean_reward)}" for each in others]
    more = tag("p", f"Mean reward {', '.join(told)}.") if told else None
    return tag("div", big, more, _which(played))


def bar(name: Part, values: Mapping[str, Any], kind: str) -> Html:
    """A rate with its interval, on a track from 0 to 100%. values: of an evaluation, or of a part of one."""
    successes, episodes = int(values["successes"]), int(values["episodes"])
    low, high = wilson_interval(successes, episodes)
    track = tag(
        "span",
        tag("i", style=f"width:{100 * successes / episodes:.1f}%"),
        tag("b", style=f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"),
        class_=f"track {kind}".strip(),
        title=f"95% interval {100 * low:.0f} to {100 * high:.0f}%",
    )
    return tag("div", tag("span", name), track, tag("span", f"{successes}/{episodes}", class_="count"), class_="bar")


def _twin(facts: RunFacts, played: PlayedEvaluation, probe: str) -> Html:
    found = facts.twin(probe)
    if found is not None and int(found.get("episodes", 0)) > 0:
        # If a twin succeeds almost as often, the policy does not use its images, or its instruction.
        close = float(found["successes"]) / int(found["episodes"]) > 0.5 * float(played.values["success_rate"])
        return bar(PROBES[probe], found, "bad" if close and played.values["successes"] else "twin")
    how = tag("code", f"atlas eval --checkpoint {facts.run.path} --env {played.values['env']} {_FLAGS[probe]}")
    return tag("div", tag("span", PROBES[probe]), tag("span", "not tried: ", how, class_="untried"), class_="bar")


def _by_instruction(played: PlayedEvaluation) -> Html | None:
    parts = played.values.get("per_instruction")
    if not isinstance(parts, Mapping) or len(parts) < 2:
        return None
    rows = [bar(str(name), part, "") for name, part in parts.items()]
    return fold(f"by instruction ({len(parts)})", tag("div", rows, class_="bars"), opened=len(parts) <= 4)


def _errors(facts: RunFacts) -> Html | None:
    scalars = facts.run.scalars
    found = [(name, scalars[f"val/{name}"][-1][1]) for name in _ERRORS if f"val/{name}" in scalars]
    if not found:
        return None
    return tag("div", (tag("p", tag("b", number(v)), " ", n.replace("_", " ")) for n, v in found), class_="errors")


# ---- what is wrong -------------------------------------------------------------------------------------------


def _finding(facts: RunFacts) -> Html:
    diagnosis = facts.diagnosis
    if diagnosis is None:
        return _only_warnings(facts)
    lines = [line for line in diagnosis.get("lines", ()) if isinstance(line, Mapping)]
    problems = [line for line in lines if line.get("status") == "problem"]
    ok, open_ = (sum(line.get("status") == status for line in lines) for status in ("ok", "undecided"))
    counted = f"{ok} of the known silent bugs are ruled out, {open_} cannot be decided from the files."
    if not problems:
        texts = [tag("p", str(diagnosis.get("advice", ""))), tag("p", counted, class_="note")]
        return tag("div", tag("h3", "No known silent bug found"), texts, class_="finding good")
    listed = tag("ul", (tag("li", problem(line)) for line in problems[:MOST_PROBLEMS]))
    more = f" {len(problems) - MOST_PROBLEMS} more are below." if len(problems) > MOST_PROBLEMS else ""
    title = "What is wrong" if len(problems) == 1 else f"What is wrong: {len(problems)} things"
    advice = tag("p", tag("b", str(diagnosis.get("advice", ""))))
    return tag("div", tag("h3", title), advice, listed, tag("p", counted + more, class_="note"), class_="finding bad")


def problem(line: Mapping[str, Any]) -> list[Part]:
    """A line of a diagnosis: its title, the evidence and the remedy."""
    fix = line.get("fix")
    return [
        tag("b", str(line.get("title", ""))),
        ": ",
        str(line.get("evidence", "")),
        tag("br") if fix else None,
        tag("span", f"→ {fix}", class_="fix") if fix else None,
    ]


def _only_warnings(facts: RunFacts) -> Html:
    how = tag("p", "Why a run fails in rollouts: ", tag("code", f"atlas doctor {facts.run.path}"), class_="note")
    if not facts.warnings:
        quiet = None if facts.learned else tag("p", "Training gave no warnings.")  # learning leaves no log
        return tag("div", quiet, how, class_="finding quiet")
    title = "Training warned" if len(facts.warnings) == 1 else f"Training warned of {len(facts.warnings)} things"
    listed = tag("ul", (tag("li", warning) for warning in facts.warnings[:MOST_PROBLEMS]))
    return tag("div", tag("h3", title), listed, how, class_="finding warn")


def statuses(lines: Sequence[Mapping[str, Any]]) -> Html:
    """All lines of a diagnosis as a list: ok, wrong and undecided."""
    rows = [
        tag(
            "li",
            tag("span", str(line.get("status", "")), class_=f"chip {_STATUS.get(str(line.get('status')), '')}"),
            tag("div", problem(line)),
        )
        for line in lines
    ]
    return tag("ul", rows, class_="walk")
