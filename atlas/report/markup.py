"""HTML and SVG built from parts, in which foreign text is always escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from atlas.system.safe_text import printable

_EMPTY = {"meta", "br", "hr", "source"}  # elements that HTML never closes


class Html(str):
    """Markup. Any other string is text, which is escaped when it is put into an element."""

    __slots__ = ()


Part = str | Iterable["Part"] | None


def tag(name: str, /, *content: Part, **attributes: str | float | bool | None) -> Html:
    """An element. Attributes that are Python keywords end in `_`; `data_x` is data-x; None and False are left out."""
    written = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        written.append(key if value is True else f'{key}="{html.escape(printable(shown))}"')
    opened = f"<{' '.join(written)}>"
    return Html(opened if name in _EMPTY else f"{opened}{join(content)}</{name}>")


def join(parts: Part) -> Html:
    """Join parts; strings that are not markup are escaped."""
    if parts is None:
        return Html("")
    if isinstance(parts, Html):
        return parts
    if isinstance(parts, str):
        return Html(html.escape(printable(parts)))
    return Html("".join(join(part) for part in parts))


def table(columns: Sequence[Part], rows: Sequence[Sequence[Part]], numbers: bool = True) -> Html:
    """A table that scrolls by itself on a narrow screen. numbers: align all columns but the first to the right."""
    head = tag("tr", (tag("th", column, scope="col") for column in columns))
    body = (
        tag("tr", tag("th", row[0], scope="row"), (tag("td", cell, data_column=_plain(name)) for name, cell in cells))
        for row in rows
        for cells in [zip(columns[1:], row[1:], strict=True)]
    )
    inside = tag("table", tag("thead", head), tag("tbody", body), class_="numbers" if numbers else None)
    return tag("div", inside, class_="scroll")


def _plain(column: Part) -> str | None:
    return column if isinstance(column, str) and not isinstance(column, Html) else None


def facts(pairs: Iterable[tuple[str, Part]]) -> Html:
    """A list of names and their values."""
    return tag("dl", (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def section(name: str, title: str, *content: Part, note: Part = None) -> Html:
    """A part of the page, to which #name links."""
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else None, *content, id=name)


def fold(title: Part, *content: Part, opened: bool = False) -> Html:
    """Content that is shown when its title is clicked, and always in print."""
    return tag("details", tag("summary", title), tag("div", *content, class_="folded"), open=opened)
