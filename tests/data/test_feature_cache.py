"""A frozen encoder's features on disk: the same as looking at the images, and refused if they would not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import atlas
from atlas.config import Config, load_config
from atlas.data.caches.feature_cache import CacheLayout, FeatureCache
from atlas.data.formats import open_dataset
from atlas.data.sampling.augment import Augmenter
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from atlas.policies.feature_cache_filling import begin_cache, describe, fill_cache, frozen_encoder
from tests.conftest import MakeLibero
from tests.policies.test_vggt_backbone import SIZE, SMALL, WEIGHTS, backbone_config

CPU = torch.device("cpu")
FRAMES = 52  # of the made-up files
PLAIN = ["data.augment.brightness=0", "data.augment.contrast=0", "data.augment.saturation=0"]


def make_config(data: Path, *overrides: str) -> Config:
    return load_config({}, [*SMALL, *backbone_config(), f"data.path={data}", "data.batch_size=8", *overrides])


def every_frame(config: Config) -> ChunkDataset:
    dataset = open_dataset(config.data.path)
    return ChunkDataset(dataset, np.arange(len(dataset)), dataset.cameras, SIZE, horizon=1)


def fill(config: Config, folder: Path, variants: int = 0) -> FeatureCache:
    cache = begin_cache(config, folder, variants)
    fill_cache(cache, frozen_encoder(config).build_cached(), every_frame(config), config, CPU)
    return cache


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of ten frames or so, so that a small dataset has several."""
    monkeypatch.setattr("atlas.data.caches.feature_cache._SHARD_BYTES", 10 * 2 * 2 * 9 * 96 + 5)


# ---- the files ---------------------------------------------------------------------------------------------


def test_a_cache_holds_what_the_encoder_says_of_every_frame(
    make_libero: MakeLibero, tmp_path: Path, small_shards: None
) -> None:
    config = make_config(make_libero())
    cache = fill(config, tmp_path / "cache")
    encoder = frozen_encoder(config).build_cached()

    wanted = np.array([51, 0, 13, 30])
    read = cache.features(wanted, np.zeros(4, np.int64))

    assert cache.layout == CacheLayout(FRAMES, versions=1, tokens=2 * (5 + 4), dim=96)
    assert len(list((tmp_path / "cache").glob("shard_*.npy"))) == cache.layout.shards == 6
    images = every_frame(config).__getitems__([(0, int(i)) for i in wanted]).images
    torch.testing.assert_close(read, encoder(images.float() / 255), atol=0.02, rtol=0.01)


def test_augmented_versions_are_those_of_their_numbers(make_libero: MakeLibero, tmp_path: Path) -> None:
    config = make_config(make_libero())
    cache = fill(config, tmp_path / "cache", variants=2)
    encoder = frozen_encoder(config).build_cached()

    read = cache.features(np.array([7, 7, 7]), np.array([0, 1, 2]))

    batch = every_frame(config)[0, 7]
    batch.key = sample_keys(config.seed, torch.tensor([2]), torch.tensor([7]))
    augmented = Augmenter(config.data.augment)(batch.images.float() / 255, batch)
    torch.testing.assert_close(read[2:], encoder(augmented), atol=0.02, rtol=0.01)
    assert not torch.equal(read[0], read[1]) and not torch.equal(read[1], read[2])


def test_processes_share_the_work_and_a_stopped_one_goes_on(
    make_libero: MakeLibero, tmp_path: Path, small_shards: None
) -> None:
    config = make_config(make_libero())
    whole = fill(config, tmp_path / "whole")
    encoder = frozen_encoder(config).build_cached()
    seen: list[int] = []
    encoder.aggregator.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))

    shared = begin_cache(config, tmp_path / "shared")
    fill_cache(shared, encoder, every_frame(config), config, CPU, rank=1, world_size=2)
    with pytest.raises(InputError, match=r"lacks 3 of 6 shards.*continues where it stopped"):
        shared.check_complete()
    again = begin_cache(config, tmp_path / "shared")
    assert "3 of them already there" in describe(again)
    fill_cache(again, encoder, every_frame(config), config, CPU)

    again.check_complete()
    assert sum(seen) == FRAMES  # none twice
    frames, versions = np.arange(FRAMES), np.zeros(FRAMES, np.int64)
    assert torch.equal(again.features(frames, versions), whole.features(frames, versions))


# ---- training from it --------------------------------------------------------------------------------------


def train(config: Config, out: Path, *overrides: str) -> dict[str, float]:
    settings = [
        "training.max_steps=4",
        "training.log_interval=4",
        "training.warmup_steps=1",
        "training.val_interval=4",
        "data.val_fraction=0.3",
        f"output_dir={out}",
        "run_name=run",
    ]
    return atlas.train(load_config(config, [*settings, *overrides])).metrics  # type: ignore[operator]


def test_training_from_the_cache_gives_the_losses_of_training_from_images(
    make_libero: MakeLibero, tmp_path: Path
) -> None:
    config = make_config(make_libero(), *PLAIN)
    fill(config, tmp_path / "cache")

    from_images = train(config, tmp_path / "images")
    from_cache = train(config, tmp_path / "cached", f"data.feature_cache={tmp_path / 'cache'}")

    for name in ("train/loss", "train/grad_norm", "val/loss", "val/position_error_mm"):
        assert from_cache[name] == pytest.approx(from_images[name], rel=1e-3), name


def test_training_draws_any_version_and_validation_the_plain_one(make_libero: MakeLibero, tmp_path: Path) -> None:
    config = make_config(make_libero())
    cache = fill(config, tmp_path / "cache", variants=1)
    training, validation = every_frame(config), every_frame(config)
    training.use_features(cache, augmented=True)
    validation.use_features(cache, augmented=False)
    samples = [(epoch, i) for epoch in range(4) for i in range(8)]

    drawn, plain = training.__getitems__(samples), validation.__getitems__(samples)

    assert drawn.images is None and drawn.features is not None and plain.features is not None
    same = (drawn.features == plain.features).flatten(1).all(1)
    assert 4 < int(same.sum()) < 28
    assert torch.equal(plain.features[:8], plain.features[8:16])
    assert torch.equal(training.__getitems__(samples).features, drawn.features)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.vision.pool=1", "pool was 2 and is 1"),
        ("model.vision.precision=bf16", "backbone_precision was 'float32' and is 'bfloat16'"),
        ("data.image_size=70", "image_size was 56 and is 70"),
        ("data.cameras=[eye_in_hand, agentview]", "cameras was"),
        ("data.orientation=upright", "orientation was 'auto' and is 'upright'"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    make_libero: MakeLibero, tmp_path: Path, override: str, complaint: str
) -> None:
    config = make_config(make_libero())
    fill(config, tmp_path / "cache")

    with pytest.raises(InputError, match=complaint):
        train(config, tmp_path / "out", f"data.feature_cache={tmp_path / 'cache'}", override)


def test_a_cache_of_another_dataset_is_refused(make_libero: MakeLibero, tmp_path: Path) -> None:
    fill(make_config(make_libero()), tmp_path / "cache")
    other = make_config(make_libero({"close the drawer": [26, 26]}, folder="other"))

    with pytest.raises(InputError, match="dataset was"):
        train(other, tmp_path / "out", f"data.feature_cache={tmp_path / 'cache'}")


def test_a_cache_of_another_backbone_is_refused(make_libero: MakeLibero, tmp_path: Path) -> None:
    data, other = make_libero(), tmp_path / "other.safetensors"
    fill(make_config(data), tmp_path / "cache")
    tensors = load_file(WEIGHTS)
    tensors["aggregator.camera_token"] += 1
    save_file(tensors, other)

    with pytest.raises(InputError, match="backbone was"):
        train(
            make_config(data),
            tmp_path / "out",
            f"data.feature_cache={tmp_path / 'cache'}",
            f"model.vision.pretrained={other}",
        )


def test_a_folder_without_a_cache_is_refused_before_anything_is_made(make_libero: MakeLibero, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent holds no cache\.json; make a cache with"):
        train(make_config(make_libero()), tmp_path / "out", f"data.feature_cache={tmp_path / 'absent'}")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_refused(make_libero: MakeLibero, tmp_path: Path) -> None:
    config = make_config(make_libero())
    cache = fill(config, tmp_path / "cache")
    shard = cache.shard_path(0)
    shard.write_bytes(shard.read_bytes()[:1000])

    with pytest.raises(InputError, match=r"shard_00000\.npy is damaged"):
        FeatureCache.read(tmp_path / "cache").check_complete()

    (tmp_path / "cache" / "cache.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        FeatureCache.read(tmp_path / "cache")


def test_more_than_the_disk_holds_is_refused_before_it_starts(
    make_libero: MakeLibero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = type("usage", (), {"free": 2**10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    with pytest.raises(InputError, match=r"The features take .* GiB free\. Choose"):
        begin_cache(make_config(make_libero()), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_only_a_frozen_backbone_can_be_cached(make_libero: MakeLibero, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be vggt_pretrained or huggingface, with freeze"):
        begin_cache(load_config({}, [f"data.path={make_libero()}"]), tmp_path / "cache")


def test_another_number_of_versions_needs_another_folder(make_libero: MakeLibero, tmp_path: Path) -> None:
    config = make_config(make_libero())
    begin_cache(config, tmp_path / "cache", variants=1)

    with pytest.raises(InputError, match="holds 2 versions of each frame; 3 are asked for"):
        begin_cache(config, tmp_path / "cache", variants=2)
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["layout"]["versions"] == 2
