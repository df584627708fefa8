"""Every benchmark in miniature: it runs to the end, and prints the table that it promises.

faults.py, tracking_faults.py and mutants.py have tests of their own, beside what they break.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atlas.config import dump_yaml
from atlas.learning.run_config import config_from_nothing
from atlas.policies.base import load_policy
from atlas.policies.published.flow_policy import FlowPolicy
from atlas.types import Observation

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

SMALL = [
    "model.fusion={dim: 32, layers: 1}",
    "model.language={dim: 16, layers: 1}",
    "data.image_size=32",
    "data.batch_size=4",
    "data.num_workers=0",
]
KEYPOINTS = "model.vision={name: keypoints, width: 8, keypoints: 8}"
VGGT = (
    "model.vision={name: vggt, stem_width: 8, keypoints: 8, keypoint_groups: 4, embed_dim: 32, depth: 1, num_heads: 2}"
)

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a benchmark with these arguments, in this process; what it printed."""
    monkeypatch.setenv("ATLAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(name: str, *arguments: object, expected: int | None = None) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        assert importlib.import_module(name).main() == expected
        return capsys.readouterr().out

    return run


def rows(printed: str) -> list[list[str]]:
    """The cells of the tables that were printed, without their heads."""
    lines = [line.strip("|\n ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return lines[1:]


def test_ablation_trains_with_blocks_and_without(
    run: Run, cubes_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def count_blocks(name: str, policy: Any, execute: int, episodes: int) -> str:
        tried.append(sum(key.startswith("vision.aggregator.frame_blocks") for key in policy.state_dict()))
        return f"| {name} | {episodes} |"

    monkeypatch.setattr(importlib.import_module("ablation"), "tried", count_blocks)
    printed = run("ablation", "--data", cubes_dataset, "--episodes", 2, *SMALL, VGGT, "training.max_steps=2")
    assert rows(printed) == [["with its blocks", "2"], ["without", "2"]]
    assert tried[0] > 0 and tried[1] == 0


def test_twins_are_impaired_and_the_control_is_not(
    run: Run, cubes_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = importlib.import_module("twins")
    seen: dict[str, set[tuple[bool, int]]] = {}  # of each twin: were there black images, how many instructions

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def watch(batch: Any) -> Any:
            changed = change(batch)
            seen.setdefault(name, set()).add((bool((changed.images == 0).all()), len(set(changed.instruction))))
            return changed

        return watch

    monkeypatch.setattr(twins, "TWINS", {name: watched(name, change) for name, change in twins.TWINS.items()})
    monkeypatch.setattr(twins, "tried", lambda name, policy, execute, episodes: f"| {name} | {episodes} |")
    settings = [*SMALL, KEYPOINTS, "training.max_steps=2", "data.batch_size=16"]
    found = rows(run("twins", "--data", cubes_dataset, "--episodes", 2, *settings))
    assert found == [[name, "2"] for name in ("trained as it is", "trained blind", "trained without the instruction")]
    assert (False, 2) in seen["trained as it is"]
    assert all(black for black, _ in seen["trained blind"])
    assert {number for _, number in seen["trained without the instruction"]} == {1}


def test_overhead_counts_what_a_save_holds_up(run: Run, cubes_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second step saves for a quarter of a second, which the median of the steps would miss."""
    import time

    from atlas.training import Trainer

    save = Trainer.save

    def slowly(self: Trainer, *given: Any, **options: Any) -> Any:
        time.sleep(0.25)
        return save(self, *given, **options)

    monkeypatch.setattr(Trainer, "save", slowly)
    settings = [*SMALL, KEYPOINTS]
    printed = run("overhead", "--data", cubes_dataset, "--steps", 8, "--rounds", 1, *settings)
    bare, ours = map(float, re.search(r"bare ([\d.]+) ms, Trainer ([\d.]+) ms", printed).groups())  # type: ignore[union-attr]
    assert ours > bare + 80, printed
    assert "Trainer over a bare loop" in printed


def test_media(run: Run, cubes_dataset: Path) -> None:
    settings = [*SMALL, KEYPOINTS]
    assert "All media over none" in run("media", "--data", cubes_dataset, "--steps", 2, "--rounds", 1, *settings)


def test_worlds_are_timed_and_those_that_are_not_here_say_so(run: Run) -> None:
    pytest.importorskip("gymnasium")
    missing = "gym:no_such_package/Thing-v0"
    printed = run("worlds", "--size", 16, "--seconds", 0.05, "gym:tests.rollout.gym_toy:Toy-v0", missing)
    toy, other = rows(printed)
    assert toy[1] == "1 of 16 x 21" and float(toy[2]) > 0 and other[1].startswith("not here: ")


def test_feature_cache(run: Run) -> None:
    sizes = ["--width", 64, "--depth", 1, "--size", 28, "--frames", 36, "--batch", 2, "--rounds", 1]
    printed = run("feature_cache", *sizes, "model.fusion={dim: 32, layers: 1}")
    assert [row[0] for row in rows(printed)] == ["images", "features"]


def test_saving(run: Run, tmp_path: Path) -> None:
    printed = run("saving", "--megabytes", 0.1, "--rounds", 1, "--folder", tmp_path)
    assert len(rows(printed)) == 1


def test_data_statistics(run: Run) -> None:
    assert run("data_statistics", "--rows", 1000).count("1000 rows") == 2


@pytest.mark.slow
def test_vggt_parity(run: Run) -> None:
    assert rows(run("vggt", "--parity"))


def test_fuzz_finds_no_more_than_refusals(run: Run) -> None:
    printed = run("fuzz", "--each", 15, "--workers", 1, "--subjects", "cache", "config", "kept", expected=0)
    assert rows(printed)[-1][:2] == ["all", "60"]


def test_fuzz_tells_endings_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does everything that a reader must not do, depending on what is in the file."""
    import os
    import signal

    fuzz = importlib.import_module("fuzz")

    def read(folder: Path, changed: str, chance: Any) -> None:
        mode = folder / "mode"
        if mode.exists() and len(mode.read_bytes()) == 4:
            return  # as it was made
        match chance.randrange(4):
            case 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 1:
                bytearray(2**40)
            case 2:
                raise KeyError("no such thing")
            case _:
                while True:
                    pass

    subject = fuzz.Subject("a bad reader", lambda folder: (folder / "mode").write_text("good"), read)
    monkeypatch.setattr(fuzz, "SUBJECTS", [subject])
    monkeypatch.setattr(fuzz, "SECONDS", 0)
    monkeypatch.setattr(fuzz, "mutate", lambda content, others, rng: content + b"!")
    printed = run("fuzz", "--each", 16, "--workers", 2, expected=1)
    counts = dict(zip(("ok", "InputError", "traceback", "hang", "memory", "crash"), rows(printed)[-1][3:], strict=True))
    assert counts["ok"] == counts["InputError"] == "0"
    assert all(int(counts[kind]) > 0 for kind in ("traceback", "hang", "memory", "crash")), printed
    assert "KeyError" in printed and "SIGSEGV" in printed and "--only" in printed


def test_serve_overhead_prints_percentiles(run: Run) -> None:
    printed = run("serve_overhead", "--requests", 20, "--size", 32)
    assert "20 requests of 6 kB" in printed and "p50" in printed


# ---- those of whole processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_metaworld(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'atlas-vla[metaworld]'")
    sizes = ["--demonstrations", 2, "--episodes", 2, "--image-size", 32, "--out", tmp_path]
    settings = [*SMALL, KEYPOINTS, "training.max_steps=2", "evaluation.episodes=0", "evaluation.final_episodes=0"]
    printed = run("metaworld_mt10", "--env", "metaworld-drawer-close", *sizes, *settings)
    assert [row[0] for row in rows(printed)][:3] == ["recording", "training", "evaluating"]
    assert [row[0] for row in rows(printed)][-2:] == ["close the drawer", "all"]


@pytest.mark.slow
def test_late_chunks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two outcomes in place of simulators, which tests/rollout has."""
    from atlas.rollout.success_report import EpisodeOutcome
    from tests.policies.test_policy import make_policy

    make_policy("keypoints", "model.head={name: flow_matching, dim: 16, layers: 1}").save_pretrained(tmp_path / "flow")
    asked = []

    def play(self: object, actor: object, planned: list[object], title: str) -> list[EpisodeOutcome]:
        asked.append((title, len(planned)))
        return [EpisodeOutcome("go", seed, seed == 0, 0.0, 10 + seed) for seed in range(2)]

    monkeypatch.setattr(importlib.import_module("late_chunks").Evaluator, "run", play)
    printed = rows(
        run("late_chunks", "--policy", tmp_path / "flow", "--episodes", 2, "--execute", 2, "--delays", "0,50")
    )

    assert [row[:3] for row in printed[:2]] == [["0 ms", "none", "1/2"], ["0 ms", "0.3", "1/2"]]
    assert asked[-1] == ("50 ms, guided", 2) and printed[-1][4] == "10.5"


def test_late_chunks_through_a_server(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process of its own, which is asked in place of simulators."""
    pytest.importorskip("websockets", reason="websockets is not installed: pip install 'atlas-vla[serve]'")
    from atlas.rollout.success_report import EpisodeOutcome
    from tests import warm
    from tests.policies.test_policy import make_policy
    from tests.serving.running import seen

    make_policy("keypoints", "model.head={name: flow_matching, dim: 16, layers: 1}").save_pretrained(tmp_path / "flow")

    def play(self: object, actor: Any, planned: list[object], title: str) -> list[EpisodeOutcome]:
        actor.reset(0, 0)
        actions = [actor.plan({0: seen()})[0] for _ in range(2)]
        return [EpisodeOutcome("go", 0, len(actions[-1]) > 0, 0.0, len(actions[0]))]

    late_chunks = importlib.import_module("late_chunks")
    monkeypatch.setattr(late_chunks.Evaluator, "run", play)
    started: list[Any] = []

    def popen(command: list[str], **options: Any) -> Any:
        started.append(warm.start(*command[1:], stdout=options["stdout"]))
        return started[-1]

    monkeypatch.setattr(late_chunks, "subprocess", SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE))
    asked = ["--policy", tmp_path / "flow", "--episodes", 1, "--execute", 2, "--delays", "50", "--ways", "none,guided"]
    printed = rows(run("late_chunks", *asked, "--server"))

    assert [row[:3] for row in printed] == [["50 ms", "none", "1/1"], ["50 ms", "guided", "1/1"]]
    (server,) = started
    assert server.poll() is not None


def test_robustness_of_the_recipe(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains what is not there yet, and puts both side by side; with outcomes in place of simulators."""
    from atlas.config import load_config
    from atlas.environments.catalog import environment_spec
    from atlas.rollout.success_report import EpisodeOutcome, EvaluationReport

    robustness = importlib.import_module("robustness")
    commands: list[list[str]] = []

    def play(arguments: Any) -> EvaluationReport:
        choices = robustness.chosen(arguments.perturb, environment_spec("cubes"))
        outcomes = tuple(EpisodeOutcome("go", n, n > 0 or "sturdy" in arguments.policy, 0.0, 10) for n in range(2))
        assert arguments.out.parent == tmp_path / "recipe" and all(choice.kind.visual for choice in choices)
        return EvaluationReport("cubes", arguments.policy, outcomes, perturbed=dict.fromkeys(choices, outcomes))

    monkeypatch.setattr(robustness, "run", lambda command, cwd: commands.append(command[3:]))
    monkeypatch.setattr(robustness, "play", play)
    for _ in range(2):
        printed = rows(run("robustness", "--recipe", tmp_path / "recipe", "--episodes", 2, "training.max_steps=5"))

    assert [row[0] for row in printed][:2] == ["as they are", "`camera_pose`"] and len(printed) == 18
    assert printed[0][1].startswith("1/2 (50%") and printed[-1][2].startswith("96/96 (100%")
    default, record, sturdy = commands  # the second time all is there
    assert default == ["train", "run_name=default", "training.max_steps=5"]
    assert record[:4] == ["data", "record", "--env", "cubes"] and "all:1-3" in record
    config = load_config(sturdy[sturdy.index("--config") + 1], [each for each in sturdy if "=" in each])
    assert (config.data.path, config.run_name, config.training.max_steps) == ("data/sturdy", "sturdy", 5)
    assert config.data.augment.zoom and config.data.augment.turn_deg and config.data.augment.drop_view


@pytest.mark.slow
def test_default_job(run: Run, tmp_path: Path) -> None:
    settings = [
        *SMALL,
        KEYPOINTS,
        "training.max_steps=2",
        "evaluation.episodes=2",
        "data.record={episodes: 4, image_size: 32}",
    ]
    printed = run("default_job", "--episodes", 2, "--out", tmp_path, *settings)
    assert [row[0] for row in rows(printed)] == ["as it is", "instructions exchanged", "blind"]
    assert re.search(r"`atlas report` of the finished run: [\d.]+ s", printed)


@pytest.mark.slow
def test_data(run: Run) -> None:
    printed = run(
        "data", "--episodes", 4, "--frames", 20, "--size", 32, "--codecs", "png", "--seconds", 0.2, "--rounds", 1
    )
    assert "png: 4 x 20" in printed and "data.frame_cache" in printed


@pytest.mark.slow
def test_data_opening(run: Run) -> None:
    assert run("data_opening", "--episodes", 50).count("first time") == 3


@pytest.mark.slow
def test_scaling(run: Run, cubes_dataset: Path) -> None:
    printed = run("scaling", "--data", cubes_dataset, "--rounds", 2, "--steps", 2, *SMALL, KEYPOINTS)
    assert rows(printed)[0][0] == "2"


@pytest.mark.slow
def test_tracking(run: Run, cubes_dataset: Path) -> None:
    pytest.importorskip("wandb")
    printed = run("tracking", "--data", cubes_dataset, "--pairs", 2, "--steps", 2, *SMALL, KEYPOINTS)
    assert "Rows dropped: 0" in printed


@pytest.mark.slow
def test_startup(run: Run) -> None:
    assert "atlas --help" in run("startup")


@pytest.mark.slow
def test_startup_of_two_machines(run: Run, cubes_dataset: Path) -> None:
    assert "two machines, one step" in run("startup", "--data", cubes_dataset, "--rounds", 1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measures processors")
def test_shared_machine(run: Run, cubes_dataset: Path) -> None:
    assert rows(run("shared_machine", "--data", cubes_dataset, "--seconds", 0.2, "--rounds", 1))


@pytest.mark.slow
def test_serve_fuzz_serves_a_valid_client_among_malformed_messages(run: Run) -> None:
    printed = run("serve_fuzz", "--frames", 40, expected=0)
    assert printed.count("valid client 2 of 2") == 4 and "ENDED" not in printed


def test_backbones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    models, backbones = importlib.import_module("backbone_models"), importlib.import_module("backbones")
    published = next(model for model in models.IMAGE_TEXT_MODELS if "SmolVLM2-256M" in model.name)
    fewer = {part: {**published.config[part], "num_hidden_layers": 1} for part in ("text_config", "vision_config")}
    shallow = dataclasses.replace(published, config={**published.config, **fewer})
    monkeypatch.setattr(backbones, "IMAGE_TEXT_MODELS", (shallow,))

    printed = run("backbones", "--only", "SmolVLM2-256M")

    ((name, pixels, tokens, parameters, trained, *numbers),) = rows(printed)
    assert (name, pixels, tokens) == ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "512", "64")
    assert trained.split(" / ")[2] == parameters and len(numbers) == 5


@pytest.mark.parametrize(
    ("name", "published", "spoken"),  # all parameters of the file; of these the head that speaks, if it is not tied
    [
        ("SmolVLM2-256M", 256_484_928, 49280 * 576),
        ("SmolVLM2-500M", 507_482_304, 49280 * 960),
        ("SmolVLM2-2.2B", 2_246_784_880, 49280 * 2048),
        ("Qwen3-VL-2B", 2_127_532_032, 0),
        ("Qwen3-VL-4B", 4_437_815_808, 0),
        ("Qwen2.5-VL-3B", 3_754_622_976, 0),
        ("paligemma-3b", 2_923_466_480, 0),
    ],
)
def test_the_sizes_of_backbones_are_the_published_ones(name: str, published: int, spoken: int, tmp_path: Path) -> None:
    from atlas.policies.vlm.backbone import Backbone
    from atlas.policies.vlm.vlm_section import BackboneConfig

    models = importlib.import_module("backbone_models")
    model = next(model for model in models.IMAGE_TEXT_MODELS if name in model.name)
    folder = models.describe_model(model, tmp_path / "model")
    with torch.device("meta"):
        parts = Backbone.find(BackboneConfig(pretrained=str(folder)), weights=False).build()

    assert sum(p.numel() for part in parts for p in part.parameters()) == published - spoken


@pytest.mark.parametrize("kind", ["smolvla", "pi05"])
def test_lerobot_agreement_writes_what_lerobot_compares(run: Run, kind: str, tmp_path: Path) -> None:
    """The comparison itself needs LeRobot, in an environment of its own."""
    policy = Path(__file__).parent / "fixtures" / kind

    printed = run("lerobot_agreement", "write", tmp_path / "agreement", "--policy", policy)

    written = {path.name for path in (tmp_path / "agreement" / "lerobot").iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "tokenizer"} <= written
    assert (tmp_path / "agreement" / "answers.safetensors").exists() and "its answers beside it" in printed


def test_lerobot_rollouts_asks_atlas_for_the_same_decisions(tmp_path: Path) -> None:
    """Playing itself needs LeRobot, in an environment of its own."""
    rollouts = importlib.import_module("lerobot_rollouts")
    checkpoint = str(Path(__file__).parent / "fixtures" / "smolvla")
    policy = load_policy(checkpoint).eval()
    assert isinstance(policy, FlowPolicy)
    rollouts.prepare(checkpoint, 2, tmp_path)
    plan, side = json.loads((tmp_path / rollouts.PLAN).read_text()), policy.processor.camera_size
    images = {slot: np.full((side, side, 3), number, np.uint8) for number, slot in enumerate(plan["cameras"])}
    state = np.ones(policy.processor.proprio_dim, np.float32)
    noise = torch.randn(2, policy.processor.action_horizon, 32)
    seen = Observation({plan["cameras"][slot]: image for slot, image in images.items()}, state, "pick")
    chunks = policy.sample_chunk(policy.processor.batch([seen, seen]), noise).numpy()
    chunks[1, 0] += 0.5

    decisions = [rollouts.Decision(images, state, "pick", noise[n], list(chunks[n, : 3 - n])) for n in (0, 1)]
    rollouts.save(decisions, tmp_path / rollouts.DECISIONS)
    (tmp_path / rollouts.PLAYED).write_text(json.dumps({"instructions": ["pick", "pick"]}))

    count, difference = rollouts.largest_difference(checkpoint, tmp_path)
    assert len(plan["starts"]) == count == 2 and difference == pytest.approx(0.5, abs=1e-4)


@pytest.mark.slow
def test_a_small_network_learns_in_the_cubes_world(run: Run, tmp_path: Path) -> None:
    few = ("data.record.episodes=6", "data.batch_size=4", "evaluation.final_episodes=0")

    (row,) = rows(run("cubes_by_type", "--types", "pi05", "--steps", 2, "--episodes", 1, "--out", tmp_path, *few))

    assert (row[0], row[2], row[5]) == ("pi05", "2", "0/1")


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05", "vlm"])
def test_the_small_network_of_each_type_is_trained_whole(kind: str, tmp_path: Path) -> None:
    from atlas.config import load_config
    from tests.policies.test_policy import make_batch, make_processor

    by_type = importlib.import_module("cubes_by_type")
    section = load_config({}, by_type.settings_of(kind, by_type.write_folder(kind, tmp_path / kind))).model
    section.check_pretrained()
    policy = section.build(make_processor())

    policy(make_batch()).loss.backward()

    unused = {name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == set() and sum(p.numel() for p in policy.parameters() if p.requires_grad) > 250_000


@pytest.mark.slow
def test_the_memory_that_loading_takes_is_measured(run: Run, tmp_path: Path) -> None:
    fixture = Path(__file__).parent / "fixtures" / "pi0"

    (measured,) = rows(run("pretrained_memory", "--tiny", fixture, "--folder", tmp_path, "--precision", "bfloat16"))

    assert measured[0] == "bfloat16" and float(measured[3]) > 0.1  # GB, most of which is torch
    assert not any(tmp_path.glob("atlas-pretrained-*"))


def test_each_planted_bug_is_a_known_one_and_changes_what_it_is_said_to() -> None:
    from atlas.checks.silent_bugs import BUGS
    from atlas.types import Observation

    plants = importlib.import_module("planted_bugs")
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for name in ("agentview", "eye_in_hand")}
    proprio = np.array([0.1, 0.2, 1.0, 3.2, 0.0, 0.0, 0.02, -0.02], np.float32)
    shown = Observation(images, proprio, "pick up the green cube")
    actions = rng.uniform(-1, 1, (4, 7)).astype(np.float32)

    found = [*plants.plants(Path()), plants.UNSETTLED]

    named = {bug for plant in [*found, *plants.DATA_PLANTS] for bug in plant.bugs}
    assert named == set(BUGS), "each known bug is planted somewhere, and none that is not known"
    for plant in found:
        if plant.see is not None:
            kept: dict[str, Any] = {}
            first, second = (
                plant.see(shown, kept),
                plant.see(replace(shown, images=dict(reversed(images.items()))), kept),
            )
            assert first.images.keys() == images.keys() and first.proprio.shape == proprio.shape
            changed = any((first.images[name] != images[name]).any() for name in images)
            changed |= bool((first.proprio != proprio).any()) or first.instruction != shown.instruction
            assert changed or second.images is first.images, plant.name
        if plant.do is not None:
            done = plant.do(actions, {})
            assert done.shape != actions.shape or (done != actions).any(), plant.name


def test_other_checkers_are_asked_and_what_they_say_of_clean_data_does_not_count(tmp_path: Path) -> None:
    checkers = importlib.import_module("other_checkers")
    report = {"checks": [{"check_id": "frozen", "severity": "%s"}, {"name": "Video", "severity": "pass"}]}
    command = tmp_path / "rdq"
    command.write_text(f"#!/bin/sh\nprintf '{json.dumps(report)}' \"$(basename $2)\" > $5\n")
    command.chmod(0o755)
    (rdq,) = [checker for checker in checkers.CHECKERS if checker.package == "rdq"]

    said = {folder: checkers.of_other(rdq, tmp_path, tmp_path / folder) for folder in ("pass", "FAIL")}

    assert said == {"pass": set(), "FAIL": {"frozen"}}
    assert list(checkers.named({"findings": [{"severity": "WARN", "message": "12 of 7.5% stuck"}]})) == ["# of # stuck"]
    clean = {"atlas data check": [], "rdq": ["short"]}
    found = {"nothing": clean, "a": {"atlas data check": ["view: it is turned"], "rdq": ["frozen", "short"]}}
    assert rows(checkers.table(found, tmp_path)) == [["nothing", "-", "`short`"], ["a", "`view`", "`frozen`"]]


def test_each_further_fault_that_checkers_are_shown_is_there() -> None:
    checkers = importlib.import_module("other_checkers")
    fixture = Path(__file__).parent / "fixtures" / "lerobot_v30_image"

    found = dict(checkers.faults(str(fixture), 2))

    clean = found.pop(checkers.CLEAN)
    assert len(found["an episode twice"]) == len(clean) == 2
    for name in [*checkers.FURTHER, "an episode twice"]:
        # The fixture does not have that camera, and its episodes are short anyway.
        if "camera" not in name and name != "the end is missing":
            assert any(_differs(clean, found[name], number) for number in range(len(clean))), name
    frames = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    for name, shown in (("a camera that is black", 0 * frames), ("a camera that is frozen", frames[[0, 0, 0]])):
        change = checkers.FURTHER[name]["images"]
        np.testing.assert_array_equal(change("eye_in_hand", frames), shown)
        np.testing.assert_array_equal(change("agentview", frames), frames)


def _differs(clean: Any, dataset: Any, number: int) -> bool:
    if len(clean) != len(dataset) or len(clean.episode(number)) != len(dataset.episode(number)):
        return True
    one, other = clean.episode(number), dataset.episode(number)
    if one.instruction != other.instruction:
        return True
    return any((getattr(one, key) != getattr(other, key)).any() for key in ("actions", "proprio"))


def test_a_replay_is_filled_and_drawn_from(run: Run) -> None:
    found = rows(run("replay_sampling", "--decisions", 2000, "--batch", 8, "--draws", 2))
    assert [row[1] for row in found] == ["2,000", "200"] and all(float(row[2]) > 0 for row in found)


def test_a_small_world_is_learned_by_reward(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in this process; without Stable-Baselines3, which is not installed here."""
    pendulum = importlib.import_module("pendulum")
    asked: list[list[str]] = []

    def done(command: list[str]) -> tuple[dict[str, Any], float, float]:
        asked.append(list(map(str, command)))
        return {"mean_reward": {"after": -150.0}, "return": -151.0, "seconds": 40.0}, 1.0, 60.0

    monkeypatch.setattr(pendulum, "timed", done)
    for seed in (0, 1):
        folder = tmp_path / f"sac-{seed}" / "evaluations"
        folder.mkdir(parents=True)
        (folder / "after.json").write_text('{"outcomes": [{"seed": 5}, {"seed": 6}]}')
        (folder.parent / "config.yaml").write_text(dump_yaml(config_from_nothing("sac", "gym:Pendulum-v1", [])))

    found = rows(run("pendulum", "--algorithms", "sac", "--seeds", "0,1", "--sb3", "python", "--out", tmp_path))

    assert [row[0] for row in found] == ["Atlas sac", "Stable-Baselines3 sac"] * 2
    assert [row[3:5] for row in found] == [["-150.0", "40"], ["-151.0", "40"]] * 2
    assert "learning.sac.layer_norm=false" in asked[0]
    assert asked[0][2:7] == ["atlas.cli", "learn", "sac", "--env", "gym:Pendulum-v1"] and asked[3][-2] == "5,6"
    assert json.loads(asked[3][-1])["policy_kwargs"]["net_arch"] == {"pi": [256, 256], "qf": [256, 256]}
