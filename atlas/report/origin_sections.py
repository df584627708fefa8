"""The sections on a run's origin: its data, its settings, the machine and its time, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from atlas.config import Config
from atlas.data.statistics import DatasetStatistics
from atlas.policies.processor import PolicyProcessor
from atlas.registry.wandb_variables import DEFAULT_PROJECT
from atlas.report.curve_drawing import number
from atlas.report.first_screen import statuses
from atlas.report.learning_sections import setting
from atlas.report.markup import Html, Part, facts, fold, section, table, tag
from atlas.report.run_facts import RunFacts
from atlas.runs.comparison import differing_settings
from atlas.runs.run_directory import RESULTS, Run
from atlas.system.documents import read_yaml
from atlas.system.file_store import CONFIG
from atlas.system.files import follow

_HERE = Path()  # for settings without a folder
_PARTS = ("data", "forward", "backward", "optimizer")
_MOST_INSTRUCTIONS = 30


def sides(runs: Sequence[RunFacts], name: str, title: str, draw: Any, note: Part = None) -> Html | None:
    """A section with a column per run; None where no run has content for it. draw: (RunFacts) -> Html | None."""
    drawn = [(run, found) for run in runs if (found := draw(run)) is not None]
    if not drawn:
        return None
    several = len(runs) > 1
    columns = [tag("div", tag("h3", run.name) if several else None, found) for run, found in drawn]
    return section(name, title, tag("div", columns, class_="sides"), note=note)


# ---- checks --------------------------------------------------------------------------------------------------


def checks(run: RunFacts) -> Html | None:
    """The walk through the known silent bugs, and training's warnings."""
    parts: list[Part] = []
    if run.diagnosis is not None:
        lines = [line for line in run.diagnosis.get("lines", ()) if isinstance(line, Mapping)]
        order = {"problem": 0, "undecided": 1, "ok": 2}
        lines.sort(key=lambda line: order.get(str(line.get("status")), 1))
        parts.append(statuses([line for line in lines if line.get("status") == "problem"]))
        for status, title in (("undecided", "cannot be decided from the files"), ("ok", "are ruled out")):
            found = [line for line in lines if line.get("status") == status]
            if found:
                parts.append(fold(f"{len(found)} {title}", statuses(found)))
    if run.warnings:
        parts += [tag("h4", "Warnings of training"), tag("ul", (tag("li", warning) for warning in run.warnings))]
    if not parts:
        parts = [
            tag(
                "p",
                None if run.learned else "Training gave no warnings. ",
                tag("code", f"atlas doctor {run.run.path}"),
                " walks through the known silent bugs.",
            )
        ]
    return tag("div", parts)


# ---- data ----------------------------------------------------------------------------------------------------


def data(run: RunFacts) -> Html | None:
    """The facts about the training data that the policy keeps, and how its numbers are scaled."""
    processor = run.processor
    if processor is None:
        path = run.run.config.get("data", {}).get("path") if run.run.config else None
        return facts([("dataset", str(path))]) if path else None
    parts: list[Part] = []
    for source in processor.statistics:
        pairs: list[tuple[str, Part]] = [
            ("dataset", source.source),
            ("training episodes", f"{source.episodes:,}" if source.episodes else "-"),
            ("frames", f"{source.frames:,}"),
            ("recorded in", source.environment or "an unknown world"),
            ("cameras", ", ".join(processor.cameras) or "none: the policy uses proprio only"),
            ("images", f"{processor.camera_size} px, seen at {processor.image_size} px" if processor.cameras else "-"),
            ("actions", processor.action_spec.describe()),
            ("chunk", f"{processor.action_horizon} actions"),
        ]
        parts += [facts(pairs), _ranges(processor, source)]
    if processor.inputs is not None:
        texts = processor.inputs.instructions
        listed = tag("ul", (tag("li", text) for text in texts[:_MOST_INSTRUCTIONS]))
        parts.append(fold(f"{len(texts)} instruction{'s' if len(texts) != 1 else ''}", listed, opened=len(texts) <= 5))
    return tag("div", parts)


def _ranges(processor: PolicyProcessor, source: DatasetStatistics) -> Html:
    scaled = source.action_scaling or [processor.scaling.action_normalization] * processor.action_spec.dim
    columns = source.action
    rows: list[list[Part]] = [
        [name, *(number(getattr(columns, key)[i]) for key in ("min", "q01", "mean", "q99", "max", "std")), scaled[i]]
        for i, name in enumerate(processor.action_spec.names)
    ]
    heads = ["action", "min", "1%", "mean", "99%", "max", "deviation", "scaled by"]
    return fold("Ranges of the actions", table(heads, rows))


# ---- settings ------------------------------------------------------------------------------------------------


def default_differences(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (the run's value, the default job's)}; None for a key that only one of them has."""
    default = Run("default", _HERE, Config().model_dump(mode="json"))
    found = differing_settings([Run("run", _HERE, dict(config)), default])
    if found.get("wandb.project", {}).get("run") == DEFAULT_PROJECT:  # a run without a project writes this one
        del found["wandb.project"]
    return {key: (values.get("run"), values.get("default")) for key, values in found.items()}


def settings(run: RunFacts) -> Html | None:
    """The settings that differ from the default job, and all settings."""
    config = run.run.config
    if not config:
        return None
    differing = default_differences(config)
    rows: list[list[Part]] = [
        [tag("code", key), tag("code", setting(value)), tag("code", setting(default))]
        for key, (value, default) in differing.items()
    ]
    shown = (
        table(["setting", "this run", "default"], rows, numbers=False)
        if rows
        else tag("p", "Nothing differs from the default job.")
    )
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return tag("div", shown, fold("All settings (config.yaml)", tag("pre", tag("code", text))))


# ---- the machine and its time --------------------------------------------------------------------------------


def machine(run: RunFacts) -> Html | None:
    """Hardware, speed, and where the time went."""
    origin, scalars = run.origin, run.run.scalars
    if not origin.facts and not scalars:
        return None
    pairs: list[tuple[str, Part]] = [*_hardware(origin.facts), *_speed(run)]
    return tag("div", facts(pairs), _time(run))


def _hardware(found: Mapping[str, Any]) -> list[tuple[str, Part]]:
    machine, parameters = _mapping(found.get("machine")), _mapping(found.get("parameters"))
    pairs: list[tuple[str, Part]] = []
    if found.get("world_size") is not None:
        pairs.append(("processes", f"{found['world_size']} on {found.get('device', '?')}"))
    gpus = machine.get("gpus")
    if isinstance(gpus, list) and gpus:
        pairs.append(("GPUs", f"{len(gpus)} x {gpus[0]}"))
    if machine:
        pairs.append(("processor", f"{machine.get('processor')}, {machine.get('cores')} cores"))
        pairs.append(("memory", f"{machine.get('memory_gib')} GiB"))
    if parameters:
        total, trained = parameters.get("total", 0), parameters.get("trainable", 0)
        pairs.append(("parameters", f"{total:,}, of which {trained:,} are trained"))
    return pairs


def _speed(run: RunFacts) -> list[tuple[str, Part]]:
    scalars = run.run.scalars
    pairs: list[tuple[str, Part]] = []
    for name, label, form in (
        ("perf/samples_per_second", "samples per second", "{:,.0f}"),
        ("perf/step_seconds", "seconds per step", "{:.3g}"),
        ("perf/mfu", "share of the GPU's peak", "{:.1%}"),
        ("perf/gpu_memory_gib", "most GPU memory", "{:.1f} GiB"),
        ("system/memory_used_gib", "most memory", "{:.1f} GiB"),
        ("system/cpu_percent", "CPU use", "{:.0f}%"),
    ):
        if name in scalars:
            values = sorted(value for _, value in scalars[name])
            value = values[-1] if name.startswith(("perf/gpu_memory", "system/memory")) else values[len(values) // 2]
            pairs.append((label, form.format(value)))
    return pairs


def time_spent(run: RunFacts) -> dict[str, float]:
    """{part: seconds} of the parts of optimizer steps, and of the rest of the run's time; {} where it is not known."""
    scalars, whole = run.run.scalars, run.origin.seconds
    steps = scalars.get("timer/total")
    if not steps or whole <= 0:
        return {}
    spent = {part: _summed(scalars.get(f"timer/{part}", ())) for part in _PARTS}
    spent = {part: seconds for part, seconds in spent.items() if seconds > 0}
    training = _summed(steps)
    other = training - sum(spent.values())
    spent |= {"other in steps": other} if other > 0.01 * training else {}
    return spent | {"validation, rollouts, films, checkpoints": max(0.0, whole - training)}


def _summed(points: Sequence[tuple[int, float]]) -> float:
    """The seconds of all steps, from values that are means over the steps since the previous value."""
    ordered = [(0, 0.0), *sorted(points)]
    return sum((step - before) * value for (before, _), (step, value) in pairwise(ordered))


def _time(run: RunFacts) -> Html | None:
    spent = time_spent(run)
    total = sum(spent.values())
    if total <= 0:
        return None
    pieces = [
        tag("i", class_=f"c{i}", style=f"width:{100 * seconds / total:.2f}%", title=f"{name}: {_clock(seconds)}")
        for i, (name, seconds) in enumerate(spent.items())
    ]
    legend = [
        tag("span", tag("i", class_=f"swatch c{i}"), f"{name} {_clock(seconds)}")
        for i, (name, seconds) in enumerate(spent.items())
    ]
    head = tag("h4", f"Where {_clock(total)} went")
    return tag("div", head, tag("div", pieces, class_="stacked"), tag("div", legend, class_="legend"))


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# ---- again ---------------------------------------------------------------------------------------------------


def reproduce(run: RunFacts) -> Html | None:
    """The commands that train and evaluate it again, the versions it ran with, and what its result came from."""
    config = run.run.config
    repeated, proof = _evidence(run)
    if not config:
        return tag("div", tag("pre", tag("code", "\n".join(repeated))), facts(proof)) if repeated else None
    commands = [_command(run, config), *repeated]
    played = run.headline
    if played is not None:
        world = str(played.values["env"])
        commands.append(
            shlex.join(["atlas", "eval", "--checkpoint", str(run.run.path), "--env", world, "--episodes", "100"])
        )
    commands.append(shlex.join(["tensorboard", "--logdir", str(run.run.path.parent)]))
    found = run.origin.facts
    git, packages = _mapping(found.get("git")), _mapping(found.get("packages"))
    pairs: list[tuple[str, Part]] = [("seed", str(config.get("seed", "-")))]
    if git:
        changed = f", with changes ({git.get('diff')})" if git.get("dirty") else ""
        pairs.append(("code", tag("code", f"{git.get('commit')}{changed}")))
    pairs += [(key, str(found[key])) for key in ("python", "platform") if key in found]
    if packages:
        pairs.append(("packages", ", ".join(f"{package} {version}" for package, version in packages.items())))
    best = run.results.get("best_checkpoint")
    pairs += [("best checkpoint", tag("code", str(best)))] if best else []
    return tag("div", tag("pre", tag("code", "\n".join(commands))), facts([*pairs, *proof]))


def _command(run: RunFacts, config: Mapping[str, Any]) -> str:
    """The one that begins such a run again, with what differs from the default job, or from the run learned from."""
    name = f"run_name={run.run.path.name}-again"
    learned = run.learned
    if "algorithm" not in learned:
        return shlex.join(["./train.sh", *_overrides(default_differences(config)), name])
    algorithm, start = str(learned["algorithm"]), learned.get("checkpoint")
    command = ["atlas", "learn", *(["sac", "--residual"] if algorithm == "residual" else [algorithm])]
    command += ["--env", str(learned.get("env")), *(["--checkpoint", str(start)] if start else [])]
    return shlex.join([*command, *_overrides(_changed_since(config, start)), name])


def _overrides(differing: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key}={setting(value)}" for key, (value, _) in differing.items() if value is not None]


def _changed_since(config: Mapping[str, Any], start: Any) -> dict[str, tuple[Any, Any]]:
    """{key: (the run's value, that of the run whose checkpoint it began with)}; the default job's where there is
    none on this machine."""
    place = follow(Path(str(start))).resolve()
    folders = [folder for folder in (place, *place.parents) if (folder / CONFIG).is_file()] if start else []
    if not folders:
        return default_differences(config)
    was = Run("was", folders[0], read_yaml(folders[0] / CONFIG))
    found = differing_settings([Run("run", _HERE, dict(config)), was])
    return {key: (values.get("run"), values.get("was")) for key, values in found.items()}


def _evidence(run: RunFacts) -> tuple[list[str], list[tuple[str, Part]]]:
    """The command that repeats the evaluation exactly, and what the results say of their origin; empty where they say
    nothing."""
    evidence = _mapping(run.results.get("evidence"))
    if not evidence.get("policy_sha256"):
        return [], []
    place = run.run.path
    file = place / RESULTS if place.is_dir() else place
    pairs: list[tuple[str, Part]] = [("policy (SHA-256)", tag("code", str(evidence["policy_sha256"])))]
    if evidence.get("dataset_fingerprint"):
        pairs.append(("data (fingerprint)", tag("code", str(evidence["dataset_fingerprint"]))))
    protocol = _mapping(evidence.get("protocol"))
    told = [f"{key}={_listed(value)}" for key, value in protocol.items() if value or key == "seed"]
    pairs += [("protocol", tag("code", " ".join(told)))] if told else []
    return [shlex.join(["atlas", "eval", "--reproduce", str(file)])], pairs


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
