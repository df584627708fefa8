"""A short tracked run during which something happens to wandb: how long its steps and its exit took, and what is left.

Also what the real `./train.sh` needs to run with a home of its own.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from marked_processes import core_of, end_all, left_over, new_mark, wait_until
from tracked_run import KEY, Finished, run_script

from atlas.runs import read_scalars
from tests.test_vertical_slice import SMALL

ROOT = Path(__file__).parents[2]
STEPS = 40  # of two seconds in all, after what happens
START_SECONDS = 30.0
EXIT_SECONDS = 12.0
_FLUSH_SECONDS = 2.5  # a little more than the sink's
LOGIN = base64.b64encode(f"api:{KEY}".encode()).decode()  # how the key goes over the wire

_SCRIPT = f"""
import atexit, json
from tests.tracking.waiting import Waited, waited_since_start

said = {{}}
ending = None

@atexit.register  # before wandb registers anything, so that this comes after it
def tell():
    print(json.dumps(said | {{"exit": ending.seconds if ending else 0.0}}))

assert wandb_sink.INIT_TIMEOUT_SECONDS + 5 < {START_SECONDS}  # the wait in earnest
if "INIT_SECONDS" in os.environ:
    wandb_sink.INIT_TIMEOUT_SECONDS = float(os.environ["INIT_SECONDS"])
happened = Path(os.environ["HAPPENED"])
tracker = make(exit_timeout=float(os.environ["EXIT_SECONDS"]))
said["first"], longest, step, beyond = waited_since_start(), 0.0, 0, 0
while beyond < int(os.environ["STEPS"]):
    step += 1
    beyond += happened.exists()
    call = Waited()
    tracker.log({{"train/loss": 1 / step, "custom/metric": step}}, step=step)
    longest = max(longest, call.seconds)
    time.sleep(0.05)
ending = Waited()
tracker.finish()
said |= {{"longest": longest, "finish": ending.seconds, "steps": step}}
"""


@dataclass
class Watched:
    """A run that has ended, its own account, and the processes it left.

    All seconds are spent waiting for something other than the machine; see waiting.py.
    """

    run: Finished
    first_step_seconds: float  # from its process's start
    longest_call: float  # of `log`
    steps: int
    finish_seconds: float  # in `finish`
    exit_seconds: float  # from the last step to the process's end
    left: dict[int, str]

    def assert_undisturbed(self, exit_seconds: float = EXIT_SECONDS) -> None:
        """Training started in time, was never held up, lost nothing in TensorBoard, and ended well and in time."""
        assert self.run.code == 0 and "Traceback" not in self.run.stderr, self
        assert self.first_step_seconds < START_SECONDS, self
        assert self.longest_call < 0.5, self
        assert self.finish_seconds < exit_seconds + 2, self
        assert self.exit_seconds < exit_seconds + 10, self  # with what wandb does at the interpreter's end
        assert self.left == {}, self
        steps = [step for step, _ in read_scalars(self.run.run_dir)["train/loss"]]
        assert steps == list(range(1, self.steps + 1)), self

    def rows(self) -> list[int]:
        """The steps that wandb has on disk."""
        rows = [row["item"] for row in self.run.wandb_records("history")]
        return [row["custom/metric"] for row in rows if "custom/metric" in row]

    def assert_no_key(self, *except_in: Path) -> None:
        """The key, plain or as it goes over the wire, is in nothing that the run has written or printed."""
        for secret in (KEY, LOGIN):
            assert secret not in self.run.stdout + self.run.stderr
            assert self.run.files_holding(secret) == [path for path in except_in if secret == KEY]


@dataclass
class Running:
    """What a test may look at, and strike, while the run goes on."""

    mark: dict[str, str]
    run_dir: Path

    @property
    def core(self) -> int:
        found = core_of(self.mark)
        assert found is not None, "wandb-core has ended"
        return found

    def wait_for_core(self) -> None:
        wait_until(lambda: core_of(self.mark))

    def wait_until_open(self) -> None:
        """Until wandb's run has begun, and for as long as it keeps rows in memory."""
        log = self.run_dir / "train.log"
        wait_until(lambda: log.exists() and re.search(r"wandb: http|wandb is offline, in", log.read_text()))
        time.sleep(_FLUSH_SECONDS)


def watch(
    folder: Path,
    happen: Callable[[Running], None] | None = None,
    steps: int = STEPS,
    exit_seconds: float = EXIT_SECONDS,
    before: str = "",
    init_seconds: float | None = None,
    **variables: str,
) -> Watched:
    """Run until `happen` has returned and for `steps` more, with a planted key, unless the variables say otherwise.

    before: lines that the run's process executes first. init_seconds: how long wandb is waited for at the start, where
    it will not come.
    """
    folder.mkdir()
    mark, happened = new_mark(), folder / "happened"
    settings = {"HAPPENED": str(happened), "STEPS": str(steps), "EXIT_SECONDS": str(exit_seconds)}
    if init_seconds is not None:
        settings["INIT_SECONDS"] = str(init_seconds)
    variables = {"WANDB_API_KEY": KEY, **variables, **settings, **mark}
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            future = pool.submit(run_script, folder, before + _SCRIPT, **variables)
            if happen is not None:
                happen(Running(mark, folder / "run"))
            happened.touch()
            run = future.result()
            left = left_over(mark)
        finally:
            end_all(mark)  # also lets the pool end
    said = json.loads(run.stdout or "{}")
    assert "finish" in said, run.stderr
    return Watched(run, said["first"], said["longest"], said["steps"], said["finish"], said["exit"], left)


# ---- ./train.sh ------------------------------------------------------------------------------------------


def train_sh(data: Path, out: Path, *more: str) -> list[str]:
    """A training of twenty steps on the CPU, with wandb."""
    quick = ["training.max_steps=20", "training.log_interval=1", "training.val_interval=20", "evaluation.episodes=0"]
    places = [f"data.path={data}", f"output_dir={out}", "run_name=run", "logging.exit_timeout_seconds=30"]
    return [str(ROOT / "train.sh"), "--cpu", "--wandb", *SMALL, *quick, *places, *more]


def hermetic(home: Path) -> dict[str, str]:
    """An environment in which wandb finds and leaves things in this home, which is made, and nowhere else."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # train.sh takes the active environment: the one of these tests.
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    kept["VIRTUAL_ENV"] = str(Path(sys.executable).parents[1])
    places = {"HOME": home, "NETRC": home / ".netrc", "WANDB_CACHE_DIR": home / "cache"}
    return kept | {"WANDB_CONFIG_DIR": str(home / "config")} | {name: str(place) for name, place in places.items()}
