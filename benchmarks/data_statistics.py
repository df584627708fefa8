"""How long exact statistics take, the first time and from the cache: python benchmarks/data_statistics.py

Mean, deviation, extremes and quantiles of made-up actions and proprio, as training computes them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import numpy as np
from machine import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(describe())
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(arguments.rows, width)).astype(np.float32) for width in (7, 8)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ATLAS_CACHE_DIR"] = cache
        from atlas.data.statistics import kept_statistics

        for run in ("the first time", "again"):
            start = time.perf_counter()
            for values, name in zip(columns, ("actions", "proprio"), strict=True):
                kept_statistics(values, name)
            print(f"{arguments.rows} rows of 7 + 8 numbers, {run}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
