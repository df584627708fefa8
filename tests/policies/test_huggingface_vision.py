"""Published image encoders by name: read strictly, scaled by their own numbers; frozen, adapted or trained further."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.modular.vision_encoders.huggingface_vision import HuggingFaceVisionEncoder
from atlas.policies.modular.vision_encoders.vision_sections import EncoderNeeds, HuggingFaceVisionConfig
from atlas.policies.summary import summarize
from tests.conftest import MakeLibero
from tests.policies.image_models import IMAGE_KINDS, MEAN, PATCH, STD, WIDTH, make_image_model, save_image_model
from tests.policies.test_alignment import alignment
from tests.policies.test_policy import SMALL, make_batch, make_processor

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a kind of model, written once; to be left as it is."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: save_image_model(kind, root / kind)


def vision(folder: Path, *changes: str) -> list[str]:
    return [f"model.vision={{{', '.join((f'name: huggingface, pretrained: {folder}, precision: fp32', *changes))}}}"]


def make_policy(folder: Path, *changes: str, more: tuple[str, ...] = ()) -> ModularPolicy:
    torch.manual_seed(0)
    config = load_config({}, [*SMALL, "data.image_size=32", *vision(folder, *changes), *more])
    policy = config.model.build(make_processor())
    assert isinstance(policy, ModularPolicy)
    return policy


def encoder_of(folder: Path, **settings: object) -> HuggingFaceVisionEncoder:
    config = HuggingFaceVisionConfig(pretrained=str(folder), precision="fp32", **settings)  # type: ignore[arg-type]
    encoder = config.build(EncoderNeeds(views=2, image_size=32, dim=16, language_dim=16))
    assert isinstance(encoder, HuggingFaceVisionEncoder)
    return encoder.eval()


def scaled(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def expected_tokens(kind: str, images: torch.Tensor) -> torch.Tensor:
    """The model's own output for images [B, V, 3, H, W], patches only: [B, V * N, WIDTH]."""
    model, pixels = make_image_model(kind), scaled(images).flatten(0, 1)
    if kind == "siglip2":  # takes patches
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        cut = [torch.from_numpy(convert_image_to_patches(p.numpy(), PATCH)) for p in pixels]
        shapes = torch.tensor([[4, 4]] * len(cut))
        there = torch.ones(len(cut), 16, dtype=torch.long)
        hidden = model.vision_model(torch.stack(cut), there, shapes).last_hidden_state
    elif kind in ("siglip", "clip", "vit"):
        hidden = getattr(model, "vision_model", model)(pixels, interpolate_pos_encoding=True).last_hidden_state
    else:
        hidden = model(pixels).last_hidden_state
    return hidden[:, -16:].unflatten(0, images.shape[:2]).flatten(1, 2)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_tokens_are_the_patches_of_the_saved_model(kind: str, saved: Saved) -> None:
    images = make_batch(2).unit_images()
    encoder = encoder_of(saved(kind))
    with torch.no_grad():
        expected = expected_tokens(kind, images)

    tokens = encoder(images)

    assert tokens.dtype == torch.bfloat16 and tokens.shape == (2, 2 * 16, WIDTH) and encoder.dim == WIDTH
    assert not any(p.requires_grad for p in encoder.model.parameters())
    torch.testing.assert_close(tokens, expected.bfloat16(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_a_trained_encoder_learns_with_all_that_it_trains(kind: str, saved: Saved) -> None:
    policy = make_policy(saved(kind), "freeze: false").train()

    policy(make_batch()).loss.backward()

    idle = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle and policy.frozen == {}
    assert policy.learning_rate_factor("vision.model.x") == 0.1
    assert {id(b) for b in policy.vision.blocks} <= {id(b) for b in policy.blocks()}


@pytest.mark.parametrize("kind", ["dinov3", "siglip2"])
def test_training_draws_no_random_numbers_of_the_models_own(kind: str, saved: Saved) -> None:
    policy, batch = make_policy(saved(kind), "freeze: false").train(), make_batch()

    assert torch.equal(policy(batch).loss, policy(batch).loss)
    assert torch.equal(policy(batch).loss, policy.eval()(batch).loss)


@pytest.mark.parametrize("how", ["freeze: true", "freeze: false", "lora: {rank: 2}"])
def test_a_saved_policy_acts_the_same_when_loaded(how: str, saved: Saved, tmp_path: Path) -> None:
    policy = make_policy(saved("dinov3"), how).train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        policy(make_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval().save_pretrained(tmp_path)

    loaded = load_policy(tmp_path)

    batch, kept = make_batch(), load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded.sample(batch), policy.sample(batch))
    inside = {name for name in kept if name.startswith("vision.model.")}
    assert {"freeze: true": not inside, "freeze: false": len(inside) > 20}.get(how, all("lora" in n for n in inside))
    assert "vision.views" in kept


def test_places_are_not_rounded_with_the_weights(saved: Saved) -> None:
    config = HuggingFaceVisionConfig(pretrained=str(saved("dinov3")), precision="bf16")
    encoder = config.build(EncoderNeeds(views=2, image_size=32, dim=16, language_dim=16))

    assert {p.dtype for p in encoder.model.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert {b.dtype for name, b in encoder.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_views_are_told_apart(saved: Saved) -> None:
    policy, batch = make_policy(saved("dinov3")).eval(), make_batch()
    with torch.no_grad():
        policy.vision.views.mul_(50)

    assert batch.images is not None
    swapped = replace(batch, images=batch.images.flip(1))
    assert not torch.allclose(policy.sample(swapped), policy.sample(batch), atol=1e-3)


def test_features_instead_of_images_give_the_same_loss(saved: Saved) -> None:
    policy, batch = make_policy(saved("siglip"), "pool: 2"), make_batch()
    with torch.no_grad():
        features = policy.vision(batch.unit_images())

    assert features.shape[1:] == (2 * 4, WIDTH) and policy.config.cached_encoder.feature_shape(32) == (4, WIDTH)
    assert torch.equal(policy(batch).loss, policy(replace(batch, images=None, features=features)).loss)


def test_other_weights_than_those_trained_with_are_refused(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("dinov2"), tmp_path / "model")
    policy = make_policy(folder)
    policy.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "full", full=True)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.cls_token"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(InputError, match="other frozen vision weights"):
        load_policy(tmp_path / "policy")
    shutil.rmtree(folder)
    assert torch.equal(load_policy(tmp_path / "full").sample(make_batch()), policy.eval().sample(make_batch()))


def test_patches_are_aligned_with_a_teachers(saved: Saved) -> None:
    policy = make_policy(saved("dinov3"), "freeze: false", more=tuple(alignment()))
    policy.load_teacher()

    terms = policy.train()(make_batch())

    assert 0 < terms.terms["alignment_loss"].item() < 2
    with pytest.raises(InputError, match="has patches to align"):
        make_policy(saved("dinov3"), more=tuple(alignment()))


def test_a_run_trains_from_cached_features(
    saved: Saved, make_libero: MakeLibero, tmp_path: Path, atlas: Callable[..., int]
) -> None:
    settings = [*SMALL, *vision(saved("dinov3")), f"data.path={make_libero()}", "data.image_size=32"]
    settings += ["data.augment={brightness: 0, contrast: 0, saturation: 0}", "data.batch_size=8", "data.num_workers=0"]
    cache = tmp_path / "features"
    assert atlas("data", "cache-features", "--out", str(cache), "--cpu", *settings) == 0

    metrics = [train(tmp_path, name, [*settings, *more]) for name, more in cached_or_not(cache)]

    assert metrics[0]["val/loss"] == metrics[1]["val/loss"] > 0


def cached_or_not(cache: Path) -> list[tuple[str, list[str]]]:
    return [("images", []), ("features", [f"data.feature_cache={cache}"])]


def train(folder: Path, name: str, settings: list[str]) -> dict[str, float]:
    steps = ["training.max_steps=3", "training.warmup_steps=1", "training.log_interval=2", "data.val_fraction=0.3"]
    where = [f"output_dir={folder}", f"run_name={name}", "distributed.cpu=true"]
    result = atlas.train({}, [*settings, *steps, *where])  # type: ignore[operator]
    return dict(result.metrics)


def test_arithmetic_is_counted_without_weights(saved: Saved, tmp_path: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(saved("siglip2") / file, tmp_path / file)

    found = summarize(load_config({}, [*SMALL, *vision(tmp_path), "data.image_size=32"]))

    part = found["parts"][0]
    assert part["flops"] > 0 and part["tokens"] == 32 and part["trainable"] == 2 * WIDTH


# ---- wrong input -----------------------------------------------------------------------------------------


def without_scale(folder: Path) -> str:
    (folder / "preprocessor_config.json").unlink()
    return "does not say how images are scaled"


def without_mean(folder: Path) -> str:
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return "no image_mean and image_std"


def of_text(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return "kind 'bert', which has no image encoder"


def without_a_tensor(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.cls_token"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "'embeddings.cls_token' is missing"


@pytest.mark.parametrize("spoil", [without_scale, without_mean, of_text, without_a_tensor])
def test_what_is_not_such_a_model_is_refused(spoil: Callable[[Path], str], saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("dinov3"), tmp_path / "model")
    complaint = spoil(folder)

    with pytest.raises(InputError, match=rf"model\.vision\.pretrained.*{complaint}"):
        make_policy(folder)


@pytest.mark.parametrize(
    ("changes", "more", "complaint"),
    [
        (("lora: {targets: [qkvv]}",), (), r"model\.vision\.lora\.targets names 'qkvv', but no linear layer.*q_proj"),
        (("freeze: false", "lora: {}"), (), "lora is set and freeze is false"),
        (("freeze: false",), ("data.feature_cache=there",), "needs model.vision.name vggt_pretrained or huggingface"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: tuple[str, ...], more: tuple[str, ...], complaint: str, saved: Saved
) -> None:
    with pytest.raises(InputError, match=complaint):
        make_policy(saved("dinov3"), *changes, more=more)


def test_image_sizes_must_fit_the_patches(saved: Saved) -> None:
    config = load_config({}, [*SMALL, *vision(saved("dinov3"))])
    with pytest.raises(InputError, match=r"data\.image_size is 36; .*patches of .* \(8 pixels\), such as 32"):
        config.model.build(replace(make_processor(), image_size=36))


def test_a_model_that_is_not_there_is_an_error_not_a_substitute(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.vision\.pretrained: there is no folder .*such as facebook/dinov3"):
        make_policy(tmp_path / "nothing")
