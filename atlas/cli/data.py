"""`atlas data`: record and inspect demonstrations, cache features of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from atlas.cli.options import PLAIN, ConfigFile, Json, Overrides, Workers, as_overrides
from atlas.cli.output import print_json, print_table, stdout_kept_for_the_report
from atlas.errors import InputError
from atlas.paths import check_folder

data_app = typer.Typer(help="Record and inspect demonstrations.", **PLAIN)


@data_app.command("record")
def record(
    env: Annotated[str, typer.Option(help="The environment, such as cubes.")],
    episodes: Annotated[int, typer.Option(metavar="N", help="Demonstrations in all, balanced over the tasks.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the files.")],
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Of the episodes' starts.")] = 0,
    workers: Workers = None,
    image_size: Annotated[int, typer.Option(min=16, max=1024, metavar="PIXELS", help="Height and width.")] = 64,
) -> None:
    """Record demonstrations with a scripted expert."""
    from atlas.rollout import record as recording

    check_folder("--out", out)
    settings = recording.RecordSettings(env=env, episodes=episodes, seed=seed, image_size=image_size)
    recording.record(settings, out, workers)
    print(f"{episodes} demonstrations are in {out}.")


@data_app.command("inspect")
def inspect(path: Annotated[str, typer.Argument(help="A dataset.")], as_json: Json = False) -> None:
    """Say what a dataset holds."""
    with stdout_kept_for_the_report(as_json):
        from atlas.checks.inspection import inspect_dataset
        from atlas.config import DataConfig

        found = inspect_dataset(path)
    if as_json:
        print_json(found)
        return
    for key in ("format", "episodes", "frames", "fps", "action_dim", "proprio_dim"):
        print(f"{key.replace('_', ' '):12} {found[key]}")
    sizes = [f"{name} {height}x{width}" for name, (height, width) in found["cameras"].items()]
    print(f"{'cameras':12} {', '.join(sizes)}")
    horizon = DataConfig().action_horizon
    padding = found["episodes"] * (horizon - 1) / 2 / found["frames"]  # the last chunks of each episode
    print(f"{'padding':12} {padding:.1%} of the steps, in chunks of {horizon}")
    print_table("tasks", ("instruction", "episodes"), [(name, str(n)) for name, n in found["tasks"].items()])
    ranges = zip(found["action_min"], found["action_max"], strict=True)
    rows = [(str(i), f"{low:.4g}", f"{high:.4g}") for i, (low, high) in enumerate(ranges)]
    print_table("actions", ("dimension", "min", "max"), rows)
    for warning in found["warnings"]:
        print(f"warning: {warning}")


@data_app.command("cache-features")
def cache_features(
    overrides: Overrides = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder; default: data.feature_cache.")] = None,
    variants: Annotated[
        int, typer.Option(min=0, metavar="K", help="Augmented versions of each frame, beside the plain one.")
    ] = 0,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: all visible GPUs.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
) -> None:
    """Compute a frozen backbone's features of every frame, once; goes on where it was stopped."""
    from atlas.config import load_config
    from atlas.launch import count_gpus, launch_ranks, plan_processes

    flags = {"distributed.gpus": gpus, "distributed.cpu": cpu or None}
    resolved = load_config(config, [*(overrides or []), *as_overrides(flags)])
    out = out or (Path(resolved.data.feature_cache) if resolved.data.feature_cache else None)
    if out is None:
        raise InputError("Name the folder for the features: --out DIR, or data.feature_cache=DIR.")
    check_folder("--out", out)
    plan = plan_processes(resolved.distributed, count_gpus(resolved.distributed))
    os.environ.update(plan.environment(os.environ))
    from atlas.policy.features import begin_cache, describe

    print(describe(begin_cache(resolved, out, variants)), flush=True)
    if plan.processes == 1:
        cache_rank(out)
    elif code := launch_ranks(["cache-rank", str(out)], plan):
        raise typer.Exit(code)
    print(f"The features are in {out}; train with data.feature_cache={out}.")


def cache_rank(folder: Path) -> None:
    """One of the processes that share the work of `atlas data cache-features`."""
    from atlas.launch import die_with_launcher

    if "RANK" in os.environ:
        die_with_launcher()
    from atlas.config import load_config
    from atlas.policy.features import CONFIG, work_on_cache
    from atlas.train import make_accelerator

    accelerator = make_accelerator(load_config(folder / CONFIG))
    work_on_cache(folder, accelerator)
    accelerator.end_training()
