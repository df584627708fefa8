"""`atlas data`: record and inspect demonstrations, and cache features of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from atlas.cli.options import PLAIN, ConfigFile, Json, Overrides, SkipDamaged, Workers, as_overrides
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.errors import InputError, did_you_mean
from atlas.system.paths import check_folder

data_app = typer.Typer(help="Record, inspect, convert and view demonstrations.", **PLAIN)

Codec = Annotated[
    str | None, typer.Option(metavar="NAME", help="For a LeRobot dataset's images: av1 (default), h264, hevc or png.")
]


@data_app.command("record")
def record(
    env: Annotated[str, typer.Option(help="The environment, such as cubes.")],
    episodes: Annotated[int, typer.Option(metavar="N", help="Demonstrations in all, balanced over the tasks.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the files.")],
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="The seed of the episodes' starts.")] = 0,
    workers: Workers = None,
    image_size: Annotated[int, typer.Option(min=16, max=1024, metavar="PIXELS", help="Height and width.")] = 64,
    to: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="libero-hdf5 or lerobot; default: the first where the world fits it."),
    ] = None,
    codec: Codec = None,
    randomize: Annotated[
        str | None,
        typer.Option(metavar="all|NAME[:LEVEL],…", help="Perturb the scenes: cameras, light, colours, starts."),
    ] = None,
) -> None:
    """Record demonstrations with a scripted expert."""
    from atlas.rollout import recording

    check_folder("--out", out)
    form = None if to is None else as_format(to)
    perturbed = () if randomize is None else tuple(randomize.split(","))
    settings = recording.RecordSettings(env, episodes, seed, image_size, perturbed)
    recording.record(settings, out, workers, form, codec)
    say(f"{episodes} demonstrations are in {out}.")


@data_app.command("convert")
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A dataset of any format, or hf:owner/name.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the copy, new or empty.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="lerobot or libero-hdf5.")],
    overrides: Overrides = None,
    codec: Codec = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=1000, help="Frames per second that the copy states.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, metavar="W", help="Processes; default: one per core.")] = None,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Copy a dataset into another format; continues where it was stopped."""
    from atlas.data import convert as converting

    check_folder("DST", out)
    asked = converting.Conversion(as_format(to), codec, fps)
    converting.check_target(out)
    dataset = open_source(source, overrides, skip_damaged)
    new = converting.convert(dataset, out, asked, workers)
    say(f"{len(dataset)} episodes {'are' if new else 'were already'} in {out}.")


@data_app.command("view")
def view(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A dataset of any format, or hf:owner/name.")],
    overrides: Overrides = None,
    episode: Annotated[int, typer.Option(min=0, metavar="N", help="Its number.")] = 0,
    checkpoint: Annotated[str | None, typer.Option(metavar="DIR", help="Also show what this policy would do.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page (.html), a film (.mp4), or for Rerun (.rrd).")
    ] = None,
    skip_damaged: SkipDamaged = False,
) -> None:
    """Look at an episode: as a page for the browser that needs no other file, or as a film."""
    from atlas import viewer

    out = out or Path(f"{path.rstrip('/').split('/')[-1].split(':')[-1]}-episode-{episode}.html")
    viewer.check_out(out)
    viewer.look(open_source(path, overrides, skip_damaged), episode, out, checkpoint)
    say(f"Episode {episode} is in {out}." + (" Open it in a browser." if out.suffix == ".html" else ""))


def as_format(name: str) -> Any:
    """The format that --to names. Raises InputError."""
    from atlas.data.convert import FORMATS

    if name not in FORMATS:
        raise InputError(f"--to is '{name}', expected {' or '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return name


def open_source(path: str, overrides: list[str] | None, skip_damaged: bool = False) -> Any:
    """The dataset at a path, read as the overrides' `data` section says. Raises InputError."""
    from atlas.config import load_config
    from atlas.data.formats import open_dataset

    flags = {"data.path": path, "data.skip_damaged": skip_damaged or None}
    config = load_config(None, [*(overrides or []), *as_overrides(flags)]).data
    orientation = None if config.orientation == "auto" else config.orientation
    return open_dataset(
        path,
        orientation,
        config.drop_noops,
        config.features,
        config.cameras,
        config.instruction,
        config.skip_damaged,
    )


@data_app.command("inspect")
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A dataset of any format, or hf:owner/name.")],
    overrides: Overrides = None,
    skip_damaged: SkipDamaged = False,
    as_json: Json = False,
) -> None:
    """Show what a dataset holds."""
    with stdout_kept_for_the_report(as_json):
        from atlas.checks.inspection import inspect_dataset
        from atlas.config import DataConfig

        found = inspect_dataset(open_source(path, overrides, skip_damaged))
    if as_json:
        print_json(found)
        return
    for key in ("format", "episodes", "frames", "fps", "action_dim", "proprio_dim"):
        say(f"{key.replace('_', ' '):12} {found[key]}")
    sizes = [f"{name} {height}x{width}" for name, (height, width) in found["cameras"].items()]
    say(f"{'cameras':12} {', '.join(sizes)}")
    horizon = DataConfig().action_horizon
    padding = found["episodes"] * (horizon - 1) / 2 / found["frames"]  # the last chunks of each episode
    say(f"{'padding':12} {padding:.1%} of the steps, in chunks of {horizon}")
    print_table("tasks", ("instruction", "episodes"), [(name, str(n)) for name, n in found["tasks"].items()])
    ranges = zip(found["action_min"], found["action_max"], strict=True)
    groups = [(name, group) for group in found["action_spec"]["groups"] for name in group["names"]]
    rows = [
        (str(i), name, " ".join(filter(None, (group["arm"], group["kind"]))), f"{low:.4g}", f"{high:.4g}")
        for i, ((name, group), (low, high)) in enumerate(zip(groups, ranges, strict=True))
    ]
    print_table("actions", ("dimension", "name", "of", "min", "max"), rows)
    for note in found["read_as"]:
        say(f"read as: {note}")
    for warning in found["warnings"]:
        say(f"warning: {warning}")


@data_app.command("check")
def check(
    path: Annotated[str, typer.Argument(help="A dataset of any format, or hf:owner/name.")],
    overrides: Overrides = None,
    env: Annotated[
        str | None,
        typer.Option(metavar="cubes|libero…|none", help="Replay in this world; default: the one it was recorded in."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder for pictures.")] = None,
    replay: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes to replay.")] = 10,
    as_json: Json = False,
) -> None:
    """Look for what would make a policy fail; exit code 1 if an error is found."""
    if out is not None:
        check_folder("--out", out)
    with stdout_kept_for_the_report(as_json):
        from atlas.checks.data_check import check_data
        from atlas.config import load_config
        from atlas.environments.rendering import RenderingGPU, render_on

        config = load_config(None, [*(overrides or []), *as_overrides({"data.path": path})])
        render_on(RenderingGPU.first_shown())  # the world that replays is in this process, which computes on no GPU
        findings = check_data(config, env, out, replay, title=f"checking {path}")
    if as_json:
        print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        for severity in ("info", "warning", "error"):
            for finding in findings:
                if finding.severity == severity:
                    say(f"{severity:8} {finding.check:9} {finding.message}")
                    if finding.fix is not None:
                        say(f"{'':18} {finding.fix}")
        count = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning")}
        say(", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in count.items()))
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@data_app.command("cache-features")
def cache_features(
    overrides: Overrides = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder; default: data.feature_cache.")] = None,
    variants: Annotated[
        int, typer.Option(min=0, metavar="K", help="Augmented versions of each frame, in addition to the plain one.")
    ] = 0,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: all visible GPUs.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
) -> None:
    """Compute a frozen backbone's features of every frame, once; continues where it was stopped."""
    from atlas.config import load_config
    from atlas.launch import count_gpus, launch_ranks, plan_processes, settle_device

    flags = {"distributed.gpus": gpus, "distributed.cpu": cpu or None}
    resolved = load_config(config, [*(overrides or []), *as_overrides(flags)])
    out = out or (Path(resolved.data.feature_cache) if resolved.data.feature_cache else None)
    if out is None:
        raise InputError("Name the folder for the features: --out DIR, or data.feature_cache=DIR.")
    check_folder("--out", out)
    plan = plan_processes(resolved.distributed, count_gpus(resolved.distributed))
    os.environ.update(plan.visible(os.environ))  # before anything asks CUDA, which reads it once
    settle_device(resolved.distributed)
    from atlas.config.secrets import without_keys
    from atlas.policies.feature_cache_filling import begin_cache, describe
    from atlas.system.locks import check_free, hold

    what = "this feature cache"
    check_free(out, what)
    cache = begin_cache(without_keys(resolved), out, variants)
    with hold(out, what):
        say(describe(cache), flush=True)
        if plan.processes == 1:
            cache_rank(out)
        elif code := launch_ranks(["cache-rank", str(out)], plan):
            raise typer.Exit(code)
    say(f"The features are in {out}; train with data.feature_cache={out}.")


def cache_rank(folder: Path) -> None:
    """One of the processes that share the work of `atlas data cache-features`."""
    from atlas.launch import die_with_launcher

    if "RANK" in os.environ:
        die_with_launcher()
    from atlas.config import load_config
    from atlas.policies.feature_cache_filling import work_on_cache
    from atlas.system.file_store import CONFIG
    from atlas.train import make_accelerator

    accelerator = make_accelerator(load_config(folder / CONFIG))
    work_on_cache(folder, accelerator)
    accelerator.end_training()
