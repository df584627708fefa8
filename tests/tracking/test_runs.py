"""Runs read back from their folders: metrics, states, and the messages for folders that are not runs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter
from written_runs import log_curves, write_evaluation, write_run

from atlas.errors import InputError
from atlas.runs import read_scalars
from atlas.runs.run_directory import find_runs, read_evaluation, read_named, read_run, summarize
from atlas.runs.scalars import event_files
from tests import warm
from tests.processes import end_tree
from tests.test_vertical_slice import run_atlas

# ---- reading ---------------------------------------------------------------------------------------------


def test_scalars_are_those_that_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    log_curves(tmp_path, {"train/loss": [(step, 1 / step) for step in range(1, 30)], "val/loss": [(20, 0.5)]})
    (first,) = event_files(tmp_path)  # TensorBoard sorts two files of one second by the text of a counter
    first.rename(first.with_name(f"events.out.tfevents.1700000000.{socket.gethostname()}.1.0"))
    writer = SummaryWriter(str(tmp_path / "tensorboard"), purge_step=16)  # resumed from step 15
    writer.add_scalar("train/loss", 9.0, 16)
    writer.add_histogram("weights", np.arange(2000.0), 16)
    writer.add_text("config", "not a scalar")
    writer.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={SCALARS: 0})
    events.Reload()
    theirs = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}
    assert read_scalars(tmp_path) == {tag: points for tag, points in theirs.items() if points}
    assert read_scalars(tmp_path)["train/loss"][-2:] == [(15, pytest.approx(1 / 15)), (16, 9.0)]


def test_segments_come_in_the_order_in_which_they_were_begun(tmp_path: Path) -> None:
    begun = ["1700000001.a-host.41.9", "1700000001.a-host.41.10", "1700000001.a-host.130.0", "1700000002.a-host.7.0"]
    (tmp_path / "tensorboard").mkdir()
    for name in reversed(begun):
        (tmp_path / "tensorboard" / f"events.out.tfevents.{name}").touch()

    assert [file.name.removeprefix("events.out.tfevents.") for file in event_files(tmp_path)] == begun


def test_a_run_is_read_while_it_is_being_written(tmp_path: Path) -> None:
    log_curves(tmp_path, {"train/loss": [(1, 1.0), (2, 0.5)]})
    (file,) = event_files(tmp_path)
    whole = file.read_bytes()
    found = []
    for end in range(len(whole) + 1):  # wherever the writer has come to
        file.write_bytes(whole[:end])
        points = read_scalars(tmp_path).get("train/loss", [])
        if points not in found:
            found.append(points)
    assert found == [[], [(1, 1.0)], [(1, 1.0), (2, 0.5)]]


def test_a_damaged_file_is_named_and_not_read_as_something_else(tmp_path: Path) -> None:
    log_curves(tmp_path, {"train/loss": [(1, 1.0), (2, 0.5)]})
    (file,) = event_files(tmp_path)
    whole = file.read_bytes()
    for position in range(len(whole) - 4, 0, -7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(InputError, match=f"{file.name} is damaged at byte"):
            read_scalars(tmp_path)


# ---- states ----------------------------------------------------------------------------------------------


def finish(run: Path, final: dict[str, object] | None = None) -> None:
    (run / "results.json").write_text(json.dumps({"metrics": {}, "final_evaluation": final}))


def save_checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (run / "checkpoints" / "latest").symlink_to(f"step_{step:08d}")


def test_a_finished_run_is_summed_up(tmp_path: Path) -> None:
    curves = {
        "train/loss": [(10, 0.5), (20, 0.4)],
        "val/loss": [(10, 0.7), (20, 0.6)],
        "eval/success_rate": [(10, 0.8), (20, 0.5)],
        "best_model/step": [(10, 10.0)],
        "best_model/value": [(10, 0.8)],
    }
    run = write_run(tmp_path / "a", "training.max_steps=20", curves=curves)
    finish(run, {"successes": 30, "episodes": 40, "success_rate": 0.75, "ci95": [0.6, 0.86]})

    found = summarize(run, "a").to_dict()

    assert (found["state"], found["steps"], found["total_steps"]) == ("finished", 20, 20)
    assert (found["best_metric"], found["best_step"]) == ("eval/success_rate", 10)
    assert found["best_value"] == pytest.approx(0.8)
    assert found["final_success"] == {"successes": 30, "episodes": 40, "success_rate": 0.75, "ci95": [0.6, 0.86]}
    assert found["val_loss"] == pytest.approx(0.6)
    assert found["started"] is not None


def test_a_run_that_goes_on_after_its_end_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "training.max_steps=100")
    finish(run)  # of the ten steps that were asked for at first
    save_checkpoint(run, 10)

    assert summarize(run, "a").state == "stopped"


def test_a_run_that_ended_beyond_its_checkpoint_is_unfinished_and_one_with_nothing_lost_is_stopped(
    tmp_path: Path,
) -> None:
    lost = write_run(tmp_path / "lost", curves={"train/loss": [(10, 0.5), (14, 0.5)]})
    save_checkpoint(lost, 10)
    stopped = write_run(tmp_path / "stopped", curves={"train/loss": [(10, 0.5), (14, 0.5)]})
    save_checkpoint(stopped, 14)

    assert summarize(lost, "lost").state == "unfinished"
    assert summarize(stopped, "stopped").state == "stopped"
    assert summarize(write_run(tmp_path / "new", curves={"val/loss": [(0, 1.0)]}), "new").state == "unfinished"


WRITER = """
import sys, time
from pathlib import Path
from torch.utils.tensorboard import SummaryWriter
from atlas.tracking.sinks.console import setup_logging

setup_logging(Path(sys.argv[1]), is_main=True)
writer = SummaryWriter(sys.argv[1] + "/tensorboard")
print(flush=True)
time.sleep(600)
"""


def test_a_run_runs_as_long_as_its_process_logs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert summarize(run, "a").state == "unfinished"  # this process lives, and has closed its files

    writer = warm.start("-c", WRITER, str(run), stdout=warm.PIPE)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        assert summarize(run, "a").state == "running"
    finally:
        end_tree(writer)
    assert summarize(run, "a").state == "unfinished"


def test_a_run_of_another_machine_runs_while_its_files_grow(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (file,) = event_files(run)
    elsewhere = file.rename(file.with_name(file.name.replace(socket.gethostname(), "some.other-machine")))
    assert summarize(run, "a").state == "running"

    os.utime(elsewhere, (0, 0))
    assert summarize(run, "a").state == "unfinished"


# ---- finding ---------------------------------------------------------------------------------------------


def test_runs_are_found_by_name_by_path_and_in_the_folders_of_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    write_run(outputs / "a")
    write_run(outputs / "grid" / "a")
    (outputs / "notes").mkdir()

    assert list(find_runs(outputs)) == ["a", "grid/a"]
    assert list(find_runs(outputs / "grid")) == ["a"]
    assert list(find_runs(outputs / "a")) == ["a"]
    monkeypatch.chdir(tmp_path)
    assert [run.path for run in read_named(["a", "outputs/grid/a"])] == [Path("outputs/a"), Path("outputs/grid/a")]
    assert [run.name for run in read_named(["a", "grid/a"])] == ["a", "grid/a"]  # the folders' names are the same


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b", "There is no run 'b', neither as a path nor in outputs/"),
        ("firts", "Did you mean 'first'?"),
        ("empty", "neither config.yaml nor tensorboard/"),
        ("outputs", "Name the runs in it, such as outputs/binary"),
        ("file.json", "file.json cannot be read as the outcomes of an evaluation"),
        ("broken", "config.yaml is damaged"),
        ("binary", "config.yaml cannot be read: it is not valid YAML"),
    ],
)
def test_what_is_no_run_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("outputs/first"))
    Path("empty").mkdir()
    Path("file.json").write_text("{}")
    write_run(Path("outputs/broken"))
    Path("outputs/broken/config.yaml").write_text("")
    write_run(Path("outputs/binary"))
    Path("outputs/binary/config.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InputError) as error:
        read_named(["first", name])
    assert message in str(error.value)


def test_evaluations_are_read_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_evaluation(run, [True, False], "selection", step=20)
    write_evaluation(run, [True, True], "selection", step=10)

    found = read_run(run).evaluations
    assert [(each.step, each.success_rate) for each in found] == [(10, 1.0), (20, 0.5)]
    assert found[0].outcomes == {("lift", 0): True, ("lift", 1): True}


def test_an_evaluation_without_all_its_episodes_is_damaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    file = write_evaluation(run, [True, False], episodes=3)
    with pytest.raises(InputError, match=r"final_step_00000010\.json cannot be read"):
        read_evaluation(file)


# ---- the command -----------------------------------------------------------------------------------------


def test_the_list_shows_every_run_and_leaves_out_damaged_ones_with_a_word(tmp_path: Path) -> None:
    finish(write_run(tmp_path / "one", "training.max_steps=10"), None)
    write_run(tmp_path / "two")
    (write_run(tmp_path / "bad") / "config.yaml").unlink()

    shown = run_atlas(["runs", "list", str(tmp_path)])
    listed = json.loads(run_atlas(["runs", "list", str(tmp_path), "--json"]).stdout)

    assert "one" in shown.stdout and "finished" in shown.stdout and "10/10" in shown.stdout
    assert "left out" in shown.stderr and "bad/config.yaml cannot be read" in shown.stderr
    assert {run["name"]: run["state"] for run in listed["runs"]} == {"one": "finished", "two": "unfinished"}
    assert len(listed["damaged"]) == 1


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_a_folder_without_runs_is_wrong_input(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run_atlas(["runs", "list", str(tmp_path / folder)], check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert folder in done.stderr and "Traceback" not in done.stderr
