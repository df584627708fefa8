"""Chooses the films of an evaluation and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from atlas.rollout.filming.attention_column import Look
from atlas.rollout.filming.film_compositions import OverviewCell, OverviewOrder, SideBySideOrder
from atlas.rollout.success_report import EpisodeOutcome
from atlas.rollout.traces import FilmOrder, Trace
from atlas.system.paths import file_name

OVERVIEW = "overview_of_failures.mp4"  # among the films of an evaluation
_MOST_CELLS = 9


def film_order(
    trace: Trace | None,
    outcome: EpisodeOutcome,
    folder: Path,
    title: str,
    most_pictures: int | None = None,
    looks: Sequence[Look] = (),
) -> FilmOrder:
    """The film of an episode whose trace was recorded; see FilmOrder. title: the beginning of its name."""
    assert trace is not None
    path = folder / film_name(title, outcome)
    return FilmOrder(path, trace, outcome.instruction, outcome.verdict, most_pictures, tuple(looks))


def film_name(title: str, outcome: EpisodeOutcome) -> str:
    """'episode_007' -> 'episode_007_pick_up_the_red_cube_success.mp4'"""
    parts = (title, file_name(outcome.instruction, longest=80), outcome.verdict)
    return f"{'_'.join(filter(None, parts))}.mp4"


def worst_failures(outcomes: Sequence[EpisodeOutcome]) -> list[int]:
    """The indices of the failures in an overview: the least reward first, then the longest."""
    failed = [place for place, outcome in enumerate(outcomes) if outcome.verdict == "failure"]
    return sorted(failed, key=lambda place: (outcomes[place].reward, -outcomes[place].length))[:_MOST_CELLS]


def overview(
    path: Path, numbers: Sequence[int], outcomes: Sequence[EpisodeOutcome], orders: Sequence[FilmOrder]
) -> list[OverviewOrder]:
    """One film of the worst failures among filmed episodes; none where fewer than two failed, since each episode has
    its own film. An episode whose moment of failure is not known is aligned at its end."""
    cells = [
        OverviewCell(
            orders[place],
            outcome.length if outcome.failed_at is None else outcome.failed_at,
            numbers[place],
            (outcome.failure or "failure").replace("_", " "),
        )
        for place in worst_failures(outcomes[: len(orders)])
        for outcome in [outcomes[place]]
    ]
    return [OverviewOrder(path, tuple(cells))] if len(cells) > 1 else []


def films_of_episodes(
    episodes: Sequence[tuple[int, EpisodeOutcome, Trace | None]], folder: Path, looks: Mapping[int, Sequence[Look]]
) -> tuple[list[FilmOrder], list[OverviewOrder]]:
    """A film of each episode (number, outcome, trace), and one of the worst together. looks: by the episodes' seeds."""
    orders = [
        film_order(trace, outcome, folder, f"episode_{number:03d}", looks=looks.get(outcome.seed, ()))
        for number, outcome, trace in episodes
    ]
    numbers, outcomes = [number for number, _, _ in episodes], [outcome for _, outcome, _ in episodes]
    return orders, overview(folder / OVERVIEW, numbers, outcomes, orders)


def side_by_side(
    folder: Path, number: int, first: FilmOrder, second: FilmOrder, names: tuple[str, str]
) -> SideBySideOrder:
    """A film of the same episode by two policies; its name says which of them succeeds."""
    ended = {
        ("success", "success"): "both_succeed",
        ("success", "failure"): "first_succeeds",
        ("failure", "success"): "second_succeeds",
        ("failure", "failure"): "both_fail",
    }.get((first.verdict, second.verdict), "both_ended")
    parts = (f"episode_{number:03d}", file_name(first.instruction, longest=80), ended)
    return SideBySideOrder(folder / f"{'_'.join(filter(None, parts))}.mp4", first, second, names)
