"""Image-text models inside a policy: what they make of a prompt is what transformers has them make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas.errors import InputError
from atlas.policies.vlm import families
from atlas.policies.vlm.backbone import Backbone
from atlas.policies.vlm.image_rule import ImageRule
from atlas.policies.vlm.language_part import LanguagePart
from atlas.policies.vlm.vlm_section import BackboneConfig
from tests.policies.image_text_models import (
    MARKS,
    OTHER_KINDS,
    VLM_KINDS,
    WIDTH,
    image_settings,
    image_token,
    make_image_text_model,
    make_tokenizer,
    save_image_text_model,
)

SIZE, VIEWS, EXTRAS = 32, 2, 3
SHORT, LONG = "open it", "pick up the red cube and put it on the plate"
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a kind of model, written once; to be left as it is."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: save_image_text_model(kind, root / kind)


def find(folder: Path, **settings: Any) -> Backbone:
    return Backbone.find(BackboneConfig(pretrained=str(folder), precision="fp32", **settings))


def make_images(samples: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.rand(samples, VIEWS, 3, size, size, generator=torch.Generator().manual_seed(1))


def states_of(backbone: Backbone, images: torch.Tensor, instructions: list[str]) -> Any:
    vision, language, prompts = backbone.parts(images.shape[-1])
    assert isinstance(language.eval(), LanguagePart)
    batch = prompts.batch(instructions, VIEWS, EXTRAS, torch.device("cpu"))
    with torch.no_grad():
        seen = vision.eval()._look(images)
        extras = torch.randn(len(images), EXTRAS, WIDTH, generator=torch.Generator().manual_seed(2))
        return batch, language(batch, seen, extras)


def of_transformers(kind: str, backbone: Backbone, images: torch.Tensor, instruction: str) -> torch.Tensor:
    """The last hidden states [L, WIDTH] of a prompt as transformers makes them: its own merging, masks and places."""
    model = make_image_text_model(kind).model
    prompts = backbone.parts(SIZE)[2]
    row = prompts.row(instruction, VIEWS, 0)
    ids = row.ids.clone()
    ids[row.image_slots] = image_token(kind)
    rule = backbone.rule(images.shape[-1])
    pixels = rule.apply(images)
    told: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if kind.startswith("qwen"):
        grids = torch.tensor([[1, rule.grid, rule.grid]] * VIEWS)
        told |= {"pixel_values": pixels.flatten(0, 1), "image_grid_thw": grids}
        told["mm_token_type_ids"] = (ids == image_token(kind)).int()[None]
    else:
        told["pixel_values"] = pixels[None] if kind in ("smolvlm", "idefics3") else pixels
    if kind.startswith("paligemma"):
        told["token_type_ids"] = torch.zeros_like(ids)[None]
    with torch.no_grad():
        found = model(**told)
    hidden: torch.Tensor = found.encoder_last_hidden_state if kind == "florence2" else found.last_hidden_state
    return hidden[0]


@pytest.mark.parametrize("kind", (*VLM_KINDS, *OTHER_KINDS))
def test_hidden_states_are_those_of_the_model_itself(kind: str, saved: Saved) -> None:
    backbone, images = find(saved(kind)), make_images()
    batch, states = states_of(backbone, images, [SHORT, LONG])

    for sample, instruction in enumerate((SHORT, LONG)):
        expected = of_transformers(kind, backbone, images[sample], instruction)
        found = states.layers[-1][sample][states.is_prompt[sample]]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert batch.extra_slots.tolist() == [[n - 3, n - 2, n - 1] for n in batch.is_there.sum(1).tolist()]


@pytest.mark.parametrize("kind", (*VLM_KINDS, *OTHER_KINDS))
def test_extra_tokens_read_by_themselves_are_those_read_with_the_prompt(kind: str, saved: Saved) -> None:
    frozen, trained = (
        states_of(find(saved(kind), freeze=freeze), make_images(), [SHORT, LONG])[1] for freeze in (True, False)
    )

    for layer in range(len(frozen.layers)):
        torch.testing.assert_close(frozen.extras(layer), trained.extras(layer), atol=2e-5, rtol=1e-4)
        for sample in range(2):
            pairs = ((states.layers[layer][sample][states.is_prompt[sample]]) for states in (frozen, trained))
            torch.testing.assert_close(*pairs, atol=2e-5, rtol=1e-4)
    assert torch.equal(frozen.next_position, trained.next_position)


@pytest.mark.parametrize("kind", VLM_KINDS)
def test_a_sample_does_not_depend_on_its_company(kind: str, saved: Saved) -> None:
    backbone, images = find(saved(kind)), make_images()

    together = states_of(backbone, images, [SHORT, LONG])[1].extras(-1)
    alone = states_of(backbone, images[:1], [SHORT])[1].extras(-1)

    torch.testing.assert_close(together[:1], alone, atol=2e-5, rtol=1e-4)
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", VLM_KINDS)
def test_every_extra_token_reads_the_images_the_words_and_each_other(kind: str, saved: Saved) -> None:
    vision, language, prompts = find(saved(kind), freeze=False).parts(SIZE)
    batch = prompts.batch([LONG], VIEWS, EXTRAS, torch.device("cpu"))
    seen = vision._look(make_images(1)).detach().requires_grad_()
    extras = torch.randn(1, EXTRAS, WIDTH).requires_grad_()

    states = language.eval()(batch, seen, extras)
    states.extras(-1)[0, 0].square().sum().backward()

    assert seen.grad is not None and extras.grad is not None
    assert (seen.grad[0].abs().sum(-1) > 0).all() and (extras.grad[0].abs().sum(-1) > 0).all()
    assert len(states.layers) == len(language.layers)


@pytest.mark.parametrize("kind", VLM_KINDS)
def test_the_first_layers_alone_are_those_of_the_whole_model(kind: str, saved: Saved) -> None:
    images = make_images()
    whole = states_of(find(saved(kind)), images, [LONG, LONG])[1]
    cut = states_of(find(saved(kind), language_layers=2), images, [LONG, LONG])[1]

    assert len(cut.layers) == 2
    torch.testing.assert_close(cut.layers[0], whole.layers[0])


@pytest.mark.parametrize("kind", VLM_KINDS)
def test_places_are_not_rounded_with_the_weights(kind: str, saved: Saved) -> None:
    settings = BackboneConfig(pretrained=str(saved(kind)), precision="bf16")
    parts = Backbone.find(settings).parts(SIZE)[:2]

    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    frequencies = [b for part in parts for name, b in part.named_buffers() if "inv_freq" in name]
    assert all(b.dtype == torch.float32 for b in frequencies) and (frequencies or kind == "florence2")


def test_of_a_kind_that_nobody_has_tried_this_is_said(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(families._FAMILIES, "llava")
    backbone, images = find(saved("llava")), make_images(1)

    states = states_of(backbone, images, [LONG])[1]

    assert "kind 'llava', which Atlas has not been tested with" in caplog.text
    expected = of_transformers("llava", backbone, images[0], LONG)
    torch.testing.assert_close(states.layers[-1][0][states.is_prompt[0]], expected, atol=2e-5, rtol=1e-4)


def test_a_kind_with_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)

    with pytest.raises(InputError, match=r"kind 'gemma3', which reads images in a way .*qwen2_5_vl"):
        find(tmp_path)


# ---- against the processors of transformers ----------------------------------------------------------------


def square(kind: str) -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    made = SiglipImageProcessorPil(**{k: v for k, v in image_settings(kind).items() if k != "do_center_crop"})
    made.image_seq_length = 16 if kind == "paligemma" else 2
    return made


def pixels_of_transformers(kind: str, images: list[np.ndarray]) -> torch.Tensor:
    """By the model's own image processor, which rounds to whole colours: [V, ...]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    settings = image_settings(kind)
    if kind.startswith("qwen"):
        found = Qwen2VLImageProcessorPil(**settings)(images, return_tensors="pt").pixel_values
        return found.unflatten(0, (len(images), -1))
    if kind == "smolvlm":
        return SmolVLMImageProcessorPil(**settings, do_image_splitting=False)(
            [images], return_tensors="pt"
        ).pixel_values[0]
    if kind == "internvl":
        return GotOcr2ImageProcessorPil(**settings, crop_to_patches=False)(images, return_tensors="pt").pixel_values
    if kind == "llava":
        return CLIPImageProcessorPil(**settings)(images, return_tensors="pt").pixel_values
    return square(kind)(images, return_tensors="pt").pixel_values


def smooth(size: int) -> np.ndarray:
    """A picture that no way of resizing changes much: uint8 [size, size, 3]."""
    ramp = np.linspace(0, 1, size)
    waves = [np.outer(ramp, ramp), np.outer(1 - ramp, ramp), np.sin(3 * ramp)[:, None] * np.ones(size)]
    return np.round(255 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 48, 100])
@pytest.mark.parametrize("kind", VLM_KINDS)
def test_images_are_scaled_as_by_the_models_own_processor(kind: str, size: int, saved: Saved) -> None:
    pictures = [smooth(size), smooth(size)[::-1].copy()]
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures]).float() / 255

    pixels = find(saved(kind)).rule(size).apply(images)

    expected = pixels_of_transformers(kind, pictures)
    assert pixels.shape == expected.shape
    torch.testing.assert_close(pixels, expected.float(), atol=0.06, rtol=0)  # 2 to 3 of 255 colours, in deviations


def own_processor(kind: str) -> Any:
    """The whole processor of transformers, where it can be made without videos."""
    import transformers as hf
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = make_tokenizer()
    if kind == "paligemma":
        return hf.PaliGemmaProcessor(image_processor=square(kind), tokenizer=tokenizer)
    if kind == "florence2":
        tokenizer.image_token, tokenizer.image_token_id = "<image>", MARKS.index("<image>")
        return hf.Florence2Processor(image_processor=square(kind), tokenizer=tokenizer)
    return hf.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**image_settings(kind)),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize(
    ("kind", "text", "views"),
    [
        ("paligemma", "<image><image>{}", 2),
        ("florence2", "{}", 1),
        ("llava", "<s>USER: <image><image>{} ASSISTANT:", 2),
    ],
)
def test_prompts_are_those_of_the_models_own_processor(kind: str, text: str, views: int, saved: Saved) -> None:
    images: Any = [smooth(SIZE)] * views
    images = [images] if kind == "paligemma" else images
    expected = own_processor(kind)(images=images, text=[text.format(LONG)], return_tensors="pt")["input_ids"][0]

    row = find(saved(kind)).parts(SIZE)[2].row(LONG, views, 0)

    is_image = expected == image_token(kind)
    assert row.ids.tolist() == expected.masked_fill(is_image, 0).tolist()
    assert row.image_slots.tolist() == is_image.nonzero()[:, 0].tolist()


def rule_of(kind: str, settings: Mapping[str, Any], saved: Saved, size: int, asked: int | None = None) -> ImageRule:
    backbone = find(saved(kind))
    images = {**backbone.images, **settings}
    settings_of = backbone.settings.model_copy(update={"image_size": asked})
    return backbone._replace(images=images, settings=settings_of).rule(size)


def test_sizes_follow_from_the_models_own_rule(saved: Saved) -> None:
    qwen = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "min_pixels": None, "max_pixels": None}

    assert [rule_of("qwen3_vl", qwen, saved, size).size for size in (8, 44, 45, 224)] == [16, 48, 48, 64]
    assert rule_of("qwen3_vl", qwen, saved, 224, asked=40).grid == 10
    assert rule_of("smolvlm", {}, saved, 224).size == 32
    assert rule_of("paligemma", {"size": {"height": 40, "width": 40}}, saved, 224).size == 40
    assert rule_of("llava", {"crop_size": 24}, saved, 224).size == 24
    assert replace(rule_of("llava", {"do_resize": False}, saved, 224)).size == 224
