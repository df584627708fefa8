"""`atlas eval`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas.cli.commands.evaluation_tables import print_comparison, print_evaluation, print_reproduction
from atlas.cli.commands.serve_commands import KeyFile, Layout
from atlas.cli.options import Json, Workers
from atlas.cli.output import print_json, say, stdout_kept_for_the_report
from atlas.errors import InputError, did_you_mean
from atlas.system.paths import check_file, check_folder

if TYPE_CHECKING:
    from atlas.checks.finding import Finding
    from atlas.rollout.input_recorder import InputRecorder
    from atlas.rollout.success_report import EvaluationReport
    from atlas.rollout.verdicts.robustness import RobustnessReport


def evaluate(
    env: Annotated[str | None, typer.Option(help="The environment, such as cubes.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="A checkpoint, or the policy folder in it.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="URL", help="A policy server instead, such as ws://127.0.0.1:8000.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Episodes in all.")] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="The seed of the episodes' starts.")] = 0,
    execute: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="E",
            help="Actions of each predicted chunk that are executed; by default as where the policy was validated, or "
            "three quarters.",
        ),
    ] = None,
    ensemble: Annotated[
        float | None, typer.Option(min=0, metavar="W", help="Average overlapping chunks with this weight (off).")
    ] = None,
    delay_ms: Annotated[
        float, typer.Option(min=0, metavar="MS", help="Until a chunk is there, as on a robot; the last one goes on.")
    ] = 0.0,
    blend: Annotated[
        str | None,
        typer.Option(metavar="W|guided", help="Where chunks overlap: the last one's weight; guided: go on from it."),
    ] = None,
    instruction_shuffle: Annotated[
        bool, typer.Option("--instruction-shuffle", help="Give the policy a different task from the one that counts.")
    ] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show the policy black images.")] = False,
    perturb: Annotated[
        str | None,
        typer.Option(metavar="all|NAME[:LEVEL],…", help="Then play the first episodes again under perturbations."),
    ] = None,
    perturb_episodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of each perturbation and level; default: 20.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw success by perturbation and level: .png, .svg, .pdf.")
    ] = None,
    until_clear: Annotated[
        bool, typer.Option("--until-clear", help="Stop when it is clear whether it is better than --against.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="DIR|FILE|URL", help="Another policy, its server, or the outcomes of its evaluation."),
    ] = None,
    reproduce: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Repeat the evaluation that results tell of: do they hold?")
    ] = None,
    open_loop: Annotated[
        str | None,
        typer.Option("--open-loop", metavar="DATASET", help="Play its recorded actions instead of a policy's."),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Compare what the policy sees with what it was trained on.")
    ] = False,
    video: Annotated[Path | None, typer.Option(metavar="DIR", help="Film the episodes into this folder.")] = None,
    show: Annotated[
        str | None, typer.Option(metavar="attention", help="Draw into the films of --video where the policy looks.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every episode's outcome there; `atlas runs compare`.")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="ITS=OURS", help="Which camera of the environment is which of a LeRobot policy's."),
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
    if reproduce is not None:
        given: dict[str, object] = {"--env": env, "--perturb": perturb, "--open-loop": open_loop, "--against": against}
        given |= {"--plot": plot, "--video": video, "--until-clear": until_clear, "--diagnose": diagnose}
        given |= {"--blind": blind, "--instruction-shuffle": instruction_shuffle, "--out": out}
        given |= {"--policy": policy, "--show": show}
        _reproduce(reproduce, checkpoint, [name for name, value in given.items() if value], workers, as_json)
        return
    if env is None:
        raise InputError("Name the environment with --env, such as --env cubes.")
    probed = instruction_shuffle or blind or diagnose
    _check_flags(checkpoint, open_loop, policy, probed=probed or perturb is not None, video=video)
    served = policy is not None or (against or "").startswith(("ws://", "wss://"))
    if not served and (api_key_file is not None or layout != "auto" or image_size is not None):
        raise InputError("--api-key-file, --layout and --image-size are for a server; give it with --policy URL.")
    if policy is not None and diagnose:
        raise InputError("--diagnose needs the policy itself: give --checkpoint, or leave it out with --policy.")
    join = _blend(blend)
    late = bool(delay_ms) or join is not None
    if late and (open_loop is not None or until_clear):
        raise InputError("--delay-ms and --blend are for --checkpoint and --policy, without --until-clear.")
    _check_show(show, checkpoint, video, until_clear)
    other = probed or any(value is not None for value in (perturb, open_loop))
    _check_comparison(until_clear, against, other)
    _check_perturbations(perturb, perturb_episodes, plot)
    if out is not None:
        check_file("--out", out, "outcomes.json")
    if video is not None:
        check_folder("--video", video)
    if until_clear:
        how: dict[str, Any] = {"key_file": api_key_file, "layout": layout, "image_size": image_size}
        how |= {"execute": execute, "ensemble": ensemble, "workers": workers, "video": video}
        _compare(str(checkpoint or policy), str(against), env, episodes, seed, how, out, as_json)
        return
    with stdout_kept_for_the_report(as_json):
        findings, robustness = None, None
        more: dict[str, Any] = {} if perturb is None else {"perturb": perturb.split(",")}
        more |= {} if perturb_episodes is None else {"perturb_episodes": perturb_episodes}
        more |= {"delay_ms": delay_ms, "blend": join} if late else {}
        if open_loop is not None:
            from atlas.data.formats import open_dataset
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
                ensemble=ensemble,
                key_file=api_key_file,
                layout=layout,
                image_size=image_size,
                instruction_shuffle=instruction_shuffle,
                blind=blind,
                video=video,
                workers=workers,
                **more,
            )
        else:
            from atlas.rollout.evaluation import evaluate_checkpoint
            from atlas.rollout.input_recorder import InputRecorder

            recorder = InputRecorder() if diagnose else None
            more |= {} if show is None else {"show_attention": True}
            more |= {} if camera is None else {"cameras": _named_cameras(camera)}
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
                **more,
            )
            if recorder is not None:
                findings = _diagnosed(recorder, env, evaluation)
        if perturb is not None:
            robustness = _robustness(evaluation, plot)
        if out is not None:
            evaluation.save(out, None if robustness is None else {"robustness": robustness.to_dict()})
    report = evaluation.to_dict()
    if findings is not None:
        report["findings"] = [finding.to_dict() for finding in findings]
    if robustness is not None:
        report["robustness"] = robustness.to_dict()
    if as_json:
        print_json(report)
        return
    print_evaluation(report, robustness)
    for finding in findings or []:
        say(f"{finding.severity:8} {finding.check:9} {finding.message}")
        if finding.fix is not None:
            say(f"{'':18} {finding.fix}")
    for what, where in (("outcomes are", out), ("figure is", plot)):
        if where is not None:
            say(f"The {what} in {where}.")


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
            "--open-loop plays recorded actions without a policy: leave out --instruction-shuffle, --blind, --perturb, "
            "--diagnose and --video."
        )


def _check_comparison(until_clear: bool, against: str | None, other: bool) -> None:
    if until_clear != (against is not None):
        raise InputError("--until-clear and --against belong together: --until-clear --against DIR.")
    if until_clear and other:
        raise InputError(
            "--until-clear compares two policies as they are: leave out --instruction-shuffle, --blind, --perturb, "
            "--diagnose and --open-loop."
        )


def _check_show(show: str | None, checkpoint: str | None, video: Path | None, until_clear: bool) -> None:
    if show is None:
        return
    if show != "attention":
        raise InputError(f"--show is '{show}', expected attention.{did_you_mean(show, ['attention'])}")
    if video is None or checkpoint is None or until_clear:
        raise InputError(
            "--show attention draws into films of one policy: give --checkpoint and --video DIR, without --until-clear."
        )


def _check_perturbations(perturb: str | None, perturb_episodes: int | None, plot: Path | None) -> None:
    if perturb is None and (perturb_episodes is not None or plot is not None):
        raise InputError("--perturb-episodes and --plot are of perturbations: add --perturb all, or some by name.")
    if plot is not None:
        from atlas.drawing.comparison_plot import check_plot_file

        check_plot_file(plot)
        check_file("--plot", plot, "robustness.png")


def _robustness(evaluation: EvaluationReport, plot: Path | None) -> RobustnessReport:
    from atlas.drawing.robustness_figure import save_robustness
    from atlas.rollout.verdicts.robustness import RobustnessReport

    found = RobustnessReport.of(evaluation)
    assert found is not None
    if plot is not None:
        save_robustness(found, plot)
    return found


def _compare(
    first: str,
    against: str,
    env: str,
    episodes: int,
    seed: int,
    how: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    with stdout_kept_for_the_report(as_json):
        from atlas.serving.remote_evaluation import compare_until_clear

        found = compare_until_clear(first, against, env, episodes, seed, **how)
        if out is not None:
            found.first.save(out, {"comparison": found.to_dict()})
    if as_json:
        print_json(found.first.to_dict() | {"comparison": found.to_dict()})
        return
    print_comparison(found)
    if out is not None:
        say(f"The outcomes are in {out}.")


def _reproduce(file: Path, checkpoint: str | None, given: list[str], workers: int | None, as_json: bool) -> None:
    if given:
        raise InputError(f"--reproduce repeats what {file} says: leave out {' and '.join(given)}.")
    with stdout_kept_for_the_report(as_json):
        from atlas.rollout.verdicts.reproduction import reproduce

        found = reproduce(file, checkpoint, workers)
    if as_json:
        print_json(found.again.to_dict() | {"reproduction": found.to_dict()})
    else:
        print_reproduction(found)
    if found.holds == "no":
        raise typer.Exit(1)


def _blend(text: str | None) -> float | Literal["guided"] | None:
    if text is None or text == "guided":
        return text  # type: ignore[return-value]
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < 1:
        raise InputError(f"--blend is '{text}'; give the last chunk's weight, from 0 to below 1, or guided.")
    return weight


def _named_cameras(pairs: list[str] | None) -> dict[str, str] | None:
    """{the policy's: the environment's} of `--camera top=agentview`; None without any."""
    named = {}
    for pair in pairs or []:
        its, equals, ours = pair.partition("=")
        if not (its and equals and ours):
            raise InputError(f"--camera {pair} should be its camera, =, and the environment's: top=agentview.")
        named[its] = ours
    return named or None


def _diagnosed(recorder: InputRecorder, env: str, evaluation: EvaluationReport) -> list[Finding]:
    from atlas.checks.acting.diagnosis import diagnose

    assert recorder.policy is not None
    return diagnose(recorder, recorder.policy.processor, env, evaluation.outcomes)
