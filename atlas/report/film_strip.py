"""The films embedded in a page: failures first, as many as there is room for."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas.report.markup import Html, tag
from atlas.report.run_facts import Film, PlayedEvaluation, RunFacts

ROOM = 9_500_000  # bytes of all films of a page; embedding makes them a third larger
_MOST_FAILURES, _MOST_OTHERS = 8, 4


class FilmRoom:
    """The number of bytes of films that a page may still take."""

    def __init__(self, room: int = ROOM) -> None:
        self._left = room
        self.left_out = 0

    def take(self, path: Path) -> str | None:
        """The film as a data address for the page; None where it is too large, or missing."""
        try:
            size = path.stat().st_size
            if size > self._left:
                self.left_out += 1
                return None
            data = path.read_bytes()
        except OSError:
            return None
        self._left -= len(data)
        return f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"


def films_of(facts: RunFacts) -> tuple[PlayedEvaluation, list[Film], list[Film]] | None:
    """The evaluation whose films are shown, its failures and some of its other films; None where nothing was filmed.

    It is the headline's evaluation, unless that has no film of a failure and an earlier one has. The other films are
    successes, or all films where the world does not report success.
    """
    plain = [each for each in facts.evaluations if each.films and not each.probes]
    if not plain:
        return None
    order = [*([facts.headline] if facts.headline in plain else []), *reversed(plain)]
    chosen = next((each for each in order if each is not None and _failures(each)), order[0])
    assert chosen is not None
    return chosen, _failures(chosen)[:_MOST_FAILURES], _others(chosen)[:_MOST_OTHERS]


def _failures(played: PlayedEvaluation) -> list[Film]:
    return _each_once(film for film in played.films if film.verdict == "failure")


def _others(played: PlayedEvaluation) -> list[Film]:
    return _each_once(film for film in played.films if film.verdict != "failure")


def _each_once(films: Any) -> list[Film]:
    """One film per episode."""
    found: dict[int, Film] = {}
    for film in films:
        found.setdefault(film.number, film)
    return list(found.values())


def strip(films: Sequence[Film], played: PlayedEvaluation, room: FilmRoom) -> Html | None:
    """Films side by side, each with a caption; None where there are none."""
    shown = [figure for film in films if (figure := _figure(film, played, room)) is not None]
    return tag("div", shown, class_="films") if shown else None


def _figure(film: Film, played: PlayedEvaluation, room: FilmRoom) -> Html | None:
    address = room.take(film.path)
    if address is None:
        return None
    outcomes = played.outcomes
    outcome: Mapping[str, Any] = outcomes[film.number] if film.number < len(outcomes) else {}
    video = _video(address)
    caption = [tag("b", str(outcome.get("instruction", film.path.stem)))]
    if film.rank is not None:
        caption.append(tag("span", f"the {film.rank} episode", class_="chip"))
    if kind := failure_kind(outcome):
        caption.append(tag("span", kind, class_="chip bad"))
    if outcome:
        caption.append(tag("small", f"episode {film.number}, {outcome['length']} steps, seed {outcome['seed']}"))
    kind = {"success": "film good", "failure": "film bad"}.get(film.verdict, "film")
    return tag("figure", video, tag("figcaption", caption), class_=kind)


def overview(played: PlayedEvaluation, room: FilmRoom) -> Html | None:
    """The worst failures in one film, aligned at the moment of failure; None where there is no such film."""
    address = None if played.overview is None else room.take(played.overview)
    if address is None:
        return None
    text = "the worst failures together, each from 3 s before its failure shows to 1 s after"
    return tag("figure", _video(address), tag("figcaption", [tag("small", text)]), class_="film together bad")


def _video(address: str) -> Html:
    return tag("video", src=address, controls=True, muted=True, loop=True, playsinline=True, preload="metadata")


def failure_kind(outcome: Mapping[str, Any]) -> str | None:
    """Say how an episode failed, in words; None where the evaluation does not say."""
    kind = outcome.get("failure")
    return str(kind).replace("_", " ") if kind else None
