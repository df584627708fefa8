"""A resumed run: the same wandb run, with the rows it has, cut back if that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_wandb import FakeWandb
from tracked_run import KEY, Finished, run_script

pytest.importorskip("wandb")

FIRST = """
tracker = make()
while tracker.wandb_row is None:
    time.sleep(0.05)  # known once the run is open
for step in (10, 20, 30):
    tracker.log({"train/loss": 1 / step}, step=step)
    if step == 20:
        row = tracker.wandb_row  # what a checkpoint of this step keeps
print(tracker.wandb_id, row)
tracker.finish()
"""


class RewindableWandb(FakeWandb):
    """Also cuts a run back to a row."""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation != "RewindRun":
            return super().answer(operation, variables)
        self.operations.append(operation)
        run = self.runs[variables["runName"]]
        run["rows"] = [row for row in run["rows"] if row["_step"] <= variables["metricValue"]]
        bucket = self._upsert_run({"name": variables["runName"]})["bucket"]
        return {"rewindRun": {"rewoundRun": bucket}}


def go_on(folder: Path, server: FakeWandb, script: str) -> Finished:
    return run_script(folder, script, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)


def steps_of(server: FakeWandb, run_id: str) -> list[tuple[int, int]]:
    rows = server.runs[run_id]["rows"]
    return [(row["_step"], row["train/step"]) for row in rows if "train/loss" in row]


def test_a_resumed_run_is_the_same_run_and_keeps_its_rows(tmp_path: Path) -> None:
    with FakeWandb() as server:
        run_id, row = go_on(tmp_path, server, FIRST).stdout.split()
        again = go_on(
            tmp_path,
            server,
            f"""
            tracker = make(resumed=Resumed(20, {run_id!r}, {row}))
            tracker.log({{"train/loss": -0.5}}, step=30)
            assert tracker.wandb_id == {run_id!r}
            tracker.finish()
            """,
        )
        assert (again.code, again.warnings) == (0, []), again.stderr
        assert list(server.runs) == [run_id]
        # wandb keeps what came after the checkpoint, with its steps; TensorBoard leaves it out.
        assert steps_of(server, run_id) == [(0, 10), (1, 20), (2, 30), (3, 30)]


def test_with_rewind_what_came_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    with RewindableWandb() as server:
        run_id, row = go_on(tmp_path, server, FIRST).stdout.split()
        assert row == "1"
        again = go_on(
            tmp_path,
            server,
            f"""
            tracker = make(resumed=Resumed(20, {run_id!r}, {row}), rewind=True)
            tracker.log({{"train/loss": -0.5}}, step=30)
            tracker.finish()
            """,
        )
        assert (again.code, again.warnings) == (0, []), again.stderr
        assert "RewindRun" in server.operations
        assert steps_of(server, run_id) == [(0, 10), (1, 20), (2, 30)]
        assert server.runs[run_id]["rows"][-1]["train/loss"] == -0.5


@pytest.mark.parametrize(("resume", "first"), [("must", ""), ("never", FIRST)])
def test_what_resume_forbids_is_not_done_and_the_run_is_kept_offline(tmp_path: Path, resume: str, first: str) -> None:
    with FakeWandb() as server:
        run_id = go_on(tmp_path, server, first).stdout.split()[0] if first else "absent12"
        script = f"""
        tracker = make(wandb_id={run_id!r}, resume={resume!r})
        tracker.log({{"train/loss": 2.0}}, step=40)
        tracker.finish()
        """
        again = go_on(tmp_path, server, script)
        assert again.code == 0
        assert len(again.warnings) == 1 and "goes offline" in again.warnings[0] and run_id in again.warnings[0]
        assert f"wandb.resume is {resume}" in again.warnings[0]
        assert not any(row.get("train/loss") == 2.0 for row in server.history)
    assert [row["item"]["train/loss"] for row in again.wandb_records("history")] == [2]
