"""`atlas doctor`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas.cli.options import Json
from atlas.cli.output import print_json, say, stdout_kept_for_the_report
from atlas.errors import InputError

if TYPE_CHECKING:
    from atlas.doctor import Finding

_NAME_WIDTH, _STATUS_WIDTH = 15, 9
_LINE = 110


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run that fails in rollouts: its folder, or a name under outputs/."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of RUN's policy, rolled out; default: 12, 0: none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at this machine and say what to do about what is wrong; or, with RUN, why a run fails in rollouts."""
    if run is None and episodes is not None:
        raise InputError("--episodes are of a run's policy: name the run, such as `atlas doctor outputs/first`.")
    if run is None:
        _machine(as_json)
    else:
        _run(run, episodes, as_json)


def _machine(as_json: bool) -> None:
    from atlas.doctor import can_train, examine

    findings = []
    with stdout_kept_for_the_report(as_json):
        for finding in examine():
            findings.append(finding)
            if not as_json:
                say(_paragraph(finding), flush=True)
    works = can_train(findings)
    if as_json:
        print_json({"can_train": works, "findings": [finding.to_dict() for finding in findings]})
    else:
        print(f"\n{_verdict(findings)}")
    raise typer.Exit(0 if works else 1)


def _run(run: Path, episodes: int | None, as_json: bool) -> None:
    with stdout_kept_for_the_report(as_json):
        from atlas.doctor.run_examination import EPISODES, examine_run
        from atlas.report import write_report
        from atlas.runs.run_directory import read_named

        folder = read_named([str(run)])[0].path
        if not folder.is_dir():
            raise InputError(f"{folder} is a file of outcomes; name the folder of the run.")
        tell = lambda what: say(f"looking at {what}", file=sys.stderr)  # noqa: E731
        found = examine_run(folder, EPISODES if episodes is None else episodes, tell)
        try:
            found.diagnosis.save(folder)
            write_report(folder)
        except (OSError, InputError) as error:
            say(f"The run's report does not show this: {error}", file=sys.stderr)
    if as_json:
        successes, played = found.success or (None, 0)
        told = {"run": str(folder), "checkpoint": str(found.checkpoint), "successes": successes, "episodes": played}
        findings = [finding.to_dict() for finding in found.findings]
        print_json({**told, **found.diagnosis.to_dict(), "findings": findings})
    else:
        for line in found.diagnosis.lines:
            begin = f"{line.status:{_STATUS_WIDTH + 1}}"
            margin = " " * len(begin)
            say(_wrap(f"{line.label}: {line.evidence}", begin, margin))
            if line.fix is not None:
                say(_wrap(line.fix, f"{margin}-> ", f"{margin}   "))
        say(f"\n{found.diagnosis.advice}")
    raise typer.Exit(1 if found.diagnosis.problems else 0)


def _paragraph(finding: Finding) -> str:
    margin = " " * (_STATUS_WIDTH + _NAME_WIDTH)
    begin = f"{finding.status:{_STATUS_WIDTH}}{finding.check.replace('_', ' '):{_NAME_WIDTH}}"
    lines = [_wrap(finding.seen, begin, margin)]
    if finding.fix is not None:
        lines.append(_wrap(finding.fix, f"{margin}-> ", f"{margin}   "))
    return "\n".join(lines)


def _wrap(text: str, begin: str, margin: str) -> str:
    # Paths and commands are not broken, so that they can be copied.
    return textwrap.fill(
        text, _LINE, initial_indent=begin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def _verdict(findings: list[Finding]) -> str:
    problems = [f.check.replace("_", " ") for f in findings if f.status == "problem"]
    warnings = [f.check.replace("_", " ") for f in findings if f.status == "warning"]
    if problems:
        return f"Training does not work here as it should; broken: {', '.join(problems)}."
    return "Training works here." + (f" To look at: {', '.join(warnings)}." if warnings else "")
