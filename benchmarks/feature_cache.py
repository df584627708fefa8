"""Training from a cache of a frozen backbone's features compared with training from images: samples per second.

    python benchmarks/feature_cache.py [--width 384] [--depth 12] [--size 224] [--frames 96] [--batch 16]
    python benchmarks/feature_cache.py --width 1024 --depth 24                        (VGGT-1B's sizes)

Uses a VGGT of the given width (heads of 64) and depth with random weights, written as a checkpoint, and made-up LIBERO
files with two cameras. The cache is filled once, then two Trainers with the same config take turns: one reads images,
one features. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe
from overhead import trainer_step_seconds
from safetensors.torch import save_file

from atlas.config import Config, load_config
from atlas.data.episode import RecordedEpisode
from atlas.data.hdf5.libero_writer import write_libero_file
from atlas.policies.feature_cache_filling import begin_cache, work_on_cache
from atlas.policies.feature_cache_filling import describe as describe_cache
from atlas.policies.modular.vision_encoders.vggt_backbone import aggregator_config
from atlas.policies.vggt import VGGTAggregator
from atlas.train import build_trainer, make_accelerator, prepare

STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atlas-features-") as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    config = make_config(arguments, folder)
    write_data(folder / "data", arguments)
    write_weights(config, folder / "weights.safetensors")
    cache = begin_cache(config, folder / "cache")
    print(f"\n{describe()}\n\n{describe_cache(cache)}")
    start = time.perf_counter()
    work_on_cache(folder / "cache", make_accelerator(config))
    filling = cache.layout.frames / (time.perf_counter() - start)
    forms = {"images": [], "features": [f"data.feature_cache={folder / 'cache'}"]}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(arguments.rounds):
        for name, overrides in forms.items():
            prepared = prepare(load_config(config, [*overrides, f"run_name={name}{number}"]))
            trainer = build_trainer(prepared, make_accelerator(prepared.config))
            seconds[name].append(trainer_step_seconds(trainer))
            trainer.tracker.finish()
    per_second = {name: arguments.batch / statistics.median(times) for name, times in seconds.items()}
    print("\n| training from | samples/s |\n|---|---|")
    for name, rate in per_second.items():
        print(f"| {name} | {rate:.1f} |")
    ratio = per_second["features"] / per_second["images"]
    print(f"\nFilling the cache: {filling:.2f} frames/s. Training from it is {ratio:.0f} times as fast.")


def make_config(arguments: argparse.Namespace, folder: Path) -> Config:
    heads = arguments.width // 64
    sizes = {"embed_dim": arguments.width, "depth": arguments.depth, "num_heads": heads}
    inner = {"patch_embed_depth": arguments.depth, "patch_embed_num_heads": heads}
    vision = {"name": "vggt_pretrained", "pretrained": str(folder / "weights.safetensors"), **sizes, **inner}
    return load_config(
        {
            "output_dir": str(folder / "outputs"),
            "data": {
                "path": str(folder / "data"),
                "image_size": arguments.size,
                "batch_size": arguments.batch,
                "val_fraction": 0.4,
            },
            "model": {"vision": vision, "fusion": {"dim": 256, "layers": 2}},
            "training": {"max_steps": STEPS, "warmup_steps": 1},
        },
        arguments.overrides,
    )


def write_data(path: Path, arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    length, size = arguments.frames // 3, 128  # LIBERO's size
    episodes = [
        RecordedEpisode(
            instruction="open the drawer",
            images={c: rng.integers(0, 255, (length, size, size, 3), np.uint8) for c in ("agentview", "eye_in_hand")},
            proprio=rng.normal(size=(length, 8)).astype(np.float32),
            joints=rng.normal(size=(length, 7)),
            actions=rng.uniform(-1, 1, (length, 7)),
            rewards=np.zeros(length, np.float32),
            sim_states=rng.normal(size=(length, 5)),
            model_xml="<mujoco/>",
        )
        for _ in range(3)
    ]
    write_libero_file(path / "drawer_demo.hdf5", "open the drawer", episodes, {"env_name": "elsewhere"})


def write_weights(config: Config, path: Path) -> None:
    torch.manual_seed(0)
    model = VGGTAggregator(aggregator_config(config.model.vision))  # type: ignore[arg-type]
    save_file({k: v.contiguous().clone() for k, v in model.checkpoint_state_dict().items()}, path)


if __name__ == "__main__":
    main()
