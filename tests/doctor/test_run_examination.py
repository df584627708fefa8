"""`atlas doctor RUN`: what is wrong with a run is named, and shown on the first screen of its report."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atlas as atlas_package
from atlas.checks.acting.bug_walk import DIAGNOSIS
from atlas.checks.silent_bugs import SILENT_BUGS
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.system.files import follow
from atlas.system.manifest import MANIFEST
from tests.bad_input.table import SMALL
from tests.conftest import MakeOnce, made_up_episode, write_made_up_libero
from tests.rollout.drift_world import Scene
from tests.rollout.sites import install

Atlas = Callable[..., int]


@pytest.fixture(scope="module")
def trained(make_once: MakeOnce) -> Path:
    """A run of two steps, validated at the second; to read."""

    def make(out: Path) -> None:
        out.mkdir()
        write_made_up_libero(out / "data", {"open the drawer": [12, 9, 11], "close it": [10, 10]})
        places = [f"data.path={out / 'data'}", f"output_dir={out}", "run_name=run", "training.val_interval=2"]
        atlas_package.train(None, [*SMALL, *places])

    return make_once("doctors_run", make) / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def examined(atlas: Atlas, capfd: pytest.CaptureFixture[str], run: Path) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    code = atlas("doctor", str(run), "--episodes", "0", "--json")
    said = capfd.readouterr()
    assert said.out, said.err
    return code, json.loads(said.out)


def of_policy(found: dict[str, Any]) -> dict[str, str]:
    """{bug: status} of those that the policy's files tell of."""
    ids = [bug.id for bug in SILENT_BUGS][:8]
    return {line["bug"]: line["status"] for line in found["lines"] if line["bug"] in ids}


def test_a_run_is_walked_through_and_its_report_shows_it(
    run: Path, atlas: Atlas, capfd: pytest.CaptureFixture[str]
) -> None:
    _, found = examined(atlas, capfd, run)

    assert set(of_policy(found).values()) == {"ok"}, found["lines"]
    assert [line["bug"] for line in found["lines"]] == [bug.id for bug in SILENT_BUGS]
    assert json.loads((run / DIAGNOSIS).read_text())["advice"] == found["advice"]
    assert found["advice"] in re.sub(r"&#x27;", "'", (run / "report.html").read_text())


def record_turned(folder: Path) -> None:
    """Demonstrations of the world `scene`, by somebody who holds the camera upside down."""
    folder.mkdir()
    world, rng = Scene(32), np.random.default_rng(0)
    for number, instruction in enumerate(world.spec.instructions):
        episodes = []
        for seed in range(4):
            made = made_up_episode(rng, instruction, 10)
            seen = [world.reset(seed=seed, instruction=instruction)]
            seen += [each for a in made.actions[:-1] if (each := world.step(a).observation) is not None]
            turned = {c: np.stack([o.images[c][::-1, ::-1] for o in seen]) for c in world.spec.cameras}
            episodes.append(replace(made, images=turned, proprio=np.stack([o.proprio for o in seen])))
        write_libero_file(folder / f"task_{number}_demo.hdf5", instruction, episodes, {"env_name": "scene"})


def test_a_run_on_turned_images_says_so_on_its_first_screen_and_to_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atlas: Atlas, capfd: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "scene", "atlas.environments", "scene = tests.rollout.drift_world:SCENE")
    record_turned(tmp_path / "data")
    places = [f"data.path={tmp_path / 'data'}", f"output_dir={tmp_path}", "run_name=run"]
    played = ["evaluation.env=scene", "evaluation.episodes=1", "evaluation.final_episodes=2", "evaluation.workers=1"]

    atlas_package.train(
        None, [*SMALL, *places, *played, "evaluation.probe_episodes=0", "logging.media.episode_logger.interval=0"]
    )

    left = json.loads((tmp_path / "run" / DIAGNOSIS).read_text())
    assert [line["bug"] for line in left["lines"]] == [bug.id for bug in SILENT_BUGS]
    page = (tmp_path / "run" / "report.html").read_text()
    first_screen = page[: page.index('<section id="')]
    assert "What is wrong" in first_screen and "rotated by 180 degrees in training" in first_screen
    capfd.readouterr()
    code = atlas("doctor", str(tmp_path / "run"), "--episodes", "2", "--json")
    found = json.loads(capfd.readouterr().out)
    lines = {line["bug"]: line for line in found["lines"]}
    assert code == 1 and found["successes"] is not None and found["episodes"] == 2
    assert lines["turned"]["status"] == "problem" and "rotated by 180 degrees" in lines["turned"]["evidence"]
    assert (lines["one_instruction"]["status"], lines["whole_chunk"]["status"]) == ("ok", "ok")


def change_scaling(run: Path) -> None:
    file = follow(run / "checkpoints" / "best") / "policy" / "processor.json"
    values = json.loads(file.read_text())
    values["scaling"]["action_normalization"] = "min_max"
    values["statistics"][0]["action_scaling"] = None
    file.write_text(json.dumps(values))


def change_statistics(run: Path) -> None:
    file = follow(run / "checkpoints" / "best") / "policy" / "processor.json"
    values = json.loads(file.read_text())
    values["statistics"][0]["proprio"]["mean"][1] += 3
    file.write_text(json.dumps(values))


def change_weights(run: Path) -> None:
    from safetensors.torch import load_file

    from atlas.policies.base import load_policy

    folder = follow(run / "checkpoints" / "best") / "policy"
    policy = load_policy(folder)
    weights = load_file(folder / "model.safetensors")
    policy.reference_answers = None
    policy.save_pretrained(folder, weights={name: value * 1.1 for name, value in weights.items()})


@pytest.mark.parametrize(
    ("bug", "plant"),
    [("unnormalised", change_scaling), ("statistics", change_statistics), ("average", change_weights)],
)
def test_what_was_done_to_its_policy_is_named(
    bug: str, plant: Callable[[Path], None], run: Path, atlas: Atlas, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(run)
    (follow(run / "checkpoints" / "best") / MANIFEST).unlink()  # by which it would be refused at once

    code, found = examined(atlas, capfd, run)

    assert code == 1 and of_policy(found)[bug] == "problem", found["lines"]
    page = (run / "report.html").read_text()
    title = next(each.title for each in SILENT_BUGS if each.id == bug)
    assert title in page[: page.index('id="curves"')] and "What is wrong" in page


def test_bad_input_is_refused(run: Path, tmp_path: Path, atlas: Atlas, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (tmp_path / "empty").mkdir()
    cases = [
        (["doctor", str(run)], "has no checkpoint yet"),
        (["doctor", str(tmp_path / "empty")], "is not a run"),
        (["doctor", str(tmp_path / "none")], "There is no run"),
        (["doctor", "--episodes", "3"], "name the run"),
    ]
    for arguments, message in cases:
        assert atlas(*arguments) == 2
        assert message in capfd.readouterr().err
