"""train.sh: what it hands over, logs and leaves behind; with a stand-in for Python, so that nothing is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = """--config --mode --gpus --gpu-ids --cpu --num-nodes --node-rank --master-addr --master-port --resume --wandb
    --wandb-project --wandb-entity --wandb-name
    --log --background --debug --help""".split()

# A Python that finds every module when it is in an environment, makes environments with itself in them, and says how
# it was asked to train.
# (A shebang cannot name an interpreter whose path has a space, so the shell hands over to it.)
FAKE_PYTHON = f"""#!/bin/sh
''':'
exec "{sys.executable}" "$0" "$@"
'''
import json, os, shutil, signal, sys, time
from pathlib import Path

def note(*what):
    if "FAKE_NOTES" in os.environ:
        with open(os.environ["FAKE_NOTES"], "a") as file:
            print(json.dumps(what), file=file)

if sys.argv[1] == "-c":
    asked = sys.argv[2:]
    in_environment = ".venv" in __file__ or "VIRTUAL_ENV" in os.environ
    absent = set(os.environ.get("FAKE_MISSING", "").split()) & set(asked)
    sys.exit(not in_environment and "version_info" not in asked[0] or bool(absent))
elif sys.argv[1:3] == ["-m", "venv"]:
    note("venv", sys.argv[3])
    bin = Path(sys.argv[3]) / "bin"
    bin.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, bin / "python")
elif sys.argv[1:3] == ["-m", "pip"]:
    note("pip", os.getcwd(), *sys.argv[3:])
    sys.exit(int(os.environ.get("FAKE_PIP", "0")))
else:
    def stop(number, frame):
        print("stopping", flush=True)
        time.sleep(0.2)
        print("checkpoint written", flush=True)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    print(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(), "python": __file__}}), flush=True)
    print("on stderr", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_WAIT"):
        time.sleep(60)
    sys.exit(int(os.environ.get("FAKE_CODE", "0")))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The scripts in a folder with a space in its name, with a Python in .venv that was made by hand."""
    tree = tmp_path / "my project"
    (tree / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "train.sh", tree)
    shutil.copy(ROOT / "scripts" / "venv.sh", tree / "scripts")
    (tree / ".venv" / "bin").mkdir(parents=True)
    write_fake_python(tree / ".venv" / "bin" / "python")
    return tree


def write_fake_python(path: Path) -> None:
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)


@pytest.fixture
def start(tree: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start train.sh from another folder, without an active environment."""
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH")}
        return subprocess.Popen(
            [tree / "train.sh", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=elsewhere,
            env=kept | environment,
        )

    return run


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_help_is_complete_and_needs_no_python(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".venv")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    result = subprocess.run(
        [tree / "train.sh", "--help"], capture_output=True, text=True, env={"PATH": str(tools)}, check=True
    )
    for flag in FLAGS:
        assert re.search(rf"^  {flag}\b", result.stdout, re.MULTILINE), flag
    assert "key=value" in result.stdout
    assert result.stderr == ""
    assert not (tree / ".venv").exists()


def test_every_other_flag_of_the_script_is_one_of_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "atlas.cli", "train", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for flag in set(FLAGS) - {"--log", "--background"}:
        assert re.search(rf"^  (-h, )?{flag}\b", result.stdout, re.MULTILINE), flag


def test_arguments_survive(start: Callable[..., subprocess.Popen[str]], tree: Path) -> None:
    arguments = ["--config", "my config.yaml", "--wandb-name", "a 'b' \"c\" $HOME `ls` *", "wandb.notes=x  y", ""]
    code, out, err = finish(start(*arguments))
    said = json.loads(out)
    assert code == 0
    assert said["argv"] == ["-m", "atlas.cli", "train", *arguments]
    assert said["cwd"].endswith("else where")
    assert said["python"] == str(tree / ".venv" / "bin" / "python")
    assert err == "on stderr\n"


def test_no_arguments(start: Callable[..., subprocess.Popen[str]]) -> None:
    code, out, _ = finish(start())
    assert (code, json.loads(out)["argv"]) == (0, ["-m", "atlas.cli", "train"])


@pytest.mark.parametrize("code", [1, 2, 143])
def test_exit_codes_pass_through(start: Callable[..., subprocess.Popen[str]], code: int) -> None:
    assert finish(start(FAKE_CODE=str(code)))[0] == code


def test_log_keeps_console_and_file_and_exit_code(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    log = tmp_path / "new folder" / "my run.log"
    code, out, _ = finish(start("--log", str(log), "--debug", FAKE_CODE="2"))
    assert code == 2
    assert json.loads(out.splitlines()[0])["argv"] == ["-m", "atlas.cli", "train", "--debug"]
    assert out.endswith("on stderr\n")
    assert log.read_text() == out
    finish(start(f"--log={log}"))
    assert log.read_text().startswith(out)  # a later run is appended
    assert log.read_text().count("on stderr") == 2


@pytest.mark.parametrize("arguments", [["--log"], ["--log="], ["--log", "/dev/null/x"]])
def test_wrong_log(start: Callable[..., subprocess.Popen[str]], arguments: list[str]) -> None:
    code, out, err = finish(start(*arguments))
    assert (code, out) == (2, "")
    assert err.startswith("--log") and len(err.splitlines()) == 1


@pytest.mark.parametrize("logged", [False, True])
def test_sigterm_reaches_python(start: Callable[..., subprocess.Popen[str]], tmp_path: Path, logged: bool) -> None:
    log = tmp_path / "run.log"
    process = start(*(["--log", str(log)] if logged else []), FAKE_WAIT="1")
    assert process.stdout
    first = json.loads(process.stdout.readline())
    assert first["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code == 143
    assert out.endswith("stopping\ncheckpoint written\n")
    if logged:
        assert log.read_text().endswith("stopping\ncheckpoint written\n")


def test_background(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    started = time.monotonic()
    code, out, _ = finish(start("--background", "--log", "my run.log", "run_name=a b", FAKE_WAIT="1"))
    assert code == 0
    assert time.monotonic() - started < 10
    found = re.fullmatch(r"process id: (\d+)\nlog: my run\.log\n", out)
    assert found
    pid, log = int(found[1]), tmp_path / "else where" / "my run.log"
    wait_for(lambda: "on stderr" in log.read_text())
    first = json.loads(log.read_text().splitlines()[0])
    assert first["argv"] == ["-m", "atlas.cli", "train", "run_name=a b"]
    assert first["pid"] == pid  # so that `kill` stops the training itself
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: "checkpoint written" in log.read_text())


def test_background_without_a_log_names_one(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    code, out, _ = finish(start("--background"))
    assert code == 0
    log = tmp_path / "else where" / out.splitlines()[1].removeprefix("log: ")
    wait_for(lambda: "on stderr" in log.read_text())


# ---- the environment -------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """What the stand-in for Python was asked to install."""
    file = tmp_path / "notes"
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def path_with_python(tmp_path: Path) -> str:
    tools = tmp_path / "tools"
    tools.mkdir()
    write_fake_python(tools / "python3")
    return os.pathsep.join([str(tools), "/usr/bin", "/bin"])


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "an interrupted installation"])
@pytest.mark.parametrize("flag", [None, "--wandb"])
def test_a_missing_or_unfinished_venv_is_made(
    start: Callable[..., subprocess.Popen[str]],
    notes: Callable[[], list[list[str]]],
    tree: Path,
    tmp_path: Path,
    before: str,
    flag: str | None,
) -> None:
    venv = tree / ".venv"
    if before == "an interrupted installation":
        (venv / ".atlas-install").write_text("unfinished\n")
    else:
        shutil.rmtree(venv)
        if before == "an empty folder":
            venv.mkdir()
    environment = {"PATH": path_with_python(tmp_path), "FAKE_NOTES": str(tmp_path / "notes")}
    code, out, err = finish(start(*([flag] if flag else []), **environment))
    assert code == 0, err
    extras = "sim,wandb" if flag else "sim"
    pip = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "-c", "constraints.txt", "-e"]
    assert notes() == [["venv", str(venv)], ["pip", str(tree), *pip, f".[{extras}]"]]
    assert json.loads(out)["python"] == str(venv / "bin" / "python")
    assert ("Completing" if before != "nothing" else "Making") in err
    # The second time there is nothing to do.
    finish(start(*([flag] if flag else []), **environment))
    assert len(notes()) == 2


@pytest.mark.parametrize("state", ["complete", None])
def test_wandb_is_added_to_a_venv_of_the_script_only(
    start: Callable[..., subprocess.Popen[str]],
    notes: Callable[[], list[list[str]]],
    tree: Path,
    tmp_path: Path,
    state: str | None,
) -> None:
    if state:
        (tree / ".venv" / ".atlas-install").write_text(f"{state}\n")
    code, _, _ = finish(start("--wandb", FAKE_MISSING="wandb", FAKE_NOTES=str(tmp_path / "notes")))
    assert code == 0
    assert [note[-1] for note in notes()] == ([".[sim,wandb]"] if state else [])


def test_a_failed_installation_is_tried_again(
    start: Callable[..., subprocess.Popen[str]], notes: Callable[[], list[list[str]]], tree: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tree / ".venv")
    environment = {"PATH": path_with_python(tmp_path), "FAKE_NOTES": str(tmp_path / "notes")}
    code, out, err = finish(start(**environment, FAKE_PIP="1"))
    assert (code, out) == (1, "")
    assert "did not finish" in err
    assert finish(start(**environment))[0] == 0
    assert [note[0] for note in notes()] == ["venv", "pip", "venv", "pip"]


def test_an_active_environment_is_used_as_it_is(
    start: Callable[..., subprocess.Popen[str]], notes: Callable[[], list[list[str]]], tree: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tree / ".venv")
    path = path_with_python(tmp_path)
    (tmp_path / "tools" / "python3").rename(tmp_path / "tools" / "python")
    environment = {"PATH": path, "VIRTUAL_ENV": str(tmp_path), "FAKE_NOTES": str(tmp_path / "notes")}
    code, out, _ = finish(start("--wandb", **environment))
    assert code == 0
    assert json.loads(out)["python"] == str(tmp_path / "tools" / "python")
    assert notes() == []
    assert not (tree / ".venv").exists()
