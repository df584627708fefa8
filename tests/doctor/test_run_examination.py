"""`atlas doctor RUN`: what is wrong with a run is named, and shown on the first screen of its report."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atlas as atlas_package
from atlas.checks.acting.bug_walk import DIAGNOSIS
from atlas.checks.silent_bugs import SILENT_BUGS
from atlas.system.files import follow
from atlas.system.manifest import MANIFEST
from tests.bad_input.table import SMALL
from tests.conftest import MakeOnce, write_made_up_libero

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
