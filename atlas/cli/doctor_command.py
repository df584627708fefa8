"""`atlas doctor`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

from atlas.cli.options import Json
from atlas.cli.output import print_json, say, stdout_kept_for_the_report

if TYPE_CHECKING:
    from atlas.doctor import Finding

_NAME_WIDTH, _STATUS_WIDTH = 15, 9
_LINE = 110


def doctor(as_json: Json = False) -> None:
    """Look at this machine, try out what training needs, and say what to do about what is wrong."""
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
