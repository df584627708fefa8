"""How long `atlas --help` takes: python benchmarks/startup.py"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def main() -> None:
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "atlas.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    print(f"atlas --help: {statistics.median(seconds[1:]):.2f} s (median of 10)")


if __name__ == "__main__":
    main()
