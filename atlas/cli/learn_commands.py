"""`atlas learn`: a trained policy improves by its own experience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas.cli.options import PLAIN, Json, Overrides
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report

if TYPE_CHECKING:
    from atlas.learning.improvement import Improvement

learn_app = typer.Typer(help="Improve a trained policy by its own experience, in a simulator.", **PLAIN)

Checkpoint = Annotated[str, typer.Option(metavar="RUN", help="The run to improve, or a checkpoint of it.")]
World = Annotated[str, typer.Option("--env", help="The environment, such as cubes.")]


@learn_app.command("dagger")
def dagger(checkpoint: Checkpoint, env: World, overrides: Overrides = None, as_json: Json = False) -> None:
    """The world's expert takes over from the policy, and is imitated."""
    _learn("dagger", checkpoint, env, overrides, as_json)


@learn_app.command("rft")
def rft(checkpoint: Checkpoint, env: World, overrides: Overrides = None, as_json: Json = False) -> None:
    """The policy acts with noise, and imitates its own successes."""
    _learn("rft", checkpoint, env, overrides, as_json)


def _learn(name: str, checkpoint: str, env: str, overrides: list[str] | None, as_json: bool) -> None:
    with stdout_kept_for_the_report(as_json):
        from atlas.learning.rounds import learn
        from atlas.learning.run_config import config_of_run

        improvement = learn(config_of_run(checkpoint, name, overrides or []), name, checkpoint, env)
    if as_json:
        print_json(improvement.to_dict())
    else:
        _show(improvement)


def _show(improvement: Improvement) -> None:
    from atlas.rollout.proportions import wilson_interval

    rows = []
    for what, report in improvement.reports.items():
        successes, episodes = sum(o.success for o in report.outcomes), len(report.outcomes)
        low, high = wilson_interval(successes, episodes)
        rows.append((what, f"{successes}/{episodes}", f"{report.success_rate:.1%}", f"{low:.1%} to {high:.1%}"))
    title = f"Success in '{improvement.env}', on episodes never used before"
    print_table(title, ("policy", "successes", "success rate", "95% interval"), rows)
    say(improvement.sentence())
    say(f"{improvement.episodes} episodes of {improvement.steps:,} steps were played; the run is {improvement.folder}.")
    say(f"To act with the better policy: atlas eval --checkpoint {improvement.folder / 'best'} --env {improvement.env}")
