"""When wandb loses its process, its server or its disk in the middle of a run, training goes on."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faulty_servers import MortalWandb
from marked_processes import end_all, kill, new_mark, processes_of, wait_until
from tracked_run import KEY, Finished, run_script
from watched_run import ROOT, STEPS, Running, Watched, hermetic, train_sh, watch

from atlas.runs import read_scalars
from tests.conftest import MakeLibero

pytest.importorskip("wandb")
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds wandb's process through /proc")

EXIT = 5.0
OFFLINE = {"WANDB_MODE": "offline"}

# ---- in mid-run ------------------------------------------------------------------------------------------


def strike(number: signal.Signals, at_once: bool = False) -> Callable[[Running], None]:
    """Send wandb-core a signal when it has written some rows, or as soon as it is there."""

    def happen(running: Running) -> None:
        running.wait_for_core() if at_once else running.wait_until_open()
        kill(running.core, number)

    return happen


def lose(server: MortalWandb, how: str) -> Callable[[Running], None]:
    def happen(running: Running) -> None:
        running.wait_until_open()
        getattr(server, how)()

    return happen


def fill_the_disk(running: Running) -> None:
    """wandb-core's files may not grow any more: to it, that is a full disk."""
    running.wait_until_open()
    resource.prlimit(running.core, resource.RLIMIT_FSIZE, (1, 1))


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Watched]]]:
    """All of them at once: they mostly wait."""
    folder = tmp_path_factory.mktemp("struck")
    with ExitStack() as stack:
        good, *mortal = (stack.enter_context(MortalWandb()) for _ in range(5))
        online = {"WANDB_BASE_URL": good.url}
        lost_early: dict[str, Any] = {"init_seconds": 2, **online}
        cases: dict[str, dict[str, Any]] = {
            "core killed offline": {"happen": strike(signal.SIGKILL), **OFFLINE},
            "core killed online": {"happen": strike(signal.SIGKILL), **online},
            "core frozen offline": {"happen": strike(signal.SIGSTOP), **OFFLINE},
            "core frozen online": {"happen": strike(signal.SIGSTOP), **online},
            "core killed at the start": {"happen": strike(signal.SIGKILL, at_once=True), **lost_early},
            "core frozen at the start": {"happen": strike(signal.SIGSTOP, at_once=True), **lost_early},
            "disk full": {"happen": fill_the_disk, **OFFLINE},
            "folder that cannot be written": {"before": "(run_dir / 'wandb').symlink_to('/proc')", **OFFLINE},
            "file for a folder": {"before": "(run_dir / 'wandb').write_text('')", **OFFLINE},
        }
        ends = [("refuses", "die"), ("freezes", "freeze")]
        for when, steps in (("in mid-run", STEPS), ("before the end", 1)):
            for what, how in ends:
                server = mortal.pop()
                lost = {"happen": lose(server, how), "steps": steps, "WANDB_BASE_URL": server.url}
                cases[f"server {what} {when}"] = lost
        with ThreadPoolExecutor(max_workers=3) as pool:
            yield {
                name: pool.submit(watch, folder / name.replace(" ", "_"), exit_seconds=EXIT, **arguments)
                for name, arguments in cases.items()
            }


def the_warning(run: Finished) -> str:
    (warning,) = [line for line in run.warnings if "To upload" not in line and "can be uploaded" not in line]
    return warning


def assert_first_rows_can_be_uploaded(watched: Watched) -> None:
    rows = watched.rows()
    assert 1 <= len(rows) <= watched.steps and rows == list(range(1, len(rows) + 1))
    assert f"wandb sync {watched.run.wandb_folder()}" in watched.run.stderr


@pytest.mark.parametrize("where", ["offline", "online"])
def test_when_wandbs_process_is_killed_it_is_switched_off(struck: dict[str, Future[Watched]], where: str) -> None:
    watched = struck[f"core killed {where}"].result()
    watched.assert_undisturbed(EXIT)
    assert "wandb is switched off" in the_warning(watched.run)
    assert_first_rows_can_be_uploaded(watched)


@pytest.mark.parametrize("where", ["offline", "online"])
def test_when_wandbs_process_is_frozen_it_is_abandoned_at_the_exit(
    struck: dict[str, Future[Watched]], where: str
) -> None:
    watched = struck[f"core frozen {where}"].result()
    watched.assert_undisturbed(EXIT)
    assert "did not finish within" in the_warning(watched.run)
    assert_first_rows_can_be_uploaded(watched)


@pytest.mark.parametrize("what", ["killed", "frozen"])
def test_when_wandbs_process_is_lost_at_the_start_training_goes_on(
    struck: dict[str, Future[Watched]], what: str
) -> None:
    watched = struck[f"core {what} at the start"].result()
    watched.assert_undisturbed(EXIT)
    assert len(watched.run.warnings) == 1, watched.run.stderr
    assert watched.run.files_holding(KEY) == []


@pytest.mark.parametrize(
    "what", ["refuses in mid-run", "freezes in mid-run", "refuses before the end", "freezes before the end"]
)
def test_when_the_server_is_lost_all_rows_are_on_disk(struck: dict[str, Future[Watched]], what: str) -> None:
    watched = struck[f"server {what}"].result()
    watched.assert_undisturbed(EXIT)
    assert watched.rows() == list(range(1, watched.steps + 1))
    (warning,) = watched.run.warnings
    assert "did not upload everything" in warning and f"wandb sync {watched.run.wandb_folder()}" in warning
    watched.assert_no_key()


def test_when_wandbs_disk_is_full_training_goes_on(struck: dict[str, Future[Watched]]) -> None:
    watched = struck["disk full"].result()
    watched.assert_undisturbed(EXIT)
    assert len(watched.rows()) < watched.steps


@pytest.mark.parametrize("what", ["folder that cannot be written", "file for a folder"])
def test_without_a_folder_wandb_is_switched_off(struck: dict[str, Future[Watched]], what: str) -> None:
    watched = struck[what].result()
    watched.assert_undisturbed(EXIT)
    assert "wandb is switched off" in the_warning(watched.run)


# ---- how a run ends --------------------------------------------------------------------------------------


def test_after_sigterm_wandb_knows_the_exit_code(make_libero: MakeLibero, tmp_path: Path) -> None:
    flags = ["training.max_steps=100000", "--mode", "multi", "--gpus", "2"]
    command = train_sh(make_libero(), tmp_path / "out", *flags)
    mark, log = new_mark(), tmp_path / "out" / "run" / "train.log"
    with MortalWandb() as server:
        environment = hermetic(tmp_path / "home") | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY} | mark
        try:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            wait_until(lambda: log.exists() and "step      3/" in log.read_text() and server.runs, seconds=120)
            process.send_signal(signal.SIGTERM)
            shown = process.communicate(timeout=120)[1]
            assert processes_of(mark) == {}
        finally:
            end_all(mark)
        assert process.returncode == 143, shown
        assert server.exit_codes == [143]
    assert "Traceback" not in shown
    folder = next((tmp_path / "out" / "run" / "wandb").glob("run-*"))
    run = Finished(143, "", shown, tmp_path / "out" / "run", tmp_path / "home")
    assert run.wandb_folder() == folder
    assert [record["exit_code"] for record in run.wandb_records("exit")] == [143]
    trained = [step for step, _ in read_scalars(run.run_dir)["train/loss"]]
    rows = [row["item"]["train/step"] for row in run.wandb_records("history") if "train/loss" in row["item"]]
    assert trained == rows == list(range(1, len(trained) + 1))


FAILING = """
from atlas import cli
from atlas.training import Trainer

def validate(self):
    raise RuntimeError("a user's mistake")

Trainer.validate = validate
cli.main()
"""


def test_after_an_exception_wandb_knows_the_exit_code(make_libero: MakeLibero, tmp_path: Path) -> None:
    arguments = train_sh(make_libero(), tmp_path / "out")[1:]
    mark = new_mark()
    try:
        done = subprocess.run(
            [sys.executable, "-c", FAILING, "train", *arguments],
            env=hermetic(tmp_path / "home") | OFFLINE | mark,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert processes_of(mark) == {}
    finally:
        end_all(mark)
    assert done.returncode == 1 and "a user's mistake" in done.stderr, done.stderr
    run = Finished(1, "", done.stderr, tmp_path / "out" / "run", tmp_path / "home")
    assert [record["exit_code"] for record in run.wandb_records("exit")] == [1]
    assert f"wandb sync {run.wandb_folder()}" in done.stderr
    assert len(read_scalars(run.run_dir)["train/loss"]) == 20


def test_ctrl_c_while_a_frozen_wandb_is_waited_for_ends_the_program(tmp_path: Path) -> None:
    script = """
    import signal, threading
    tracker = make(exit_timeout=60.0, mode="offline")
    while not (run_dir / "frozen").exists():
        tracker.log({"train/loss": 1.0}, step=1)
        time.sleep(0.05)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    tracker.finish()
    """
    running = Running(new_mark(), tmp_path / "run")
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            ending = pool.submit(run_script, tmp_path, script, **running.mark)
            strike(signal.SIGSTOP)(running)
            (tmp_path / "run" / "frozen").touch()
            run = ending.result()
        finally:
            end_all(running.mark)
    assert run.code == -signal.SIGINT and "KeyboardInterrupt" in run.stderr, run.stderr


# ---- at random -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_faults_break_no_bound(cubes_dataset: Path) -> None:
    """The benchmark in short: trainings that fork, and one through ./train.sh."""
    script = ROOT / "benchmarks" / "tracking_faults.py"
    options = ["--runs", "3", "--through-train-sh", "1", "--seed", "424", "--parallel", "3"]
    process = subprocess.Popen(
        [sys.executable, str(script), *options, "--data", str(cubes_dataset)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate()  # which knows how long it may take, here and now
    finally:
        process.terminate()  # it ends its trainings
        process.wait(timeout=60)
    assert (process.returncode, out.splitlines()[-1]) == (0, "hangs: 0 of 3"), out + err
