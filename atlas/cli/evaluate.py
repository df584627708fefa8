"""`atlas eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from atlas.cli.options import Json, Workers
from atlas.cli.output import print_json, print_table, stdout_kept_for_the_report
from atlas.paths import check_file, check_folder


def evaluate(
    checkpoint: Annotated[str, typer.Option(metavar="DIR", help="A checkpoint, or the policy folder in it.")],
    env: Annotated[str, typer.Option(help="The environment, such as cubes.")],
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes in all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Of the episodes' starts.")] = 0,
    execute: Annotated[
        int | None, typer.Option(min=1, metavar="E", help="Actions executed of each predicted chunk.")
    ] = None,
    ensemble: Annotated[
        float | None, typer.Option(min=0, metavar="W", help="Average overlapping chunks with this weight (off).")
    ] = None,
    instruction_shuffle: Annotated[
        bool, typer.Option("--instruction-shuffle", help="Tell the policy another task than the one that counts.")
    ] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show the policy black images.")] = False,
    video: Annotated[Path | None, typer.Option(metavar="DIR", help="Film the episodes into this folder.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every episode's outcome there; `atlas runs compare`.")
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Roll a trained policy out and count its successes."""
    if out is not None:
        check_file("--out", out, "outcomes.json")
    if video is not None:
        check_folder("--video", video)
    with stdout_kept_for_the_report(as_json):
        from atlas.rollout.evaluate import evaluate_checkpoint

        evaluation = evaluate_checkpoint(
            checkpoint=checkpoint,
            env=env,
            episodes=episodes,
            seed=seed,
            execute=execute,
            ensemble=ensemble,
            instruction_shuffle=instruction_shuffle,
            blind=blind,
            video=video,
            workers=workers,
        )
        if out is not None:
            evaluation.save(out)
    report = evaluation.to_dict()
    if as_json:
        print_json(report)
        return
    rows = [(name, *_counts(part)) for name, part in [*report["per_instruction"].items(), ("all", report)]]
    title = f"{report['checkpoint']} in {report['env']}"
    print_table(title, ("instruction", "episodes", "successes", "success rate", "95% interval"), rows)
    print(f"mean episode length: {report['mean_episode_length']:.1f} steps")
    if out is not None:
        print(f"The outcomes are in {out}.")


def _counts(part: dict[str, Any]) -> tuple[str, ...]:
    from atlas.tracking.proportions import wilson_interval

    low, high = wilson_interval(part["successes"], part["episodes"])
    return str(part["episodes"]), str(part["successes"]), f"{part['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"
