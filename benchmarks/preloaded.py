"""Trainings that start in a second: forked from a process that has imported everything but wandb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
        self._answer()  # it is ready

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
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
