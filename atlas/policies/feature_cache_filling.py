"""Fills a feature cache: runs a frozen backbone once on every observation of a dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator

from atlas.config import Config, dump_yaml, load_config
from atlas.data.caches.feature_cache import CacheLayout, FeatureCache
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_configured
from atlas.data.sampling.augment import Augmenter
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.loader import make_loader, worker_count
from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.pretrained_weights import FrozenWeights
from atlas.system.file_store import CONFIG
from atlas.system.files import write_text
from atlas.system.progress import progress_bar


class FrozenEncoder(Protocol):
    """The module: images float [B, V, 3, H, W] in [0, 1] to tokens bfloat16 [B, N, D]."""

    frozen: FrozenWeights | None

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...

    def to(self, device: torch.device) -> Any: ...


class CachedEncoder(Protocol):
    """The section of a frozen encoder; see `ModelConfig.cached_encoder`."""

    def feature_shape(self, image_size: int) -> tuple[int, int]:
        """The number of tokens for a view of `image_size` pixels, and the numbers per token."""

    def feature_source(self) -> dict[str, Any]:
        """The settings that its outputs depend on, as plain values."""

    def weights_hash(self) -> str:
        """The hash of the weights as they are now. Raises InputError if they are not available."""

    def check_pretrained(self) -> None:
        """See `ModelConfig`."""

    def build_cached(self) -> FrozenEncoder:
        """The encoder with its weights. Raises InputError."""


def frozen_encoder(config: Config) -> CachedEncoder:
    """The config's encoder. Raises InputError if it has none whose outputs stay the same during training."""
    encoder: CachedEncoder | None = config.model.cached_encoder
    if encoder is None:
        raise InputError(
            "Only a frozen encoder's features can be cached: model.vision.name must be vggt_pretrained or huggingface, "
            "with freeze true and lora null; in the type vlm, model.backbone.freeze or model.backbone.freeze_vision "
            "must be true."
        )
    return encoder


def cache_layout(config: Config, frames: int, views: int, variants: int) -> CacheLayout:
    """The shape of a cache for all frames, with `variants` augmented versions of each in addition to the plain one."""
    tokens, dim = frozen_encoder(config).feature_shape(config.data.image_size)
    return CacheLayout(frames, 1 + variants, views * tokens, dim)


def cache_source(
    config: Config, dataset: EpisodeDataset, cameras: Sequence[str], backbone: str, versions: int
) -> dict[str, Any]:
    """Everything that the features depend on. backbone: the hash of its weights."""
    source: dict[str, Any] = {
        "backbone": backbone,
        "cameras": list(cameras),
        "image_size": config.data.image_size,
        "dataset": dataset.fingerprint(),
        "orientation": config.data.orientation,
        "drop_noops": config.data.drop_noops,
        **frozen_encoder(config).feature_source(),  # may replace image_size, where the features do not depend on it
    }
    if versions > 1:
        source |= {"augment": config.data.augment.described(), "seed": config.seed}
    return source


def check_cache(config: Config, dataset: EpisodeDataset, cameras: Sequence[str]) -> None:
    """Raises InputError if the config's feature cache is incomplete, or was made from something else."""
    assert config.data.feature_cache is not None
    cache = FeatureCache.read(Path(config.data.feature_cache))
    cache.check_complete()
    backbone = frozen_encoder(config).weights_hash()
    cache.check(cache_source(config, dataset, cameras, backbone, cache.layout.versions))


def check_space(folder: Path, layout: CacheLayout) -> None:
    """Raises InputError if the disk has less space than the whole cache takes."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free + sum(file.stat().st_size for file in folder.glob("shard_*.npy"))
    if layout.bytes > free:
        raise InputError(
            f"The features take {layout.bytes / 2**30:.1f} GiB, but {there} has {free / 2**30:.1f} GiB free. Choose "
            "another --out, fewer --variants, a larger model.vision.pool or a smaller data.image_size."
        )


def begin_cache(config: Config, folder: Path, variants: int = 0) -> FeatureCache:
    """Check everything and create the folder, or find the one to continue.

    The folder also gets the config, from which every process that shares the work starts. Raises InputError.
    """
    encoder = frozen_encoder(config)
    dataset, cameras = open_configured(config.data)
    layout = cache_layout(config, int(dataset.lengths.sum()), len(cameras), variants)
    check_space(folder, layout)
    encoder.check_pretrained()
    backbone = encoder.weights_hash()
    cache = FeatureCache.create(folder, layout, cache_source(config, dataset, cameras, backbone, layout.versions))
    write_text(folder / CONFIG, dump_yaml(config))
    return cache


def describe(cache: FeatureCache) -> str:
    """The size of a cache, and how much of it is there."""
    layout = cache.layout
    versions = "version" if layout.versions == 1 else "versions"
    return (
        f"{layout.frames} frames x {layout.versions} {versions} of {layout.tokens} tokens x {layout.dim} in bfloat16: "
        f"{layout.bytes / 2**30:.2f} GiB in {layout.shards} files, "
        f"{sum(map(cache.has, range(layout.shards)))} of them already there"
    )


def work_on_cache(folder: Path, accelerator: Accelerator) -> None:
    """Compute, as one of the processes, a share of a cache that was begun."""
    config = load_config(folder / CONFIG)
    cache = FeatureCache.read(folder)
    dataset, cameras = open_configured(config.data)
    encoder = frozen_encoder(config).build_cached()
    assert encoder.frozen is not None
    cache.check(cache_source(config, dataset, cameras, encoder.frozen.sha256, cache.layout.versions))
    fit = config.model.image_fit()
    frames = ChunkDataset(dataset, np.arange(len(dataset)), cameras, config.data.image_size, horizon=1, fit=fit)
    device = accelerator.device
    fill_cache(cache, encoder.to(device), frames, config, device, accelerator.process_index, accelerator.num_processes)


@torch.no_grad()
def fill_cache(
    cache: FeatureCache,
    encoder: FrozenEncoder,
    frames: ChunkDataset,
    config: Config,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Compute this process's share of the shards that are not there yet.

    frames: every frame of the dataset, once. The first process shows its progress.
    """
    layout = cache.layout
    mine = [shard for shard in range(rank, layout.shards, world_size) if not cache.has(shard)]
    batches = [list(_split(layout.frames_of(shard), config.data.batch_samples)) for shard in mine]
    workers = worker_count(config.data.num_workers, device)
    loader = iter(make_loader(frames, [[(0, i) for i in part] for shard in batches for part in shard], workers))
    augment = Augmenter(config.data.augment)
    share = "" if world_size == 1 else f" (one of {world_size} processes)"
    title = f"caching features{share}" if rank == 0 else None
    with progress_bar(title, sum(len(layout.frames_of(shard)) for shard in mine)) as advance:
        for shard, parts in zip(mine, batches, strict=True):
            done = []
            for part in parts:
                batch = next(loader).to(device)
                assert batch.images is not None
                images = batch.unit_images()
                versions = [encoder(images)]
                for variant in range(1, layout.versions):
                    index = torch.tensor(part, device=device)
                    batch.key = sample_keys(config.seed, torch.full_like(index, variant), index)
                    versions.append(encoder(augment(images, batch)))
                done.append(torch.stack(versions, dim=1).cpu())  # [n, versions, tokens, dim]
                advance(len(part))
            cache.write(shard, torch.cat(done))


def _split(frames: range, size: int) -> Iterator[list[int]]:
    for first in range(0, len(frames), size):
        yield list(frames[first : first + size])
