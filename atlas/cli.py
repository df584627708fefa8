"""The `atlas` command. Each verb is thin, and imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas import __version__
from atlas.errors import InputError

if TYPE_CHECKING:
    from atlas.config import Config

# Plain text instead of boxes: messages are not broken over lines, and rich is not imported for --help.
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "no_args_is_help": True, "add_completion": False}
_HELP = {"help_option_names": ["--help", "-h"]}

app = typer.Typer(
    help="Train and evaluate vision-language-action robot policies.",
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    **_PLAIN,
)
data_app = typer.Typer(help="Record and inspect demonstrations.", **_PLAIN)
model_app = typer.Typer(help="Look at models.", **_PLAIN)
config_app = typer.Typer(help="Look at the configuration.", **_PLAIN)
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(config_app, name="config")


class Mode(str, Enum):
    """What `--mode` takes."""

    single = "single"
    multi = "multi"


ConfigFile = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file; default: atlas's own.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config keys, such as training.max_steps=100.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Workers = Annotated[int | None, typer.Option(min=1, metavar="W", help="Simulator processes; default: one a core.")]
Resume = Annotated[
    str | None,
    typer.Option(metavar="auto|DIR", help="Continue from a checkpoint; auto: the latest, or a fresh start."),
]


def main() -> None:
    """The entry point: run a verb and turn what it raises into a message and an exit code."""
    from atlas.launch import leave_exit_code

    code = _run()
    leave_exit_code(code)
    sys.exit(code)


def _run() -> int:
    try:
        app(prog_name="atlas")
    except SystemExit as stop:  # how typer ends, usage errors (2) included
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            import traceback

            traceback.print_exc()
            return 1
        if str(error) and os.environ.get("RANK", "0") == "0":  # every rank is stopped; one says so
            print(error, file=sys.stderr)
        return code
    return 0


def _version(asked: bool) -> None:
    if asked:
        print(f"atlas {__version__}")
        raise typer.Exit


@app.callback()
def _atlas(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


# ---- training --------------------------------------------------------------------------------------------


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    mode: Annotated[Mode | None, typer.Option(help="One process, or several; default: all visible GPUs.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; with --cpu, CPU processes.")] = None,
    gpu_ids: Annotated[str | None, typer.Option(metavar="0,2", help="Which of the visible GPUs.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    resume: Resume = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases too.")] = False,
    wandb_project: Annotated[str | None, typer.Option(metavar="P", help="Its project.")] = None,
    wandb_entity: Annotated[str | None, typer.Option(metavar="E", help="Its user or team.")] = None,
    wandb_name: Annotated[str | None, typer.Option(metavar="N", help="The run's name there.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="A few steps, to see that everything runs; no wandb.")] = False,
) -> None:
    """Train a policy."""
    flags = {
        "distributed.mode": mode.value if mode else None,
        "distributed.gpus": gpus,
        "distributed.gpu_ids": _gpu_ids(gpu_ids),
        "distributed.cpu": cpu or None,
        "wandb.enabled": wandb or None,
        "wandb.project": wandb_project,
        "wandb.entity": wandb_entity,
        "wandb.name": wandb_name,
    }
    from atlas.config import load_config
    from atlas.launch import count_gpus, launch_ranks, plan_processes
    from atlas.train import load_run_config, prepare, run

    resolved = load_run_config(config, [*(overrides or []), *_as_overrides(flags)], resume)
    if debug:
        resolved = load_config(resolved, _debug_overrides(resolved))
    plan = plan_processes(resolved.distributed, count_gpus(resolved.distributed))
    # All that can be wrong is found here, once, before there are several processes.
    resolved, checkpoint = prepare(resolved, resume)
    if plan.processes == 1:
        os.environ.update(plan.environment(os.environ))
        run(resolved, checkpoint)
        return
    arguments = ["rank", str(Path(resolved.output_dir) / str(resolved.run_name))]
    raise typer.Exit(launch_ranks([*arguments, *(["--resume", str(checkpoint)] if checkpoint else [])], plan))


@app.command(hidden=True)
def rank(run_dir: Path, resume: Annotated[Path | None, typer.Option(metavar="CHECKPOINT")] = None) -> None:
    """One process of a training of several; started by `atlas train`."""
    from atlas.launch import die_with_launcher

    die_with_launcher()
    from atlas.config import load_config
    from atlas.train import run

    run(load_config(run_dir / "config.yaml"), resume)


def _gpu_ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' should be numbers such as 0,2.", param_hint="'--gpu-ids'") from None


def _as_overrides(values: dict[str, Any]) -> list[str]:
    """Values as `key=value`; None means not given. JSON is YAML, so that any text survives."""
    return [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in values.items() if v is not None]


def _debug_overrides(config: Config) -> list[str]:
    """What `--debug` changes: what takes time becomes small, and nothing larger than it was."""
    steps, episodes = 5, 2
    smaller = {
        "training.max_steps": (config.training.max_steps or steps, steps),
        "training.warmup_steps": (config.training.warmup_steps, 1),
        "training.log_interval": (config.training.log_interval, 1),
        "training.val_interval": (config.training.val_interval, steps),
        "checkpoint.save_interval": (config.checkpoint.save_interval, steps),
        "evaluation.interval": (config.evaluation.interval, steps),
        "evaluation.episodes": (config.evaluation.episodes, episodes),
        "evaluation.final_episodes": (config.evaluation.final_episodes, episodes),
        "evaluation.video": (config.evaluation.video, episodes),
    }
    numbers = [f"{key}={min(now, limit)}" for key, (now, limit) in smaller.items()]
    return [*numbers, "training.num_epochs=null", "wandb.enabled=false"]


# ---- evaluation ------------------------------------------------------------------------------------------


@app.command("eval")
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
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Roll a trained policy out and count its successes."""
    with _stdout_kept_for_the_report(as_json):
        from atlas.rollout.evaluate import evaluate_checkpoint

        report = evaluate_checkpoint(
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
        ).to_dict()
    if as_json:
        _print_json(report)
        return
    rows = [(name, *_counts(part)) for name, part in [*report["per_instruction"].items(), ("all", report)]]
    title = f"{report['checkpoint']} in {report['env']}"
    _print_table(title, ("instruction", "episodes", "successes", "success rate", "95% interval"), rows)
    print(f"mean episode length: {report['mean_episode_length']:.1f} steps")


def _counts(part: dict[str, Any]) -> tuple[str, ...]:
    from atlas.rollout.report import wilson_interval

    low, high = wilson_interval(part["successes"], part["episodes"])
    return str(part["episodes"]), str(part["successes"]), f"{part['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"


# ---- data ------------------------------------------------------------------------------------------------


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

    settings = recording.RecordSettings(env=env, episodes=episodes, seed=seed, image_size=image_size)
    recording.record(settings, out, workers)
    print(f"{episodes} demonstrations are in {out}.")


@data_app.command("inspect")
def inspect(path: Annotated[str, typer.Argument(help="A dataset.")], as_json: Json = False) -> None:
    """Say what a dataset holds."""
    with _stdout_kept_for_the_report(as_json):
        from atlas.checks.inspection import inspect_dataset
        from atlas.config import DataConfig

        found = inspect_dataset(path)
    if as_json:
        _print_json(found)
        return
    for key in ("format", "episodes", "frames", "fps", "action_dim", "proprio_dim"):
        print(f"{key.replace('_', ' '):12} {found[key]}")
    sizes = [f"{name} {height}x{width}" for name, (height, width) in found["cameras"].items()]
    print(f"{'cameras':12} {', '.join(sizes)}")
    horizon = DataConfig().action_horizon
    padding = found["episodes"] * (horizon - 1) / 2 / found["frames"]  # the last chunks of each episode
    print(f"{'padding':12} {padding:.1%} of the steps, in chunks of {horizon}")
    _print_table("tasks", ("instruction", "episodes"), [(name, str(n)) for name, n in found["tasks"].items()])
    ranges = zip(found["action_min"], found["action_max"], strict=True)
    rows = [(str(i), f"{low:.4g}", f"{high:.4g}") for i, (low, high) in enumerate(ranges)]
    _print_table("actions", ("dimension", "min", "max"), rows)
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
    resolved = load_config(config, [*(overrides or []), *_as_overrides(flags)])
    out = out or (Path(resolved.data.feature_cache) if resolved.data.feature_cache else None)
    if out is None:
        raise InputError("Name the folder for the features: --out DIR, or data.feature_cache=DIR.")
    plan = plan_processes(resolved.distributed, count_gpus(resolved.distributed))
    os.environ.update(plan.environment(os.environ))
    from atlas.policy.features import begin_cache, describe

    print(describe(begin_cache(resolved, out, variants)), flush=True)
    if plan.processes == 1:
        cache_rank(out)
    elif code := launch_ranks(["cache-rank", str(out)], plan):
        raise typer.Exit(code)
    print(f"The features are in {out}; train with data.feature_cache={out}.")


@app.command("cache-rank", hidden=True)
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


# ---- model and config ------------------------------------------------------------------------------------


@model_app.command("summary")
def model_summary(
    overrides: Overrides = None,
    config: ConfigFile = None,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="For the roofline: a100, l40s, rtx4090, h100, …")] = "h100",
    as_json: Json = False,
) -> None:
    """Count a model's parameters, tokens, operations and memory."""
    with _stdout_kept_for_the_report(as_json):
        from atlas.config import load_config
        from atlas.policy.summary import summarize

        resolved = load_config(config, overrides or [])
        found = summarize(resolved, gpu)
    if as_json:
        _print_json(found)
        return
    rows = [
        (
            part["name"],
            f"{part['parameters']:,}",
            f"{part['trainable']:,}",
            str(part["tokens"] or ""),
            f"{part['flops'] / 1e9:.4g}",
        )
        for part in found["parts"]
    ]
    total = (f"{found['parameters']:,}", f"{found['trainable_parameters']:,}", "")
    rows.append(("all", *total, f"{found['flops_per_sample'] / 1e9:.4g}"))
    _print_table("model", ("part", "parameters", "trainable", "tokens", "GFLOPs a sample"), rows)
    roofline, memory = found["roofline"], found["memory_gib"]
    print(f"training: {found['training_flops_per_sample'] / 1e9:.4g} GFLOPs a sample, forward and backward")
    print(
        f"roofline: {roofline['samples_per_second']:,.0f} samples/s on one {gpu} at its peak of "
        f"{roofline['peak_flops'] / 1e12:.0f} TFLOP/s (dense bf16); half of it is a good run"
    )
    print(
        f"memory:   {memory['total']:.2f} GiB a GPU with batches of {resolved.data.batch_size}: "
        f"{memory['weights_and_optimizer']:.2f} weights, gradients and optimizer, {memory['activations']:.2f} "
        "activations in float32 (bf16: about half)"
    )


@model_app.command("geometry")
def model_geometry(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for pictures, points and numbers.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE...", help="Pictures of one scene, or folders of them; the first is the reference."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", hidden=True)] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="REF", help="VGGT-1B's weights: a file, a folder or a name on the Hugging Face hub.")
    ] = "facebook/VGGT-1B",
    as_json: Json = False,
) -> None:
    """Show what VGGT sees in images: depth, cameras, points."""
    with _stdout_kept_for_the_report(as_json):
        from atlas.checks.geometry import geometry

        # All after the first of `--images a.png b.png` are arguments, not the option's values.
        report = geometry([*(images or []), *(more or [])], out, checkpoint)
    if as_json:
        _print_json(report)
        return
    rows = []
    for entry in report["images"]:
        fields, depths = entry["fov_degrees"], entry["depth_range"] or (math.nan, math.nan)
        place = ", ".join(f"{value:.3g}" for value in entry["position"])
        seen = f"{fields['horizontal']:.0f} x {fields['vertical']:.0f}"
        confidence = "" if entry["mean_confidence"] is None else f"{entry['mean_confidence']:.3g}"
        rows.append((entry["file"], place, seen, f"{depths[0]:.3g} to {depths[1]:.3g}", confidence))
    _print_table("what VGGT sees", ("image", "camera at", "field of view (deg)", "depth", "mean confidence"), rows)
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    print(f"Pictures, {report['points']['count']:,} points and geometry.json are in {out}.")


@config_app.command("schema")
def schema() -> None:
    """Print the config file's JSON schema, for editors."""
    from atlas.config import config_schema

    _print_json(config_schema())


@config_app.command("show")
def show(overrides: Overrides = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """Print the whole config, with defaults and overrides."""
    from atlas.config import dump_yaml, load_config

    resolved = load_config(config, overrides or [])
    if as_json:
        _print_json(resolved.model_dump(mode="json"))
    else:
        print(dump_yaml(resolved), end="")


# ---- printing --------------------------------------------------------------------------------------------


@contextmanager
def _stdout_kept_for_the_report(as_json: bool) -> Iterator[None]:
    """With --json, whatever is printed meanwhile goes to stderr, from C libraries and worker processes too."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """The value with null in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


if __name__ == "__main__":
    main()
