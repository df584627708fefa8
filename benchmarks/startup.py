"""How long `atlas --help` takes, and with --data one training step on two "machines", which are both this one:

python benchmarks/startup.py [--data data/cubes]
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = "evaluation.episodes=0 evaluation.final_episodes=0 training.max_steps=1 data.batch_size=4 data.num_workers=0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="recorded demonstrations")
    parser.add_argument("--rounds", type=int, default=5, help="of two machines")
    arguments = parser.parse_args()
    seconds = [help_seconds() for _ in range(11)]
    print(f"atlas --help: {statistics.median(seconds[1:]):.2f} s (median of 10)")
    if arguments.data:
        rounds = [two_machines_seconds(arguments.data) for _ in range(arguments.rounds)]
        wall, processor = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"two machines, one step: {wall:.1f} s, {processor:.1f} s of a core (median of {len(rounds)})")


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "atlas.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def two_machines_seconds(data: Path) -> tuple[float, float]:
    """From the start of both launchers to the end of both: wall-clock time, and processor time of all processes."""
    with socket.socket() as free:
        free.bind(("", 0))
        where = ["--num-nodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    with tempfile.TemporaryDirectory() as folder:
        job = [*SMALL.split(), f"data.path={data}", f"output_dir={folder}", "run_name=two"]
        command = [sys.executable, "-m", "atlas.cli", "train", "--cpu", *where, *job]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        launchers = [
            subprocess.Popen([*command, "--node-rank", rank], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for rank in ("0", "1")
        ]
        codes = [launcher.wait() for launcher in launchers]
        assert codes == [0, 0], f"the launchers ended with {codes}"
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
