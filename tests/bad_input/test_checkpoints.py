"""Checkpoints that are cut off, flipped, emptied, or from another version or policy."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.system.locks import hold
from atlas.system.manifest import seal
from tests.bad_input.table import Row, contents, cut, each, flip, refused
from tests.conftest import made_up_episode

LATEST = "checkpoints/step_00000002"
WEIGHTS, CONFIG, PROCESSOR = (f"policy/{name}" for name in ("model.safetensors", "config.yaml", "processor.json"))
STATE, MANIFEST = "trainer/state.json", "trainer/manifest.json"


def file(name: str, which: str, change: Callable[[Path], Any], *words: str) -> Row:
    """A change of one of the files of the latest checkpoint, which is the best one too."""
    return Row(name, lambda checkpoint: change(checkpoint / which), (Path(which).name, *words))


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


def in_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return rewrite


def in_yaml(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values))

    return rewrite


def in_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change to what a safetensors file says it contains."""

    def rewrite(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + length])
        frozen = values.pop("__metadata__", None)
        change(values)
        header = json.dumps(values | ({} if frozen is None else {"__metadata__": frozen})).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    return rewrite


def overlap(header: dict[str, Any]) -> None:
    one, other = sorted(header)[:2]
    header[one]["data_offsets"] = header[other]["data_offsets"]


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt", "frozen": "{}"}
        )

    return rewrite


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)


def statistics(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = values["statistics"][0]["action"]
    return found


# ---- the policy --------------------------------------------------------------------------------------------

POLICY = [
    file("no weights", WEIGHTS, Path.unlink),
    file("weights of no bytes", WEIGHTS, lambda path: path.write_bytes(b"")),
    file("weights that are cut off", WEIGHTS, lambda path: cut(path, 0.6)),
    file("weights that are cut off in the header", WEIGHTS, lambda path: cut(path, 0.002)),
    file("weights with more bytes", WEIGHTS, lambda path: path.write_bytes(path.read_bytes() + b"\0" * 64)),
    file("a flipped length of the header", WEIGHTS, lambda path: flip(path, 3)),
    file("a flipped header", WEIGHTS, lambda path: flip(path, *range(100, 120))),
    file("a header of 2^60 bytes", WEIGHTS, lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}")),
    file("tensors that overlap", WEIGHTS, in_header(lambda h: overlap(h))),
    file("a tensor of 2^60 rows", WEIGHTS, in_header(lambda h: h[min(h)].update(shape=[2**60, 2**60]))),
    file("weights in pickle", WEIGHTS, lambda path: path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}))),
    file("weights that are text", WEIGHTS, text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")),
    file("a tensor fewer", WEIGHTS, in_weights(lambda t: t.pop(first(t)))),
    file("a tensor more", WEIGHTS, in_weights(lambda t: t.update(extra=torch.zeros(2)))),
    file("a tensor of another shape", WEIGHTS, in_weights(lambda t: t.update({first(t): t[first(t)][:-1]}))),
    file("a tensor of words", WEIGHTS, in_weights(lambda t: t.update({first(t): t[first(t)].to(torch.int32)}))),
    file("weights that are not numbers", WEIGHTS, in_weights(lambda t: t[first(t)].fill_(torch.nan))),
    file("no config", CONFIG, Path.unlink),
    file("a config of no bytes", CONFIG, text("")),
    file("a config that is not YAML", CONFIG, text("vision: {name: keypoints")),
    file("a config that is no text", CONFIG, lambda path: path.write_bytes(b"\xff\xfe\x00")),
    file(
        "a config of aliases",
        CONFIG,
        text("a: &a [1, 1]\n" + "b: &b [*a, *a]\nc: [*b, *b]\n" + "d: &d [*d]\n"),
        "itself",
    ),
    file("a deep config", CONFIG, text("[" * 5000), "deep"),
    file("a config of endless layers", CONFIG, in_yaml(lambda c: c["fusion"].update(layers=10**9)), "layers", "1000"),
    file("a config of endless width", CONFIG, in_yaml(lambda c: c["fusion"].update(dim=2**60)), "dim", "65536"),
    file("a config with an unknown key", CONFIG, in_yaml(lambda c: c["vision"].update(stride=2)), "stride"),
    file("a config of a later version", CONFIG, in_yaml(lambda c: c.update(head={"name": "diffusion"})), "diffusion"),
    Row(
        "a config of a larger policy",
        lambda checkpoint: in_yaml(lambda c: c["fusion"].update(dim=64))(checkpoint / CONFIG),
        ("policy", "config"),
    ),
    file("no processor", PROCESSOR, Path.unlink),
    file("a processor that is cut off", PROCESSOR, lambda path: cut(path, 0.5)),
    file("a processor that is a list", PROCESSOR, text("[]")),
    file("a processor without statistics", PROCESSOR, in_json(lambda p: p.update(statistics=[])), "statistics"),
    file("a processor without a horizon", PROCESSOR, in_json(lambda p: p.pop("action_horizon")), "action_horizon"),
    file("a deep processor", PROCESSOR, text("[" * 5000), "deep"),
    file("an endless horizon", PROCESSOR, in_json(lambda p: p.update(action_horizon=2**60)), "action_horizon"),
    file("statistics in a list", PROCESSOR, in_json(lambda p: p["statistics"][0].update(action=[1]))),
    file("cameras that are numbers", PROCESSOR, in_json(lambda p: p.update(cameras=[1, 2])), "cameras"),
    file("a horizon in words", PROCESSOR, in_json(lambda p: p.update(action_horizon="eight")), "action_horizon"),
    file("no cameras", PROCESSOR, in_json(lambda p: p.update(cameras=[])), "cameras"),
    file("an image of no size", PROCESSOR, in_json(lambda p: p.update(image_size=0)), "image_size"),
    file("statistics of six actions", PROCESSOR, in_json(lambda p: statistics(p)["mean"].pop()), "mean"),
    file("statistics that are no numbers", PROCESSOR, in_json(lambda p: statistics(p).update(q01=["a"] * 7)), "q01"),
    file("statistics that are NaN", PROCESSOR, in_json(lambda p: statistics(p).update(q99=[float("nan")] * 7)), "q99"),
    file("an unknown scaling", PROCESSOR, in_json(lambda p: p["scaling"].update(action_normalization="rank"))),
]


@pytest.fixture
def run_dir(place: Path, good_run: Path, copied: Callable[[Path], Path]) -> Path:
    (place / "outputs").mkdir()
    return Path(shutil.move(copied(good_run), place / "outputs" / "run"))


@each(POLICY)
def test_a_damaged_policy_is_refused_by_evaluation_and_from_python(bad: Row, place: Path, run_dir: Path) -> None:
    bad.spoil(run_dir / LATEST)
    (run_dir / LATEST / MANIFEST).unlink()  # which would say it first; a policy that was copied elsewhere has none
    before = contents(place)

    refused(place, ["eval", "--checkpoint", str(run_dir), "--env", "cubes"], *bad.words)
    with pytest.raises(InputError) as error:
        load_policy(run_dir / LATEST)

    assert all(word in str(error.value) for word in bad.words), error.value
    assert contents(place) == before


# ---- the trainer's part, and the checkpoint as a whole -----------------------------------------------------

TRAINER = [
    file("no state", STATE, Path.unlink),
    file("a state that is cut off", STATE, lambda path: cut(path, 0.5)),
    file("a state of a later version", STATE, in_json(lambda s: s.update(quantum=1))),
    file("a state of words", STATE, in_json(lambda s: s.update(step="two"))),
    file("no manifest", MANIFEST, Path.unlink),
    file("a manifest that is cut off", MANIFEST, lambda path: cut(path, 0.5)),
    file("a manifest that names one file less", MANIFEST, in_json(lambda m: m["files"].pop(WEIGHTS))),
    file("a flipped byte among the weights", WEIGHTS, lambda path: flip(path, -1000)),
    file("a flipped byte in the model card", "policy/README.md", lambda path: flip(path, 10)),
]


def resume(run_dir: Path) -> list[str]:
    return ["train", "--cpu", "--resume", str(run_dir), "training.max_steps=4"]


@each([*POLICY, *TRAINER])
def test_a_damaged_checkpoint_is_not_gone_on_from(bad: Row, place: Path, run_dir: Path) -> None:
    bad.spoil(run_dir / LATEST)

    refused(place, resume(run_dir / LATEST), bad.words[0], LATEST.rpartition("/")[2])


@pytest.mark.parametrize("damage", ["cut off", "flipped in the middle", "missing"])
def test_each_file_of_the_trainer_is_named_where_it_is_damaged(damage: str, place: Path, good_run: Path) -> None:
    names = [path.name for path in (good_run / LATEST / "trainer").iterdir()]
    assert len(names) >= 3
    for name in names:
        copy = place / "outputs" / "run"
        shutil.copytree(good_run, copy, symlinks=True)
        path = copy / LATEST / "trainer" / name
        if damage == "cut off":
            cut(path, 0.7)
        elif damage == "missing":
            path.unlink()
        else:
            flip(path, path.stat().st_size // 2)
        refused(place, resume(copy / LATEST), name)
        shutil.rmtree(copy)


def test_a_byte_flipped_anywhere_is_found_before_going_on(place: Path, run_dir: Path) -> None:
    rng = random.Random(7)
    files = sorted(path for path in (run_dir / LATEST).rglob("*") if path.is_file())
    for _ in range(24):
        path = rng.choice(files)
        byte = rng.randrange(path.stat().st_size)
        flip(path, byte)
        refused(place, resume(run_dir / LATEST), path.name)
        flip(path, byte)  # as it was


def test_runs_without_a_checkpoint_and_links_to_nowhere_are_named(place: Path, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "latest").symlink_to("step_00000009")

    refused(place, resume(run_dir), "no checkpoint", str(run_dir))
    refused(place, ["eval", "--checkpoint", str(run_dir), "--env", "cubes"], "no policy", str(run_dir))


@pytest.mark.parametrize(
    ("damage", "word"),
    [("missing", "No such file"), ("run_name: [", "not valid YAML"), ("trainig: {}", "'trainig'"), ("- a", "a list")],
)
def test_a_run_whose_config_is_damaged_is_not_gone_on_with(damage: str, word: str, place: Path, run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(damage)

    refused(place, resume(run_dir), str(path), word)


def test_a_checkpoint_of_another_policy_is_not_gone_on_from(place: Path, run_dir: Path) -> None:
    for override, words in (
        ("model.fusion.dim=64", "model.fusion.dim was 32 and is 64"),
        ("data.image_size=64", "data.image_size was 32 and is 64"),
        ("data.action_horizon=4", "data.action_horizon was 8 and is 4"),
        ("training.ema_decay=0", "was saved with training.ema_decay"),
    ):
        refused(place, [*resume(run_dir), "evaluation.execute=4", override], words, LATEST)


def test_a_checkpoint_of_other_data_is_not_gone_on_from(place: Path, run_dir: Path, good_data: Path) -> None:
    """The processor's facts are compared first, and then the episodes' contents."""
    other, grown, shorter = place / "other", place / "grown", place / "shorter"
    shutil.copytree(good_data, grown)
    shutil.copytree(good_data, shorter)
    rng = np.random.default_rng(9)
    episodes = [made_up_episode(rng, "open the drawer", 12, number) for number in range(3)]
    for file in (other / "a_demo.hdf5", grown / "another_demo.hdf5"):
        write_libero_file(file, "open the drawer", episodes, {"env_name": "elsewhere"})
    (shorter / "task_1_demo.hdf5").unlink()

    for overrides, words in (
        (["data.cameras=[eye_in_hand, agentview]"], "data.cameras was ['agentview', 'eye_in_hand'] and is ['eye"),
        (["data.cameras=[agentview]"], "data.cameras was ['agentview', 'eye_in_hand'] and is ['agentview']"),
        (["data.orientation=upright"], "the images of agentview and eye_in_hand differ"),
        ([f"data.path={other}"], "has none of the 5 episodes that were trained on"),
        ([f"data.path={grown}"], "3 episodes of 8 are new"),
        ([f"data.path={shorter}"], "2 episodes of 5 are gone"),
        ([f"data.path={other}", "training.data_on_resume=changed", "data.cameras=[agentview]"], "data.cameras was"),
    ):
        refused(place, [*resume(run_dir), *overrides], words, LATEST)


def test_a_checkpoint_of_other_actions_is_not_gone_on_from(place: Path, run_dir: Path, good_run: Path) -> None:
    """As if the policy had learned at another rate, of another gripper, or numbers that mean something else."""
    for change, words in (
        (lambda spec: spec.update(control_hz=10.0), "the actions' control_hz was 10.0 and is 20"),
        (
            lambda spec: spec["groups"][2].update(open=1.0, closed=-1.0),
            "the actions' open of gripper was 1.0 and is -1",
        ),
        (lambda spec: spec["groups"][0].update(kind="other"), "the actions' groups was"),
    ):
        (run_dir / LATEST / PROCESSOR).write_bytes((good_run / LATEST / PROCESSOR).read_bytes())
        in_json(lambda values, change=change: change(values["action_spec"]))(run_dir / LATEST / PROCESSOR)
        (run_dir / LATEST / MANIFEST).unlink()
        seal(run_dir / LATEST)
        refused(place, resume(run_dir), words, LATEST)


def test_a_run_is_not_made_shorter_than_it_is(place: Path, run_dir: Path) -> None:
    refused(
        place, [*resume(run_dir), "training.max_steps=1"], "training.max_steps is 1", "is already at step 2", LATEST
    )
    (run_dir / "results.json").unlink()
    state = run_dir / LATEST / STATE
    in_json(lambda s: s.update(step=20, samples_seen=160))(state)  # of 45 samples
    (run_dir / LATEST / MANIFEST).unlink()
    seal(run_dir / LATEST)
    epochs = ["training.max_steps=null", "training.num_epochs=2"]
    refused(place, [*resume(run_dir), *epochs], "training.num_epochs is 2", "has already done", LATEST)


def test_a_run_that_another_process_trains_is_left_alone(place: Path, run_dir: Path) -> None:
    who = f"Process {os.getpid()} on {socket.gethostname()} is working on the run 'run'"
    with hold(run_dir, "the run"):
        for arguments in (resume(run_dir), ["train", "--cpu", "run_name=run"], ["train", "--resume", "auto"]):
            refused(place, [*arguments, "output_dir=outputs", "run_name=run"], who)


def test_a_run_without_a_best_checkpoint_names_its_last(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step_00000003" / "policy").mkdir(parents=True)
    (checkpoints / "latest").symlink_to("step_00000003")

    command = ["eval", "--checkpoint", "run", "--env", "cubes"]
    refused(tmp_path, command, "run has no best checkpoint", "run/checkpoints/latest")
