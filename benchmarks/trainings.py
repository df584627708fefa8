"""Short trainings, watched from outside: through ./train.sh, or forked from a process that has imported everything but
wandb, which starts them in a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "tracking")]

from marked_processes import end_all, kill, new_mark  # noqa: E402

EXIT_TIMEOUT = 10.0  # logging.exit_timeout_seconds
TRAINING = [
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "model.fusion.dim=32",
    "model.fusion.layers=1",
    "model.language.dim=16",
    "data.image_size=32",
    "data.batch_size=4",
    "data.num_workers=0",
    "evaluation.episodes=0",
    "training.log_interval=1",
    "training.val_interval=1000000",
    "checkpoint.save_interval=1000000",
    f"logging.exit_timeout_seconds={EXIT_TIMEOUT}",
]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork would not have the others


class Preloaded:
    """A process beside this one that forks one training at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | _ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever started this: the training is ended, and then this
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        """Several are made side by side; wait for each before its first training."""
        self._answer()

    def fork(self, arguments: Sequence[str], environment: dict[str, str], output: Path) -> int:
        """Start `atlas ARGUMENTS` in this environment, all that it prints in a file; returns its process id."""
        print(json.dumps([list(arguments), environment, str(output)]), file=self._to, flush=True)
        return self._answer()

    def wait(self) -> int:
        """The exit code of the training, negative for a signal."""
        return self._answer()

    def close(self) -> None:
        self._to.close()
        self._process.wait()

    def _answer(self) -> int:
        return int(self._from.readline())


@dataclass
class Training:
    """One training with wandb: forked, or through the script with so many ranks. `kill` leaves nothing of it running.

    begin, end: when it was started and when it had ended, in seconds since the epoch. code: its exit code.
    """

    folder: Path
    steps: int
    ranks: int  # 0: forked
    mark: dict[str, str] = field(default_factory=new_mark)
    begin: float = 0.0
    process: int = 0
    code: int | None = None
    end: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def run_dir(self) -> Path:
        return self.folder / "out" / "run"

    def start(self, data: Path, variables: dict[str, str], preloaded: Preloaded) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        kept |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "OMP_NUM_THREADS": "1"}
        kept |= {"WANDB_CACHE_DIR": str(home / "cache"), "WANDB_CONFIG_DIR": str(home / "config")}
        environment = kept | variables | self.mark
        places = [f"data.path={data}", f"output_dir={self.folder / 'out'}", "run_name=run"]
        arguments = ["--cpu", "--wandb", *TRAINING, *places, f"training.max_steps={self.steps}"]
        output = self.folder / "output"
        self.begin = time.time()
        if self.ranks:
            several = ["--mode", "multi", "--gpus", str(self.ranks)] if self.ranks > 1 else []
            with output.open("w") as file:
                script = subprocess.Popen(
                    [str(ROOT / "train.sh"), *several, *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            self.process, wait = script.pid, script.wait
        else:
            self.process, wait = preloaded.fork(["train", *arguments], environment, output), preloaded.wait

        def watch() -> None:
            self.code = wait()
            self.end = time.time()
            self._ended.set()

        threading.Thread(target=watch, daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def done_steps(self) -> int:
        """As its log has it, which each step adds a line to."""
        log = self.run_dir / "train.log"
        found = re.findall(r"step +(\d+)/", log.read_text()) if log.exists() else []
        return int(found[-1]) if found else 0

    def kill(self) -> None:
        if self.process and not self.ended:
            kill(self.process, signal.SIGKILL)
        end_all(self.mark)


# ---- the preloaded process -------------------------------------------------------------------------------


def main() -> None:
    """Fork a training for each line on stdin. In the fork this ends as the training ends, with its exit hooks."""
    # What the modules of the package import only when they are used.
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401
    from transformers import ByT5Tokenizer  # noqa: F401

    import atlas.cli
    import atlas.data
    import atlas.policy
    import atlas.tracking.tensorboard
    import atlas.training

    assert "wandb" not in sys.modules
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
    print(0, flush=True)
    for line in sys.stdin:
        arguments, environment, output = json.loads(line)
        process = os.fork()
        if process == 0:
            _become(arguments, environment, output)
            atlas.cli.main()
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _become(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["atlas", *arguments]


if __name__ == "__main__":
    main()
