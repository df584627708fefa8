"""`atlas report`: one self-contained HTML file about one run or several."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from atlas.errors import InputError
from atlas.report.curve_drawing import COLOURS
from atlas.report.episode_sections import episodes, perturbations
from atlas.report.first_screen import card, sentence
from atlas.report.learning_sections import curves, errors_by_task, side_by_side
from atlas.report.markup import Html, tag
from atlas.report.origin_sections import checks, data, machine, reproduce, settings, sides
from atlas.report.run_facts import RunFacts, gather
from atlas.runs.run_directory import read_named, read_run
from atlas.system.files import write_text

REPORT = "report.html"  # in the run's folder
_STYLE = Path(__file__).parent / "style"
_HEADING = re.compile(r'<section id="([\w-]+)"><h2>(.*?)</h2>')


def report(names: Sequence[str], out: Path | None = None) -> Path:
    """Write a page about runs, which are folders or names under outputs/; returns its path.

    out: None: report.html in the run's folder, or in the current folder for several runs. Raises InputError for a name
    that is not a run, a run that is damaged or of a later version, and a file that cannot be written.
    """
    runs = read_named(names)
    if out is None:
        out = runs[0].path / REPORT if len(runs) == 1 and runs[0].path.is_dir() else Path(REPORT)
    return _write([gather(run) for run in runs], out)


def write_report(run_dir: Path) -> Path:
    """Write a run's page into its folder, as at the end of training. Raises InputError."""
    return _write([gather(read_run(run_dir))], run_dir / REPORT)


def _write(runs: Sequence[RunFacts], out: Path) -> Path:
    try:
        write_text(out, draw_page(runs))
    except OSError as error:
        raise InputError(f"The report cannot be written to {out} ({error.strerror}); name a file with --out.") from None
    return out


def draw_page(runs: Sequence[RunFacts]) -> str:
    """The whole page."""
    single = runs[0] if len(runs) == 1 else None
    title = single.name if single else " · ".join(run.name for run in runs)
    heading = sentence(single) if single else f"{len(runs)} runs side by side"
    cards = [card(run, i % COLOURS, len(runs) > 1) for i, run in enumerate(runs)]
    notes = [tag("p", note, class_="note") for run in runs for note in run.notes]
    sections = _sections(runs)
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"{title} · Atlas"),
            tag("style", Html((_STYLE / "report.css").read_text(encoding="utf-8"))),
        ),
        tag(
            "body",
            tag(
                "header",
                tag("p", tag("span", "Atlas", class_="brand"), tag("span", title, class_="crumbs"), class_="line"),
                tag("h1", heading),
            ),
            tag("main", tag("div", cards, class_="cards"), _contents(sections), notes, sections),
            tag("footer", f"Written {time.strftime('%Y-%m-%d %H:%M')} from the files of the run; it needs no network."),
            tag("div", id="tip", role="status"),
            tag("script", Html((_STYLE / "report.js").read_text(encoding="utf-8"))),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


def _sections(runs: Sequence[RunFacts]) -> list[Html]:
    found = [
        side_by_side(runs),
        curves(runs),
        errors_by_task(runs),
        perturbations(runs),
        episodes(runs),
        sides(runs, "checks", "Findings of the checks", checks),
        sides(runs, "data", "Data", data),
        sides(runs, "settings", "Settings", settings, note="The default is the default job of this version of Atlas."),
        sides(runs, "machine", "Hardware, speed, time", machine),
        sides(runs, "again", "How to repeat it", reproduce),
    ]
    return [each for each in found if each is not None]


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections."""
    heads = [match for each in sections if (match := _HEADING.match(each)) is not None]
    return tag("nav", (tag("a", Html(match[2]), href=f"#{match[1]}") for match in heads))
