"""`atlas report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas.cli.options import Json
from atlas.cli.output import print_json, say, stdout_kept_for_the_report
from atlas.system.paths import check_file


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Folders, or names under outputs/; several are put side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in the run's folder; of several runs, here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: success, curves, errors, films, checks, settings. It needs no network."""
    if out is not None:
        check_file("--out", out, "report.html")
    with stdout_kept_for_the_report(as_json):
        from atlas.report import report as write

        page = write(runs, out)
    if as_json:
        print_json({"report": str(page), "bytes": page.stat().st_size})
    else:
        say(f"The report is in {page}; open it in a browser.")
