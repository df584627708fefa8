"""`atlas eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas.cli.options import Json, Workers
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.cli.serve_commands import KeyFile, Layout
from atlas.errors import InputError
from atlas.system.paths import check_file, check_folder

if TYPE_CHECKING:
    from atlas.checks.finding import Finding
    from atlas.rollout.input_recorder import InputRecorder


def evaluate(
    env: Annotated[str, typer.Option(help="The environment, such as cubes.")],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="A checkpoint, or the policy folder in it.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="URL", help="A policy server instead, such as ws://127.0.0.1:8000.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes in all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="The seed of the episodes' starts.")] = 0,
    execute: Annotated[
        int | None, typer.Option(min=1, metavar="E", help="Actions of each predicted chunk that are executed.")
    ] = None,
    ensemble: Annotated[
        float | None, typer.Option(min=0, metavar="W", help="Average overlapping chunks with this weight (off).")
    ] = None,
    instruction_shuffle: Annotated[
        bool, typer.Option("--instruction-shuffle", help="Give the policy a different task from the one that counts.")
    ] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show the policy black images.")] = False,
    open_loop: Annotated[
        str | None,
        typer.Option("--open-loop", metavar="DATASET", help="Play its recorded actions instead of a policy's."),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Compare what the policy sees with what it was trained on.")
    ] = False,
    video: Annotated[Path | None, typer.Option(metavar="DIR", help="Film the episodes into this folder.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every episode's outcome there; `atlas runs compare`.")
    ] = None,
    api_key_file: KeyFile = None,
    layout: Layout = "auto",
    image_size: Annotated[
        int | None,
        typer.Option(min=16, max=1024, metavar="PIXELS", help="For another server than Atlas's; default: 224."),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Roll a trained policy out and count its successes."""
    _check_flags(checkpoint, open_loop, policy, probed=instruction_shuffle or blind or diagnose, video=video)
    if policy is None and (api_key_file is not None or layout != "auto" or image_size is not None):
        raise InputError("--api-key-file, --layout and --image-size are for a server; give it with --policy URL.")
    if policy is not None and (ensemble is not None or diagnose):
        raise InputError(
            "--ensemble and --diagnose need the policy itself: give --checkpoint, or leave them out with --policy."
        )
    if out is not None:
        check_file("--out", out, "outcomes.json")
    if video is not None:
        check_folder("--video", video)
    with stdout_kept_for_the_report(as_json):
        findings = None
        if open_loop is not None:
            from atlas.data import open_dataset
            from atlas.rollout.recorded_actions import evaluate_recorded

            evaluation = evaluate_recorded(open_dataset(open_loop), env, episodes, workers)
        elif policy is not None:
            from atlas.serving.remote_evaluation import evaluate_server

            evaluation = evaluate_server(
                url=policy,
                env=env,
                episodes=episodes,
                seed=seed,
                execute=execute,
                key_file=api_key_file,
                layout=layout,
                image_size=image_size,
                instruction_shuffle=instruction_shuffle,
                blind=blind,
                video=video,
                workers=workers,
            )
        else:
            from atlas.rollout.evaluation import evaluate_checkpoint
            from atlas.rollout.input_recorder import InputRecorder

            recorder = InputRecorder() if diagnose else None
            evaluation = evaluate_checkpoint(
                checkpoint=str(checkpoint),
                env=env,
                episodes=episodes,
                seed=seed,
                execute=execute,
                ensemble=ensemble,
                instruction_shuffle=instruction_shuffle,
                blind=blind,
                video=video,
                workers=workers,
                recorder=recorder,
            )
            if recorder is not None:
                findings = _diagnosed(str(checkpoint), recorder, env)
        if out is not None:
            evaluation.save(out)
    report = evaluation.to_dict()
    if findings is not None:
        report["findings"] = [finding.to_dict() for finding in findings]
    if as_json:
        print_json(report)
        return
    rows = [(name, *_counts(part)) for name, part in [*report["per_instruction"].items(), ("all", report)]]
    title = f"{report['checkpoint']} in {report['env']}"
    print_table(title, ("instruction", "episodes", "successes", "success rate", "95% interval"), rows)
    say(f"mean episode length: {report['mean_episode_length']:.1f} steps")
    for finding in findings or []:
        say(f"{finding.severity:8} {finding.check:9} {finding.message}")
        if finding.fix is not None:
            say(f"{'':18} {finding.fix}")
    if out is not None:
        say(f"The outcomes are in {out}.")


def _check_flags(
    checkpoint: str | None, open_loop: str | None, policy: str | None, probed: bool, video: Path | None
) -> None:
    if [checkpoint, open_loop, policy].count(None) != 2:
        raise InputError(
            "Give --checkpoint, --policy with the address of a server, or --open-loop to play recorded actions; one of "
            "them."
        )
    if open_loop is not None and (probed or video is not None):
        raise InputError(
            "--open-loop plays recorded actions without a policy: leave out --instruction-shuffle, --blind, --diagnose "
            "and --video."
        )


def _diagnosed(checkpoint: str, recorder: InputRecorder, env: str) -> list[Finding]:
    from atlas.checks.diagnosis import diagnose
    from atlas.policies.processor import PolicyProcessor
    from atlas.registry import resolve_policy

    return diagnose(recorder, PolicyProcessor.load(resolve_policy(checkpoint) / "processor.json"), env)


def _counts(part: dict[str, Any]) -> tuple[str, ...]:
    from atlas.rollout.proportions import wilson_interval

    low, high = wilson_interval(part["successes"], part["episodes"])
    return str(part["episodes"]), str(part["successes"]), f"{part['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"
