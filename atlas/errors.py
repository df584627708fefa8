"""The one error users are meant to see: their input is wrong, and here is what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """The user's input is wrong. The message names the key, file or flag and what would be right.

    The command line prints the message alone, without a traceback, and exits with 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of `known`, or '' where nothing comes near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """What an error says first, without the pages of advice that may follow and without a full stop; else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
