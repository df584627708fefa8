"""`atlas model`: inspect models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from atlas.cli.options import PLAIN, ConfigFile, Json, Overrides
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.system.paths import check_folder

model_app = typer.Typer(help="Inspect models, and manage their versions.", **PLAIN)


@model_app.command("summary")
def model_summary(
    overrides: Overrides = None,
    config: ConfigFile = None,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="For the roofline: a100, l40s, rtx4090, h100, …")] = "h100",
    as_json: Json = False,
) -> None:
    """Count a model's parameters, tokens, operations and memory."""
    with stdout_kept_for_the_report(as_json):
        from atlas.config import load_config
        from atlas.policies.summary import summarize

        resolved = load_config(config, overrides or [])
        found = summarize(resolved, gpu)
    if as_json:
        print_json(found)
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
    print_table("model", ("part", "parameters", "trainable", "tokens", "GFLOPs per sample"), rows)
    roofline, memory = found["roofline"], found["memory_gib"]
    say(f"training: {found['training_flops_per_sample'] / 1e9:.4g} GFLOPs per sample, forward and backward")
    say(
        f"roofline: {roofline['samples_per_second']:,.0f} samples/s on one {gpu} at its peak of "
        f"{roofline['peak_flops'] / 1e12:.0f} TFLOP/s (dense bf16); half of it is a good run"
    )
    say(
        f"memory:   {memory['total']:.2f} GiB per GPU with batches of {resolved.data.batch_size}: "
        f"{memory['weights_and_optimizer']:.2f} weights, gradients and optimizer, {memory['activations']:.2f} "
        "activations in float32 (bf16: about half)"
    )


@model_app.command("export")
def model_export(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint, a saved policy, hf:owner/name or wandb:….")
    ],
    to: Annotated[
        str, typer.Option(metavar="FORM", help="lerobot: the folder that LeRobot loads; onnx or torchscript: one file.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="lerobot: add adapters to what they adapt.")] = False,
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="onnx, torchscript: one that the file shall know; may be given several times."
        ),
    ] = None,
    env: Annotated[
        str | None, typer.Option(metavar="NAME", help="onnx, torchscript: the world whose statistics apply.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a policy in another program's form."""
    check_folder("--out", out)
    with stdout_kept_for_the_report(as_json):
        from atlas.policies.exporting import export_policy
        from atlas.policies.graph_export import TOLERANCE

        found = export_policy(reference, to, out, merge_lora, instruction or [], env)
    files = sorted(p.name for p in found.folder.iterdir())
    if as_json:
        difference = {} if found.difference is None else {"difference": found.difference}
        print_json({"path": str(found.folder), "form": to, "files": files} | difference)
        return
    say(f"{reference} is in {found.folder}, for {to}.")
    if found.difference is not None:
        say(
            f"Its actions differ from the policy's by {found.difference:.1g} of half of their usual range at most "
            f"({TOLERANCE:g} is allowed). policy.json says what goes in."
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
    with stdout_kept_for_the_report(as_json):
        from atlas.geometry import geometry

        # Everything after the first of `--images a.png b.png` is an argument, not the option's value.
        report = geometry([*(images or []), *(more or [])], out, checkpoint)
    if as_json:
        print_json(report)
        return
    rows = []
    for entry in report["images"]:
        fields, depths = entry["fov_degrees"], entry["depth_range"] or (math.nan, math.nan)
        place = ", ".join(f"{value:.3g}" for value in entry["position"])
        seen = f"{fields['horizontal']:.0f} x {fields['vertical']:.0f}"
        confidence = "" if entry["mean_confidence"] is None else f"{entry['mean_confidence']:.3g}"
        rows.append((entry["file"], place, seen, f"{depths[0]:.3g} to {depths[1]:.3g}", confidence))
    print_table("what VGGT sees", ("image", "camera at", "field of view (deg)", "depth", "mean confidence"), rows)
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    say(f"Pictures, {report['points']['count']:,} points and geometry.json are in {out}.")
