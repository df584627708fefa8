"""What is settled before a run starts: its folder, which no other run has, and where it resumes from."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import atlas
from atlas.checkpoints import Checkpoints
from atlas.config import load_config
from atlas.errors import InputError
from atlas.prepare import prepare
from atlas.runs import read_scalars
from tests.conftest import MakeLibero
from tests.test_vertical_slice import SMALL
from tests.training.written import small


def settings(data: Path, out: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.path={data}", f"output_dir={out}", "evaluation.env=none", "distributed.cpu=true", *more]


@pytest.mark.parametrize("text", ["training: {quantum: 1}", "- no config", None], ids=["older", "another's", "missing"])
def test_resume_auto_passes_over_runs_whose_config_cannot_be_read(
    make_libero: MakeLibero, tmp_path: Path, text: str | None
) -> None:
    other = tmp_path / "out" / "other"
    Checkpoints(other, 1).write(small(3))
    if text is not None:
        (other / "config.yaml").write_text(text)

    run = prepare(load_config(None, settings(make_libero(), tmp_path / "out")), "auto")

    assert run.checkpoint is None and run.config.run_name != "other"


def test_runs_that_nobody_named_have_folders_of_their_own(
    make_libero: MakeLibero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun in the same second."""
    config = load_config(None, settings(make_libero(), tmp_path / "out"))
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    with ExitStack() as locks:
        names = [prepare(config, None, locks).config.run_name for _ in range(3)]

        assert len(set(names)) == 3 and all(str(name).startswith(str(names[0])) for name in names)
        with pytest.raises(InputError, match=rf"is working on the run '{names[0]}'"):
            prepare(config.model_copy(update={"run_name": names[0]}))
    prepared = prepare(config.model_copy(update={"run_name": names[0]}))
    assert [path.name for path in prepared.run_dir.iterdir()] == ["config.yaml"]


def test_one_episode_a_task_is_trained_on_without_validation(make_libero: MakeLibero, tmp_path: Path) -> None:
    data = make_libero({"open the drawer": [12], "close the drawer": [10]})
    given = settings(data, tmp_path / "out", "training.max_steps=2", "checkpoint.save_interval=1", "run_name=run")
    for override, key in (
        ("training.early_stopping={metric: val/loss}", "training.early_stopping.metric"),
        ("model_management.best_model_metric=val/pose_l2_error", "model_management.best_model_metric"),
    ):
        with pytest.raises(InputError, match=rf"{key} is val/.* there is no validation: each task has one episode"):
            prepare(load_config(None, [*given, override]))
    assert not (tmp_path / "out").exists()

    result = atlas.train(None, given)

    assert result.best_checkpoint.name == "step_00000002" and result.metrics["train/step"] == 2
    assert not any(name.startswith(("val/", "best_model/")) for name in read_scalars(result.run_dir))
    log = (result.run_dir / "train.log").read_text()
    assert "22 training and 0 validation samples" in log and "no episode is left for validation" in log
    saved = json.loads((result.best_checkpoint / "policy" / "processor.json").read_text())
    assert saved["statistics"][0]["episodes"] == 2
    again = atlas.train(None, [*given, "training.max_steps=3"], resume="auto")
    assert again.best_checkpoint.name == "step_00000003"
