"""What a frozen vision tower says of pictures can be cached, for published policies as for Atlas's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import load_config
from atlas.config.model_section import MODEL
from atlas.policies.base import load_policy
from atlas.policies.published.flow_policy import FlowPolicy
from atlas.types import Batch
from tests.conftest import MakeLibero

FIXTURES = Path(__file__).parents[1] / "fixtures"
WITHOUT_MEDIA = [f"logging.media.{name}.interval=0" for name in ("gradient_logger", "plot_logger", "action_logger")]
LANGUAGE = {"rank": 2, "targets": ["o_proj", "up_proj"]}
BOTH, TOWER = 2, 1
WAYS: list[tuple[str, dict[str, Any], int]] = [  # and how many of the two parts stay as they are
    ("smolvla", {}, BOTH),
    ("smolvla", {"train_expert_only": False, "precision": "bfloat16"}, TOWER),
    ("pi0", {"freeze_vision_encoder": True}, TOWER),
    ("pi0", {"lora": LANGUAGE}, BOTH),
    ("pi05", {"train_expert_only": True}, BOTH),
]


def begin(kind: str, **settings: Any) -> FlowPolicy:
    folder = FIXTURES / kind
    section = MODEL.validate({"type": kind, "pretrained": str(folder), **settings})
    policy = section.build(load_policy(folder).processor)
    assert isinstance(policy, FlowPolicy)
    return policy


def some_batch(policy: FlowPolicy) -> Batch:
    processor, rng = policy.processor, torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (3, processor.views, 3, 48, 64), dtype=torch.uint8, generator=rng),
        proprio=torch.randn(3, processor.proprio_dim, generator=rng),
        instruction=["pick up the cube"] * 3,
        source=torch.zeros(3, dtype=torch.int64),
        actions=torch.randn(3, processor.action_horizon, processor.action_spec.dim, generator=rng),
        action_is_pad=torch.zeros(3, processor.action_horizon, dtype=torch.bool),
        key=torch.arange(3),
    )


@pytest.mark.parametrize(("kind", "settings", "parts"), WAYS)
def test_features_give_the_loss_of_pictures(kind: str, settings: dict[str, Any], parts: int) -> None:
    policy = begin(kind, **settings)
    batch = some_batch(policy)
    source = policy.config.cached_encoder
    encoder = source.build_cached()

    features = encoder(batch.unit_images())

    tokens, width = source.feature_shape(image_size=64)
    assert features.dtype == torch.bfloat16 and features.shape == (3, policy.processor.views * tokens, width)
    assert len(source.feature_source()["backbone_parts"]) == parts
    assert encoder.frozen.sha256 == source.weights_hash() == policy.cached_encoder_hash()
    loss = float(policy(batch).loss.detach())
    from_features = policy(replace(batch, images=None, features=features)).loss
    from_features.backward()
    assert float(from_features.detach()) == pytest.approx(loss, rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("pi0", {}, "this policy of type pi0 trains its tower: set model.freeze_vision_encoder"),
        ("pi05", {"lora": {"rank": 2}}, r"give its adapters targets only in the language model"),
        ("smolvla", {"train_expert_only": False, "freeze_vision_encoder": False}, "of type smolvla trains its tower"),
        ("smolvla", {"weights": "random"}, "model.weights is random"),
    ],
)
def test_features_of_what_is_trained_are_refused(
    kind: str,
    settings: dict[str, Any],
    said: str,
    make_libero: MakeLibero,
    tmp_path: Path,
    atlas: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = {"type": kind, "pretrained": str(FIXTURES / kind), **settings}
    command = ("data", "cache-features", "--out", str(tmp_path / "cache"), "--cpu", f"model={json.dumps(section)}")

    assert atlas(*command, f"data.path={make_libero()}") == 2

    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "cache").exists()


def test_a_run_trains_from_pictures_and_from_features_alike(
    make_libero: MakeLibero, tmp_path: Path, atlas: Callable[..., int]
) -> None:
    settings = ["model.type=smolvla", f"model.pretrained={FIXTURES / 'smolvla'}", "model.statistics=dataset"]
    settings += ["model.sampling_steps=1", f"data.path={make_libero({'open': [4, 5, 4]})}", "data.batch_size=4"]
    settings += ["data.augment={brightness: 0, contrast: 0, saturation: 0}", "data.val_fraction=0.5"]
    settings += ["data.num_workers=0", "data.action_horizon=4", "distributed.cpu=true", *WITHOUT_MEDIA]
    cache = tmp_path / "cache"
    assert atlas("data", "cache-features", "--out", str(cache), *settings) == 0

    seen = run(tmp_path, "pictures", settings)
    # Pictures are whole, so that image_size says nothing of them.
    kept = run(tmp_path, "features", [*settings, f"data.feature_cache={cache}", "data.image_size=32"])

    assert kept == pytest.approx(seen, rel=1e-2)


def run(folder: Path, name: str, settings: list[str]) -> float:
    steps = ["training.max_steps=2", "training.warmup_steps=1", "training.log_interval=1", "evaluation.env=none"]
    where = [f"output_dir={folder}", f"run_name={name}"]
    return float(atlas.train(load_config({}, [*settings, *steps, *where])).metrics["val/loss"])  # type: ignore[operator]
