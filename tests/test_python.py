"""Processes started from a folder with the user's own modules that have the names of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.system.process_control.interpreter import module_command, safe_environment, safe_workers
from tests.launch.test_failing_ranks import ROOT, write_namesakes

SPAWNS = """
import multiprocessing, sys
from atlas.system.process_control.interpreter import safe_workers

if __name__ == "__main__":
    with safe_workers(eval(sys.argv[1])):
        process = multiprocessing.get_context("spawn").Process(target=print, args=("spawned",))
        process.start()
        process.join()
"""


def run(command: list[str], cwd: Path, path: Path = ROOT) -> str:
    """What it prints, without the variable that Python 3.10 does not know."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_is_run_without_the_folder(tmp_path: Path) -> None:
    write_namesakes(tmp_path)

    assert run([*module_command("atlas.cli"), "--version"], tmp_path) == "atlas 0.1.0\n"


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_workers_are_spawned_without_the_folder(tmp_path: Path, version: tuple[int, int]) -> None:
    if version > sys.version_info[:2]:
        pytest.skip("Python 3.10 has no PYTHONSAFEPATH")
    namesakes, own = write_namesakes(tmp_path / "namesakes"), tmp_path / "own"
    own.mkdir()
    (own / "spawning.py").write_text(SPAWNS)

    assert run([*module_command("spawning"), str(version)], namesakes, own) == "spawned\n"


def test_what_is_set_for_workers_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing.util

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    flags = multiprocessing.util._args_from_interpreter_flags  # type: ignore[attr-defined]
    for version in ((3, 10), (3, 11)):
        with safe_workers(version):
            pass
    assert "PYTHONSAFEPATH" not in os.environ
    assert multiprocessing.util._args_from_interpreter_flags is flags  # type: ignore[attr-defined]


def test_the_package_is_found_before_others_of_its_name() -> None:
    found = safe_environment({"PYTHONPATH": f"/elsewhere{os.pathsep}{os.pathsep}"})

    assert found == {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}/elsewhere"}


def test_whoever_starts_a_python_starts_it_so() -> None:
    """Another command for it would import modules of the user's folder."""
    named = {file.name for file in (ROOT / "atlas").rglob("*.py") if "sys.executable" in file.read_text("utf-8")}

    assert named == {"interpreter.py", "machine.py"}  # which says what the interpreter is


def test_actors_are_started_without_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zmq", reason="actors talk through pyzmq")
    from atlas.config import Config
    from atlas.learning.actors import actor_processes

    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(
        actor_processes.subprocess, "Popen", lambda command, **given: started.append((command, given["env"]))
    )
    processes = actor_processes.ActorProcesses(Config(), "gym:Pendulum-v1", 2, None)

    processes.start(4000)

    assert [command[:5] for command, _ in started] == [module_command("atlas.cli")] * 2
    assert {given["PYTHONSAFEPATH"] for _, given in started} == {"1"}
