"""benchmarks/gpu_check.py without a GPU: it runs to the end, and says what it leaves out and why."""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.config import Config, load_config
from tests.conftest import MakeLibero

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

ON_CPUS = {"driver", "egl", "recomputing", "accumulation", "resume", "not finite", "speed"}


def test_it_runs_through_without_a_gpu(
    make_libero: MakeLibero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_check

    monkeypatch.setattr(gpu_check, "count_gpus", lambda: 0)

    code = gpu_check.main(["--quick", "--out", str(tmp_path), "--data", str(make_libero()), "--minutes", "60"])

    found = json.loads((tmp_path / "results.json").read_text())
    phases = found["phases"]
    failed = {name: phase["why"] for name, phase in phases.items() if phase["result"] == "failed"}
    assert code == 0 and not failed
    assert {name for name, phase in phases.items() if phase["result"] == "ok"} == ON_CPUS
    assert phases["1 against 8"]["why"] == "needs 8 GPUs, and 0 were found"
    assert phases["resume"]["found"]["bit for bit"] and phases["speed"]["found"]["default"]["samples/s"] > 0
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out and all(f"| {name} |" in table for name in phases)


def test_the_settings_of_every_phase_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of phases that need GPUs: nobody would see a misspelt one before a machine with GPUs is there."""
    import gpu_phases
    import gpu_runs
    import gpu_speed
    from gpu_job import Job, overrides_of, policies

    class Enough(Exception):
        pass

    asked: list[Config] = []

    def watched(command: list[str], *_: object, **__: object) -> None:
        words = command[command.index("train") + 1 :]
        asked.append(load_config(None, [word for word in words if "=" in word]))
        raise Enough

    def trained(job: Job, name: str, *overrides: str, resume: Path | None = None) -> dict[str, list[tuple[int, float]]]:
        asked.append(load_config(None, [*overrides_of(job, name), *overrides]))
        return defaultdict(lambda: [(1, 1.0)])

    def stopped(*_: object) -> None:
        raise Enough

    nvml = ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetComputeRunningProcesses")
    nothing: dict[str, Any] = {name: lambda *_: [] for name in nvml}
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**nothing))
    monkeypatch.setattr(gpu_runs, "watch", watched)
    monkeypatch.setattr(gpu_runs, "train", trained)
    monkeypatch.setattr(gpu_runs, "load_state", stopped)
    monkeypatch.setattr(gpu_speed, "train", trained)
    monkeypatch.setattr(gpu_speed, "read_trace", lambda _: {})
    monkeypatch.setattr(gpu_speed, "_cached", lambda _: tmp_path)
    for kind in ("default", "vggt_frozen", "vggt_with_adapters", "vggt_cached"):
        (tmp_path / "runs" / kind / "profile").mkdir(parents=True)
        (tmp_path / "runs" / kind / "profile" / "rank0_3.json.gz").touch()
    monkeypatch.setattr("statistics.median", lambda _: 1.0)
    job = Job(str(tmp_path), "data", 8, quick=False)
    needs = [name for name, phase in gpu_phases.PHASES.items() if phase.run.__module__ == "gpu_runs" and phase.gpus]
    for name in needs:
        with pytest.raises(Enough):
            gpu_phases.PHASES[name].run(job)
    before = len(asked)
    assert before >= len(needs) == 10

    gpu_speed.speed(job)

    assert len(asked) - before >= 3
    for overrides in policies(job).values():
        load_config(None, [*overrides_of(job), "model.fusion.dropout=0", *overrides])


def test_a_trace_tells_idle_time_pageable_copies_and_waits(tmp_path: Path) -> None:
    from gpu_speed import read_trace

    def event(name: str, kind: str, start: float, length: float) -> dict[str, object]:
        return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": length}

    events = [event(f"ProfilerStep#{number}", kind, 0, 9) for number in (4, 5) for kind in ("user_annotation", "gpu")]
    events += [event("gemm", "kernel", 0, 30), event("add", "kernel", 20, 20), event("gemm", "kernel", 60, 40)]
    events += [event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 50, 10)]
    events += [event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 50, 5)]
    events += [event("cudaStreamSynchronize", "cuda_runtime", 0, 1)] * 4
    with gzip.open(tmp_path / "trace.json.gz", "wt") as stream:
        json.dump({"traceEvents": events}, stream)

    found = read_trace(tmp_path / "trace.json.gz")

    assert found == {"traced steps": 2, "idle": 0.1, "pageable copies": 0.5, "waits": 2.0}


def test_what_goes_wrong_in_a_phase_is_its_result(tmp_path: Path) -> None:
    import gpu_check
    from gpu_job import Job
    from gpu_phases import Phase

    def wrong(job: Job) -> dict[str, object]:
        assert job.gpus == 2, "there are others"
        raise OSError("no link")

    job = Job(str(tmp_path), "data", 0, quick=True)
    assert gpu_check.look("wrong", Phase(wrong), job, 60)["why"].startswith("there are others")
    assert gpu_check.look("wrong", Phase(wrong, seconds=90), job, 60)["why"] == "takes up to 90 s, and 60 s were left"
    assert "no link" in gpu_check.attempt(Phase(wrong), Job(str(tmp_path), "data", 2, quick=True))["why"]
