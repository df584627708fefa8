"""The one error meant for users: their input is wrong, and the message says what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """The user's input is wrong. The message names the key, file or flag and what would be right.

    The command line prints the message alone, without a traceback, and exits with 2.
    """

    def __str__(self) -> str:
        """The message, in which half of a character, as a damaged file or a file's name may have it, is escaped:
        neither logs nor pages could be written with it."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of `known`, or '' if none is close."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
