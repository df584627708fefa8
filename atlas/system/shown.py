"""Text from others, such as instructions and names in datasets, made safe to show."""

from __future__ import annotations

import html
import re

# What a terminal obeys instead of showing (C0 except tab and newline, DEL, C1), and what changes the direction of the
# text after it.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")


def printable(text: str) -> str:
    """The text for a terminal or a log: what a terminal would obey is escaped, such as \\x1b."""
    return _OBEYED.sub(lambda match: _written(match[0]), text)


def markdown(text: str) -> str:
    """The text as one line of Markdown that is shown as it is: it makes no tags, links, code or cells."""
    line = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def markdown_code(text: str) -> str:
    """The same, as code."""
    line = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
