"""`atlas doctor` on this machine, as it is and with faults planted: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.doctor.examination import check_training
from atlas.doctor.machine import check_outputs
from tests.test_vertical_slice import run_atlas

ROOT = Path(__file__).parents[2]


def broken_package(folder: Path, name: str, error: str) -> dict[str, str]:
    """The environment in which importing a package raises `error`."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"raise {error}\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_a_machine_that_can_train_is_told_so_and_nothing_is_left_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}

    done = run_atlas(["doctor", "--json"], check=False, cwd=tmp_path, env=environment, children=6)

    found = json.loads(done.stdout)
    status = {finding["check"]: finding["status"] for finding in found["findings"]}
    seen = {finding["check"]: finding["seen"] for finding in found["findings"]}
    assert done.returncode == 0 and found["can_train"] is True, found
    assert status["training"] == status["processes"] == status["rendering"] == status["wandb"] == "ok", found
    assert "2 steps" in seen["training"] and "2 processes" in seen["processes"] and "cubes world" in seen["rendering"]
    assert "there is a key" in seen["wandb"] and "mode offline" in seen["wandb"]
    assert "kkkk" not in done.stdout + done.stderr
    assert "training: training a tiny job ..." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broken_machine_is_told_what_is_broken_and_what_to_do(tmp_path: Path) -> None:
    """Several faults at once: none hides another, and all that can be looked at is."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    missing = "raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')\n"
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(missing)
    faults = broken_package(tmp_path / "packages", "accelerate", "ImportError('libcudart.so.12: cannot open it')")
    faults["MUJOCO_EGL_DEVICE_ID"] = "99"
    (tmp_path / "outputs").symlink_to("/proc")

    done = run_atlas(["doctor"], check=False, cwd=tmp_path, env={**os.environ, **faults})

    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout
    assert "problem outputs" in said and "cannot be written to" in said and "output_dir=DIR" in said
    assert "problem rendering" in said and "got 99" in said and "unset" in said and "MUJOCO_EGL_DEVICE_ID" in said
    assert "warning wandb" in said and "wandb is not installed" in said and "pip install 'atlas-vla[wandb]'" in said
    assert "problem training" in said and "libcudart.so.12" in said
    assert "ok processes" in said and "ok torch" in said
    assert "broken: outputs, rendering, training." in said
    assert "Traceback" not in done.stdout + done.stderr


def test_a_training_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first words are those of the error itself, and not of the traceback around it."""
    broken = broken_package(tmp_path, "tensorboard", "RuntimeError('the wrong protobuf')")
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("raise ImportError('bad magic number')\n")
    monkeypatch.setenv("PYTHONPATH", broken["PYTHONPATH"])

    finding = check_training()

    assert finding.status == "problem" and finding.seen == "a tiny job failed: ImportError: bad magic number"
    assert finding.fix is not None and "atlas doctor --json" in finding.fix


def test_torch_is_not_imported_before_something_is_said(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from atlas.doctor import CHECKS, examine\n"
        "for finding in examine([check for check in CHECKS if check.does is None]):\n"
        "    print(finding.check, 'torch' in sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )

    said = dict(line.split() for line in done.stdout.splitlines())
    assert {"platform", "packages", "gpus", "cores", "memory", "outputs"} <= set(said)
    assert set(said.values()) == {"False"}


@pytest.mark.parametrize("planted", ["a file", "a dangling link", "a place that takes no files"])
def test_an_output_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    outputs = tmp_path / "outputs"
    if planted == "a file":
        outputs.write_text("")
    else:
        outputs.symlink_to(tmp_path / "nowhere" if planted == "a dangling link" else "/proc")
    monkeypatch.chdir(tmp_path)

    finding = check_outputs()

    assert finding.status == "problem" and str(outputs) in finding.seen and "cannot be written to" in finding.seen
    assert finding.fix is not None and "output_dir=DIR" in finding.fix


def test_shared_memory_that_is_too_small_is_a_warning(tmp_path: Path) -> None:
    script = "from atlas.doctor.machine import check_shared_memory as c; f = c(); print(f.status, f.seen, f.fix)"
    mounted = f"mount -t tmpfs -o size=32m tmpfs /dev/shm && '{sys.executable}' -c '{script}'"

    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted], cwd=ROOT, capture_output=True, text=True)

    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()}")
    assert done.stdout.startswith("warning /dev/shm: 0.0 GiB"), done
    assert "--shm-size=8g" in done.stdout and "data.num_workers=0" in done.stdout
