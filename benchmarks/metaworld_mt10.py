"""Meta-World's MT10: one policy for ten tasks, from the scripted policies' demonstrations, and the same one blind.

    python benchmarks/metaworld_mt10.py [--env metaworld-mt10] [--demonstrations 600] [--episodes 100] [--image-size 96]
                                   [--config FILE] [--out DIR] [key=value ...]

Runs `atlas data record`, `atlas train`, and `atlas eval` twice: as it is and with black images, on the same starts,
which neither recording nor training has seen. Prints a table for docs/benchmarks.md, with the minutes on the clock and
those of processors that each part took: on a machine that others use too, the second is what to compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from default_job import ATLAS, run
from machine import describe

CONFIG = Path(__file__).resolve().parents[1] / "atlas" / "configs" / "metaworld_mt10.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="metaworld-mt10")
    parser.add_argument("--demonstrations", type=int, default=600)
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--out", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-benchmark-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)

    minutes: dict[str, tuple[float, float]] = {}
    with measured("recording", minutes):
        recorded = ["--episodes", str(arguments.demonstrations), "--out", "demonstrations", "--codec", "png"]
        size = ["--image-size", str(arguments.image_size)]
        run([*ATLAS, "data", "record", "--env", arguments.env, *recorded, *size], cwd=out)
    with measured("training", minutes):
        settings = ["run_name=mt10", "data.path=demonstrations", "data.frame_cache=frames", *arguments.overrides]
        run([*ATLAS, "train", "--config", str(arguments.config.resolve()), *settings], cwd=out)
    with measured("evaluating", minutes):
        seen, blind = (evaluate(out, arguments.env, arguments.episodes, flags) for flags in ([], ["--blind"]))

    print(f"\n{describe()}\n")
    print("| part | minutes | of processors |\n|---|---|---|")
    print("\n".join(f"| {part} | {clock:.1f} | {cpu:.1f} |" for part, (clock, cpu) in minutes.items()))
    print("\n| task | success | blind |\n|---|---|---|")
    for task in seen["per_instruction"]:
        print(f"| {task} | {counted(seen['per_instruction'][task])} | {counted(blind['per_instruction'][task])} |")
    print(f"| all | {interval(seen)} | {interval(blind)} |")
    if "mean_of_tiers" in seen:
        print(f"| mean of tiers | {seen['mean_of_tiers']:.1%} | {blind['mean_of_tiers']:.1%} |")


@contextmanager
def measured(part: str, minutes: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Adds the minutes that the block's commands take: on the clock, and of processors."""
    clock, cpu = time.monotonic(), processors()
    yield
    minutes[part] = (time.monotonic() - clock) / 60, (processors() - cpu) / 60


def processors() -> float:
    """Seconds that this process's children have computed, those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def evaluate(out: Path, env: str, episodes: int, flags: list[str]) -> dict[str, Any]:
    """The report of `atlas eval` on the best checkpoint."""
    command = [*ATLAS, "eval", "--checkpoint", "outputs/mt10", "--env", env, "--execute", "8", "--json", *flags]
    found: dict[str, Any] = json.loads(run([*command, "--episodes", str(episodes)], cwd=out, capture=True))
    return found


def counted(part: dict[str, Any]) -> str:
    return f"{part['successes']}/{part['episodes']}"


def interval(report: dict[str, Any]) -> str:
    low, high = report["ci95"]
    return f"{counted(report)} ({100 * low:.0f} to {100 * high:.0f}%)"


if __name__ == "__main__":
    main()
