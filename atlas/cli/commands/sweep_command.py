"""`atlas sweep`: vary config keys, with wandb's agents or only on this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from atlas.cli.options import PLAIN, Entity, Json, Project
from atlas.cli.output import print_json, say, stdout_kept_for_the_report

sweep_app = typer.Typer(help="Vary config keys: on this machine, or with wandb.", **PLAIN)

_DEFAULT = Path(__file__).parents[2] / "configs" / "sweep.yaml"


@sweep_app.command("local")
def local(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="A sweep file with the method grid.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder for the runs; default: outputs/GRID.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at a time; they share the GPUs.")] = 1,
    as_json: Json = False,
) -> None:
    """Train every point of a grid, without any account; continues where it was stopped."""
    with stdout_kept_for_the_report(as_json):
        from atlas.sweeps.grid import read_sweep
        from atlas.sweeps.local_grid import Grid

        def tell(line: str) -> None:
            say(line, flush=True)

        runs = Grid(read_sweep(grid), out or Path("outputs") / grid.stem, parallel)
        code = runs.run(tell)
        comparison = runs.compare(tell)
    if as_json:
        trials = [trial.to_dict() for trial in runs.trials]
        print_json({"out": str(runs.out), "runs": trials, "comparison": comparison and comparison.to_dict()})
    else:
        if comparison is not None:
            from atlas.cli.commands.runs_commands import print_comparison

            print_comparison(comparison)
        states = Counter(trial.state for trial in runs.trials)
        say(", ".join(f"{count} {state}" for state, count in states.items()) + f"; the runs are in {runs.out}.")
    raise typer.Exit(code)


@sweep_app.command("create")
def create(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="A sweep file; default: atlas's own.")
    ] = _DEFAULT,
    project: Project = None,
    entity: Entity = None,
    as_json: Json = False,
) -> None:
    """Create a sweep on wandb's server, which chooses the values."""
    with stdout_kept_for_the_report(as_json):
        from atlas.sweeps.grid import read_sweep
        from atlas.sweeps.wandb_sweep import create_sweep

        made = create_sweep(read_sweep(file), project, entity)
    if as_json:
        print_json({"id": made.id, "entity": made.entity, "project": made.project, "path": made.path, "url": made.url})
        return
    say(f"Work on it, on as many machines as you like: atlas sweep agent {made.path}")


@sweep_app.command("agent")
def agent(
    sweep: Annotated[str, typer.Argument(metavar="ID", help="ID, PROJECT/ID or ENTITY/PROJECT/ID.")],
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="Runs; default: until the sweep ends.")] = None,
) -> None:
    """Train what wandb's server asks for."""
    from atlas.sweeps.wandb_sweep import run_agent

    run_agent(sweep, count)
