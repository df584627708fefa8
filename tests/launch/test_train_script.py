"""train.sh: what it hands over, logs and leaves; with a stand-in for Python, so that nothing is installed."""

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

from tests.launch.test_failing_ranks import write_namesakes

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

if sys.argv[1] == "-c" and "atlas.cli" in sys.argv[2]:
    print(json.dumps({{"start": sys.argv[2], "argv": sys.argv[3:]}}))
elif sys.argv[1] == "-c":
    asked = sys.argv[2:]
    if "3, 11" in asked[0]:
        sys.exit("FAKE_OLD" in os.environ)
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
    time.sleep(float(os.environ.get("FAKE_PIP_SECONDS", "0")))
    sys.exit(int(os.environ.get("FAKE_PIP", "0")))
else:
    def stop(number, frame):
        os.write(1, b"stopping\\n")  # the signal may come in the middle of a print, which cannot be begun twice
        time.sleep(0.2)
        os.write(1, b"checkpoint written\\n")
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
    for tool in ("bash", "cat", "dirname", "readlink"):
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


@pytest.mark.parametrize("how", ["a link", "a link to a link", "CDPATH"])
def test_the_script_finds_its_folder(tree: Path, tmp_path: Path, how: str) -> None:
    called, variables = tree / "train.sh", {}
    if how == "CDPATH":
        (tmp_path / "other" / "my project").mkdir(parents=True)
        called, variables = Path("my project", "train.sh"), {"CDPATH": str(tmp_path / "other") + ":."}
    else:
        for name, target in [("first", called), ("second", Path("..", "bin", "first"))]:
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / name).symlink_to(target)
        called = tmp_path / "bin" / ("first" if how == "a link" else "second")
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}

    done = subprocess.run([called, "a=b"], capture_output=True, text=True, cwd=tmp_path, env=kept | variables)

    assert (done.returncode, done.stderr) == (0, "on stderr\n")
    assert json.loads(done.stdout)["python"] == str(tree / ".venv" / "bin" / "python")


def test_on_python_3_10_nothing_of_the_users_folder_is_run(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    code, out, err = finish(start("a=b", FAKE_OLD="1"))
    assert (code, err) == (0, "")
    asked = json.loads(out)
    assert asked["argv"] == ["train", "a=b"]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)}
    folder = write_namesakes(tmp_path / "namesakes")

    done = subprocess.run(
        [sys.executable, "-c", asked["start"], "--version"], capture_output=True, text=True, cwd=folder, env=kept
    )

    assert (done.stdout, done.stderr) == ("atlas 0.1.0\n", "")


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


def test_a_module_in_the_users_folder_is_not_taken_for_an_installed_one(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, tree: Path
) -> None:
    """The real interpreter looks, instead of the stand-in."""
    (tmp_path / "else where" / "importlib.py").write_text("raise SystemExit(0)")
    looks = f"source '{tree}/scripts/venv.sh'; has_modules '{sys.executable}' no_such_module_anywhere"
    (tmp_path / "else where" / "no_such_module_anywhere.py").touch()
    assert subprocess.run(["bash", "-c", looks], cwd=tmp_path / "else where").returncode == 1


@pytest.mark.parametrize("state", ["complete", "unfinished", None])
def test_an_environment_whose_python_is_gone_is_made_again_where_it_was_made_here(
    start: Callable[..., subprocess.Popen[str]],
    notes: Callable[[], list[list[str]]],
    tree: Path,
    tmp_path: Path,
    state: str | None,
) -> None:
    venv = tree / ".venv"
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(tmp_path / "removed" / "python3.10")
    (venv / "lib").mkdir()
    if state:
        (venv / ".atlas-install").write_text(f"{state}\n")

    code, out, err = finish(start(PATH=path_with_python(tmp_path), FAKE_NOTES=str(tmp_path / "notes")))

    if state is None:
        assert (code, out, notes()) == (2, "", [])
        assert "was not made here" in err and (venv / "lib").exists()
        return
    assert code == 0, err
    assert "is gone; making it again" in err
    assert [note[0] for note in notes()] == ["venv", "pip"]
    assert not (venv / "lib").exists()
    assert json.loads(out)["python"] == str(venv / "bin" / "python")


@pytest.mark.parametrize("tool", ["flock", "no flock", "no flock, after one that was killed"])
def test_two_first_starts_make_one_environment(
    start: Callable[..., subprocess.Popen[str]],
    notes: Callable[[], list[list[str]]],
    tree: Path,
    tmp_path: Path,
    tool: str,
) -> None:
    shutil.rmtree(tree / ".venv")
    path = path_with_python(tmp_path)
    if tool != "flock":
        for name in "bash sh cat date dirname env find mkdir readlink rm rmdir sleep uname".split():
            (tmp_path / "tools" / name).symlink_to(str(shutil.which(name)))
        path = str(tmp_path / "tools")
    if "killed" in tool:
        gone = subprocess.Popen(["true"])
        gone.wait()
        (tree / ".venv").mkdir()
        (tree / ".venv" / ".atlas-lock.pid").write_text(f"{os.uname().nodename} {gone.pid}\n")
    environment = {"PATH": path, "FAKE_NOTES": str(tmp_path / "notes"), "FAKE_PIP_SECONDS": "1.5"}

    both = [start(**environment) for _ in range(2)]
    ends = [finish(process) for process in both]

    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [note[0] for note in notes()] == ["venv", "pip"]
    assert sum("Waiting for another script" in err for _, _, err in ends) == 1
    assert {json.loads(out)["python"] for _, out, _ in ends} == {str(tree / ".venv" / "bin" / "python")}
