"""The processes that tests start quickly are processes like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are ordinary processes")


@pytest.mark.parametrize(
    ("code", "ends_with", "says"),
    [
        ("print('out'); import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('words')", 1, "words\n"),
        ("raise ValueError('a defect')", 1, "ValueError: a defect\n"),
        ("import os; os._exit(7)", 7, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit, sys; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_they_end_as_an_interpreter_does(code: str, ends_with: int, says: str) -> None:
    done = warm.run("-c", code)

    assert done.returncode == ends_with and done.stderr.endswith(says), done.stderr
    assert done.stdout == ("out\n" if "out" in code else "")


def test_signals_reach_them(tmp_path: Path) -> None:
    process = warm.start("-c", "import time; print('here', flush=True); time.sleep(600)", stdout=warm.PIPE, stderr=-3)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    assert process.poll() is None

    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=60) == ("", "") and process.returncode == -signal.SIGINT


def test_they_have_the_folder_and_the_environment_that_they_are_given(tmp_path: Path) -> None:
    code = (
        "import os; print(os.getcwd(), os.environ['NAME'], len(os.environ)); print(open('/proc/self/environ').read())"
    )

    done = warm.run("-c", code, env={"NAME": "a value", "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)

    first, seen = done.stdout.splitlines()
    assert first == f"{tmp_path} a value 2"
    assert sorted(seen.strip("\0").split("\0")) == ["NAME=a value", f"PYTHONPATH={tmp_path}"]


def test_what_they_start_is_their_child_and_has_run_nothing_before(tmp_path: Path) -> None:
    (tmp_path / "of_the_test.py").write_text("import os; print(os.getppid(), os.environ['NAME'])")
    code = """
import os, subprocess, sys
os.environ["NAME"] = "child"
sys.modules["of_the_test"] = None  # here alone
for _ in range(2):  # the second is no copy: there is one alone
    print(os.getpid(), subprocess.run([sys.executable, "-m", "of_the_test"], capture_output=True, text=True).stdout)
"""

    done = warm.run("-c", code, cwd=tmp_path, children=1)

    for line in done.stdout.strip().split("\n\n"):
        own, parent, name = line.split()
        assert own == parent and name == "child", done.stderr


def test_shell_scripts_can_start_them(tmp_path: Path) -> None:
    warm.write_python(tmp_path)
    (tmp_path / "program.py").write_text("import sys; print('torch' in sys.modules, sys.argv[1:]); sys.exit(5)")
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])

    done = subprocess.run(
        ["sh", "-c", 'python "$0" "a b"', str(tmp_path / "program.py")],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (5, "True ['a b']\n"), done.stderr
