"""Whether training is correct and fast on this machine's GPUs, from 1 to 8 of them, within ten minutes.

    python benchmarks/gpu_check.py [--out gpu_check] [--minutes 10] [--quick] [--only numbers,speed] [--data data/cubes]

Each phase writes OUT/results.json when it is over, so that its findings stay whatever happens later; OUT/results.md is
the same as a table. A phase that needs more GPUs than there are is skipped by name, as is one there is no time for.
Without a GPU the phases that make sense on CPUs run there, and the others say why not. `--quick`: the smallest sizes,
and no simulator. The exit code is 1 if a phase failed.

Phases that compute run in separate processes: this one opens no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # atlas; the phases

import gpu_phases
from gpu_job import Job
from gpu_phases import PHASES, Phase
from machine import describe

from atlas.system.files import write_json, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_check", type=Path)
    parser.add_argument("--minutes", default=10.0, type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="phases by name")
    parser.add_argument("--data", help="recorded demonstrations; the default: some are recorded")
    parser.add_argument("--vggt", help="published weights for the phases with a VGGT; the default: a small made-up one")
    parser.add_argument("--phase", help=argparse.SUPPRESS)  # in a separate process: a phase, with its job on stdin
    given = parser.parse_args(arguments)
    if given.phase:
        print(json.dumps(attempt(PHASES[given.phase], Job(**json.load(sys.stdin)))))
        return 0
    started = time.monotonic()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = Job(str(out), given.data or gpu_phases.record(out, given.quick), count_gpus(), given.quick, given.vggt)
    found = {"machine": describe(), "gpus": job.gpus, "phases": {}}
    for name, phase in PHASES.items():
        left = 60 * given.minutes - (time.monotonic() - started)
        if given.only is None or name in given.only.split(","):
            found["phases"][name] = look(name, phase, job, left)
            print(f"{name}: {line_of(found['phases'][name])}", file=sys.stderr, flush=True)
            write_json(out / "results.json", found)
            write_text(out / "results.md", table(found))
    print(table(found))
    return int(any(each["result"] == "failed" for each in found["phases"].values()))


def count_gpus() -> int:
    """The GPUs that torch can use, found in another process."""
    script = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def look(name: str, phase: Phase, job: Job, seconds_left: float) -> dict:  # type: ignore[type-arg]
    """A phase's findings, or why it is skipped."""
    if job.gpus < phase.gpus:
        return skipped(f"needs {phase.gpus} GPU{'s' * (phase.gpus > 1)}, and {job.gpus} were found")
    if job.quick and phase.slow:
        return skipped("left out by --quick")
    if seconds_left < phase.seconds:
        return skipped(f"takes up to {phase.seconds} s, and {max(0, seconds_left):.0f} s were left")
    start = time.monotonic()
    found = in_own_process(name, job, min(seconds_left, phase.seconds + 60)) if job.gpus else attempt(phase, job)
    return found | {"seconds": round(time.monotonic() - start, 1)}


def in_own_process(name: str, job: Job, seconds: float) -> dict:  # type: ignore[type-arg]
    child = subprocess.Popen(
        [sys.executable, __file__, "--phase", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, wrong = child.communicate(json.dumps(vars(job)), timeout=seconds)
        return dict(json.loads(said.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"result": "failed", "why": f"not over after {seconds:.0f} s"}
    except (IndexError, ValueError):  # it ended without an answer
        return {"result": "failed", "why": f"exit code {child.returncode}: {wrong.strip()[-2000:]}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # including what it may have left
        child.wait()


def attempt(phase: Phase, job: Job) -> dict:  # type: ignore[type-arg]
    """Run a phase here."""
    try:
        return {"result": "ok", "found": phase.run(job)}
    except AssertionError as error:
        return {"result": "failed", "why": str(error)}
    except Exception:
        return {"result": "failed", "why": traceback.format_exc()[-2000:]}


def skipped(why: str) -> dict[str, str]:
    return {"result": "skipped", "why": why}


def line_of(phase: dict) -> str:  # type: ignore[type-arg]
    """A phase's outcome in one line."""
    what = phase.get("why") or "; ".join(f"{key}: {value}" for key, value in phase["found"].items())
    return f"{phase['result']}: {' '.join(str(what).split())}"


def table(found: dict) -> str:  # type: ignore[type-arg]
    """The results as Markdown."""
    rows = [
        f"{found['machine']}; {found['gpus']} GPUs",
        "",
        "| phase | result | seconds | found |",
        "|---|---|---|---|",
    ]
    for name, phase in found["phases"].items():
        result, _, what = line_of(phase).partition(": ")
        rows.append(f"| {name} | {result} | {phase.get('seconds', '')} | {what.replace('|', '/')} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
