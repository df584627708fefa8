"""The sections on rollouts: films of failures and successes, every episode, and success under perturbations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from atlas.report.film_strip import FilmRoom, failure_kind, films_of, overview, strip
from atlas.report.first_screen import PROBES, bar
from atlas.report.markup import Html, Part, fold, section, table, tag
from atlas.report.run_facts import PlayedEvaluation, RunFacts

_LEVELS = range(1, 6)
_MOST_EPISODES = 400  # in the table


def episodes(runs: Sequence[RunFacts]) -> Html | None:
    """Each run's failures and their films, and a list of all episodes."""
    room = FilmRoom()
    sides = [_of_run(facts, room, len(runs) > 1) for facts in runs if facts.evaluations]
    if not sides:
        return None
    note = None
    if room.left_out:
        films = "film is" if room.left_out == 1 else "films are"
        note = f"{room.left_out} {films} left out, to keep the page small; all are in the runs' folders."
    return section("episodes", "What happened in the episodes", tag("div", sides, class_="sides"), note=note)


def _of_run(facts: RunFacts, room: FilmRoom, several: bool) -> Html:
    parts: list[Part] = [tag("h3", facts.name)] if several else []
    played = facts.headline
    if played is not None:
        parts.append(_failures(played))
    filmed = films_of(facts)
    if filmed is None:
        parts.append(
            tag("p", "No episode was filmed; set evaluation.video or logging.media.episode_logger.", class_="note")
        )
    else:
        chosen, failures, others = filmed
        together = overview(chosen, room)
        if failures or together is not None:
            shown = strip(failures, chosen, room)
            parts += [tag("h4", f"Films of failures, {_which(chosen)}"), together, shown]
        if others:
            shown = strip(others, chosen, room)
            what = "Films of successes" if others[0].verdict == "success" else "Films of episodes"
            parts.append(fold(f"{what}, {_which(chosen)}", shown, opened=not failures))
    if played is not None:
        parts.append(_list_of_all(played))
    return tag("div", parts)


def _which(played: PlayedEvaluation) -> str:
    if played.purpose == "final":
        return "of the evaluation at the end"
    return f"of the evaluation during training at step {played.step or 0:,}"


def _failures(played: PlayedEvaluation) -> Html:
    if not all(outcome.get("judged", True) for outcome in played.outcomes):
        return tag("p", "This world does not report success: only its rewards can be compared.")
    failed = [outcome for outcome in played.outcomes if not outcome["success"]]
    if not failed:
        return tag("p", "No episode failed.")
    kinds = Counter(kind for outcome in failed if (kind := failure_kind(outcome)) is not None)
    chips = [tag("span", f"{kind}: {count}", class_="chip bad") for kind, count in kinds.most_common()]
    text = f"{len(failed)} of {len(played.outcomes)} episodes failed. "
    return tag("p", text, chips or None)


def _list_of_all(played: PlayedEvaluation) -> Html:
    outcomes = sorted(enumerate(played.outcomes), key=lambda item: bool(item[1]["success"]))[:_MOST_EPISODES]
    has_kinds = any(failure_kind(outcome) for _, outcome in outcomes)
    rows: list[list[Part]] = [
        [
            str(number),
            str(outcome["instruction"]),
            _verdict(outcome),
            *([failure_kind(outcome) or ""] if has_kinds else []),
            str(outcome["length"]),
            str(outcome["seed"]),
        ]
        for number, outcome in outcomes
    ]
    columns = ["episode", "instruction", "outcome", *(["how it failed"] if has_kinds else []), "steps", "seed"]
    left = len(played.outcomes) - len(rows)
    more = tag("p", f"{left} more are in the evaluation's file.", class_="note") if left else None
    return fold(f"All {len(played.outcomes)} episodes, failures first", table(columns, rows), more)


def _verdict(outcome: Mapping[str, Any]) -> Html:
    if not outcome.get("judged", True):
        return tag("span", f"reward {outcome['reward']:.4g}")
    return tag("span", "success", class_="good") if outcome["success"] else tag("span", "failure", class_="bad")


# ---- perturbations -------------------------------------------------------------------------------------------


def perturbations(runs: Sequence[RunFacts]) -> Html | None:
    """Success under each perturbation and level, for each run that was evaluated under any."""
    sides = []
    for facts in runs:
        found = perturbed(facts.results) or perturbed_scalars(facts)
        if found:
            sides.append(tag("div", tag("h3", facts.name) if len(runs) > 1 else None, _grid(found)))
    if not sides:
        return None
    note = (
        "Success, with its 95% interval, when the policy's observations, or the effects of its actions, are changed, "
        "from level 1 to level 5."
    )
    return section("perturbations", "Perturbations", tag("div", sides, class_="sides"), note=note)


_ALL = "all"  # beside the levels: their mean
# {perturbation: {level: {successes, episodes} or {success_rate}}}; the first is of the same episodes as they are
Rates = dict[str, dict[str, Mapping[str, Any]]]


def perturbed(results: Mapping[str, Any]) -> Rates:
    """The rates in results.json: `robustness.perturbations`, {name: {"levels": {level: an evaluation's numbers}}},
    and `robustness.unperturbed`."""
    found: Rates = {}
    robustness = results.get("robustness")
    parts = robustness.get("perturbations") if isinstance(robustness, Mapping) else None
    for name, levels in parts.items() if isinstance(parts, Mapping) else ():
        each = levels.get("levels") if isinstance(levels, Mapping) else None
        if isinstance(each, Mapping):
            kept = {str(k): v for k, v in each.items() if isinstance(v, Mapping) and "success_rate" in v}
            if kept and "success_rate" in levels:
                kept[_ALL] = levels
            found |= {str(name): kept} if kept else {}
    plain = robustness.get("unperturbed") if isinstance(robustness, Mapping) else None
    if found and isinstance(plain, Mapping):
        return {"as they are": {_ALL: plain}, **found}
    return found


def perturbed_scalars(facts: RunFacts) -> Rates:
    """The last logged `eval/<perturbation>/success_rate`, for a run whose results.json has no rates. The first screen
    shows the probes."""
    found: Rates = {}
    for name, points in facts.run.scalars.items():
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == "eval" and parts[2] == "success_rate" and parts[1] not in PROBES:
            found[parts[1]] = {"": {"success_rate": points[-1][1]}}
    return found


def _grid(found: Rates) -> Html:
    """A row per perturbation: a cell per level, darker for less success, or a bar where there are no levels."""
    levels = sorted(
        {level for each in found.values() for level in each if level}, key=lambda level: (len(level), level)
    )
    if not levels:
        return tag("div", (_rate_bar(name, each[""]) for name, each in found.items()), class_="bars")
    rows: list[list[Part]] = [
        [name.replace("_", " "), *(_cell(each.get(level)) for level in levels)] for name, each in found.items()
    ]
    return table(["perturbation", *("all levels" if level == _ALL else f"level {level}" for level in levels)], rows)


def _rate_bar(name: str, values: Mapping[str, Any]) -> Html:
    label = name.replace("_", " ")
    if "episodes" in values and "successes" in values:
        return bar(label, values, "")
    percent = f"{100 * float(values['success_rate']):.0f}%"
    track = tag("span", tag("i", style=f"width:{percent}"), class_="track")
    return tag("div", tag("span", label), track, tag("span", percent, class_="count"), class_="bar")


def _cell(values: Mapping[str, Any] | None) -> Html | None:
    if values is None:
        return None
    rate = float(values["success_rate"])
    interval = values.get("ci95")
    shown = tag("span", f"{100 * rate:.0f}%", class_="heat", style=f"--rate:{rate:.3f}")
    if not interval:
        return shown
    bounds = f"{100 * float(interval[0]):.0f} to {100 * float(interval[1]):.0f}%"
    return tag("span", shown, tag("br"), tag("small", bounds, class_="note"))
