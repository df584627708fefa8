"""Short trainings, watched from outside: started through ./train.sh, or forked within a second from a process that has
imported everything except wandb.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "tracking")]

from marked_processes import end_all, kill, new_mark, processes_of  # noqa: E402

Item, Found = TypeVar("Item"), TypeVar("Found")

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
_ONE_THREAD = {  # a fork would lose the others
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's
}


class Preloaded:
    """A helper process that forks one training at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | _ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller: it ends the training, and then this
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        """Several are started in parallel; wait for each before its first training."""
        self._answer()

    def fork(self, arguments: Sequence[str], environment: dict[str, str], output: Path) -> int:
        """Start `atlas ARGUMENTS` in this environment, with all output in a file; returns its process id."""
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


@contextmanager
def several_preloaded(number: int) -> Iterator[list[Preloaded]]:
    """`number` of them, all ready."""
    with ExitStack() as stack:
        made = []
        for _ in range(number):
            made.append(Preloaded())
            stack.callback(made[-1].close)
        for each in made:
            each.wait_until_ready()
        yield made


def side_by_side(
    work: Callable[[Item, Preloaded], Found], items: Sequence[Item], preloaded: Sequence[Preloaded]
) -> list[Found]:
    """`work` for each item, as many at a time as there are preloaded processes, each with its own."""
    idle: queue.Queue[Preloaded] = queue.Queue()
    for each in preloaded:
        idle.put(each)

    def with_one(item: Item) -> Found:
        mine = idle.get()
        try:
            return work(item, mine)
        finally:
            idle.put(mine)

    pool = ThreadPoolExecutor(len(preloaded))
    try:
        return list(pool.map(with_one, items))
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, running ones are waited for and cleaned up


def record_data(folder: Path) -> Path:
    """A few demonstrations of 32 pixels, recorded in the simulator."""
    data = folder / "data"
    command = [sys.executable, "-m", "atlas.cli", "data", "record", "--env", "cubes", "--episodes", "4"]
    command += ["--image-size", "32", "--out", str(data)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return data


@dataclass
class Training:
    """One training: forked, or through the script with `ranks` ranks. `kill` leaves none of its processes.

    Several may follow each other in one folder, such as those that resume from a checkpoint.
    begin, end: when it was started and when it had ended, in seconds since the epoch. code: its exit code.
    """

    folder: Path
    steps: int
    ranks: int  # 0: forked
    wandb: bool = True
    options: Sequence[str] = ()  # flags and overrides on top of TRAINING
    mark: dict[str, str] = field(default_factory=new_mark)
    begin: float = 0.0
    process: int = 0
    code: int | None = None
    end: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _log_before: int = 0  # bytes that earlier trainings wrote to train.log
    _output_before: int = 0  # bytes that they printed

    @property
    def run_dir(self) -> Path:
        return self.folder / "out" / "run"

    @property
    def _log(self) -> Path:
        return self.run_dir / "train.log"

    @property
    def _output(self) -> Path:
        return self.folder / "output"

    def start(self, data: Path, variables: dict[str, str], preloaded: Preloaded) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        kept |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "OMP_NUM_THREADS": "1"}
        kept |= {"WANDB_CACHE_DIR": str(home / "cache"), "WANDB_CONFIG_DIR": str(home / "config")}
        environment = kept | variables | self.mark
        places = [f"data.path={data}", f"output_dir={self.folder / 'out'}", "run_name=run"]
        flags = ["--cpu", *(["--wandb"] if self.wandb else [])]
        arguments = [*flags, *TRAINING, *places, f"training.max_steps={self.steps}", *self.options]
        output = self._output
        self._log_before = self._log.stat().st_size if self._log.exists() else 0
        self._output_before = output.stat().st_size if output.exists() else 0
        self.begin = time.time()
        if self.ranks:
            several = ["--mode", "multi", "--gpus", str(self.ranks)] if self.ranks > 1 else []
            with output.open("a") as file:
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
        """According to its log, to which each step adds a line; 0 before its first one."""
        found = re.findall(r"step +(\d+)/", _text_after(self._log, self._log_before))
        return int(found[-1]) if found else 0

    def said(self) -> str:
        """What it has printed."""
        return _text_after(self._output, self._output_before)

    def living(self) -> dict[int, str]:
        """{process id: name} of its running processes."""
        return processes_of(self.mark) | (_processes_of_session(self.process) if self.process else {})

    def kill(self) -> None:
        if self.process and not self.ended:
            kill(self.process, signal.SIGKILL)
        end_all(self.mark)


def _text_after(file: Path, start: int) -> str:
    """A file's contents from there on; '' if there is no file."""
    return file.read_bytes()[start:].decode(errors="replace") if file.exists() else ""


def _processes_of_session(session: int) -> dict[int, str]:
    """Found by session: a forked process shows the environment of the one it was forked from, and so not its mark."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, its_session = rest.split()[:4]
        if state != "Z" and int(its_session) == session:
            found[int(file.parent.name)] = name
    return found


# ---- the preloaded process -------------------------------------------------------------------------------


def main() -> None:
    """Fork a training for each line on stdin. In the fork this ends as the training ends, with its exit hooks."""
    # Modules that the package imports only when they are used.
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401
    from transformers import ByT5Tokenizer  # noqa: F401

    import atlas.cli
    import atlas.data
    import atlas.policies
    import atlas.tracking.sinks.tensorboard
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
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["atlas", *arguments]


if __name__ == "__main__":
    main()
