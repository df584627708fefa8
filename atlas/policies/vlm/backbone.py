"""Reads image-text models, from the Hugging Face hub or folders, strictly, as an image part and a language part."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from atlas.errors import InputError, first_line
from atlas.policies import huggingface_folder
from atlas.policies.adapters import add_adapters, check_adapters
from atlas.policies.huggingface_folder import (
    UNREADABLE,
    quiet,
    read_description,
    read_image_settings,
    read_tokenizer,
    read_weights,
    repeated_blocks,
)
from atlas.policies.pretrained_weights import FrozenWeights, cast_weights, frozen_dtype, weights_hash
from atlas.policies.vlm.families import Family, family_of, is_known, known_kinds
from atlas.policies.vlm.image_part import ImagePart
from atlas.policies.vlm.image_rule import ImageRule
from atlas.policies.vlm.language_part import LanguagePart
from atlas.policies.vlm.prompts import Positions, Prompts
from atlas.policies.vlm.vlm_head_contract import LanguageSizes
from atlas.policies.vlm.vlm_section import BACKBONE_KEY as KEY
from atlas.policies.vlm.vlm_section import LORA_KEY, BackboneConfig
from atlas.system.files import partial_folder, write_text

logger = logging.getLogger(__name__)

_USUAL_SIZE = 224  # pixels, assumed before the data's images are known
_EXAMPLE = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


class Backbone(NamedTuple):
    """An image-text model before its weights are read."""

    settings: BackboneConfig
    folder: Path
    name: str  # for messages
    kind: Any  # a class of transformers, without a language-model head
    config: Any  # its config, cut to the wanted language layers
    family: Family
    images: dict[str, Any]  # the contents of preprocessor_config.json

    @classmethod
    def find(cls, settings: BackboneConfig, source: Path | None = None, weights: bool = True) -> Backbone:
        """Read the model's description, from `source` if given, or else from where the settings say. Raises InputError
        for a model that is missing, not an image-text model, or has fewer layers than wanted."""
        from transformers import AutoModel, AutoModelForImageTextToText

        name = f"'{settings.pretrained}'" + (f" (read from {source})" if source is not None else "")
        wanted = "config.json, weights, tokenizer and preprocessor_config.json"
        reference = settings.pretrained if source is None else source
        folder = huggingface_folder.find_model(reference, weights, KEY, wanted, _EXAMPLE)
        config = read_description(folder, name, KEY)
        if type(config) not in AutoModelForImageTextToText._model_mapping or not hasattr(config, "text_config"):
            raise InputError(
                f"{KEY}: {name} is a model of the kind '{config.model_type}', which does not read images and text "
                f"together; give an image-text model such as {_EXAMPLE}. (A text model is for model.language of the "
                "type modular.)"
            )
        kind = AutoModel._model_mapping[type(config)]
        _check_kind(kind, config, name)
        _cut_layers(config, settings.language_layers, name)
        images = read_image_settings(folder, name, KEY)
        return cls(settings, folder, name, kind, config, family_of(config.model_type), images)

    # ---- without weights ---------------------------------------------------------------------------------

    def rule(self, image_size: int) -> ImageRule:
        """The rule by which images with sides of this many pixels are prepared. Raises InputError."""
        return ImageRule.of(self.images, self.config, self.family, image_size, self.settings.image_size, self.name)

    def shape(self, image_size: int) -> tuple[int, int]:
        """The number of tokens of a view of this size (pixels), and a token's width. Raises InputError where the model
        does not take such images."""
        tokens = self._tried(image_size)[1]
        return tokens.shape[1], tokens.shape[2]

    def _tried(self, image_size: int) -> tuple[nn.Module, torch.Tensor]:
        """An image part without weights (on the meta device), and its tokens of one view, [1, N, D]."""
        config = copy.deepcopy(self.config)
        _set_layers(config.text_config, 1)
        rule = self.rule(image_size)
        try:
            with torch.device("meta"), quiet():
                part = ImagePart(_without_language(self.kind(config))[0], self.family, rule, None, stays=False)
                return part, part(torch.zeros(1, 1, 3, image_size, image_size))
        except UNREADABLE as error:
            raise InputError(
                f"{KEY}: {self.name} does not take images of {rule.size} pixels ({first_line(error)}). Set another "
                "model.backbone.image_size, or leave it out."
            ) from error

    def _unread_images(self, image_size: int) -> set[str]:
        """The image part's weights that its tokens do not depend on, such as a pooler's, found by a trial backward
        pass."""
        part, tokens = self._tried(image_size)
        tokens.sum().backward()  # type: ignore[no-untyped-call]
        return {name for name, p in part.named_parameters() if p.grad is None}

    def prompts(self, model: Any, image_size: int, words: int) -> Prompts:
        """The maker of token rows. model: transformers' model, which computes positions. Raises InputError."""
        tokenizer = read_tokenizer(self.folder, self.name, KEY)
        grid = self.rule(image_size).grid
        return Prompts(
            self.settings,
            self.family,
            tokenizer,
            int(self.config.image_token_id),
            words,
            self.shape(image_size)[0],
            _spatial_positions(model, grid) if hasattr(model, "get_rope_index") else None,
            _longest(self.config.text_config),
            self.name,
        )

    # ---- with weights ------------------------------------------------------------------------------------

    def build(self) -> tuple[nn.Module, nn.Module]:
        """transformers' image part and language part, with random weights, or without weights on the meta device."""
        with quiet():
            return _without_language(self.kind(self.config))

    def read(self, dtype: torch.dtype | None = None) -> tuple[nn.Module, nn.Module]:
        """Both parts with their pretrained weights; dtype: None: as stored. Raises InputError."""
        return _without_language(self._read_whole(dtype))

    def _read_whole(self, dtype: torch.dtype | None = None) -> Any:
        return read_weights(self.kind, self.config, self.folder, self.name, KEY, dtype=dtype, may_lack=_is_unread)

    def vision_hash(self) -> str:
        """The hash of the image part's weights in the folder. Raises InputError where they cannot be read."""
        return weights_hash(self.read()[0].state_dict().items())

    def read_vision(self) -> nn.Module:
        """The image part alone, for a feature cache."""
        return _AnySize(self)

    def parts(self, image_size: int, weights: bool = True) -> tuple[ImagePart, LanguagePart, Prompts]:
        """The parts for a policy: frozen ones in the chosen precision, others in float32, with adapters if configured.
        Without `weights` they keep their random initialisation. Raises InputError."""
        settings, rule = self.settings, self.rule(image_size)
        stays = {"vision": settings.vision_stays, "language": settings.freeze}
        frozen: dict[str, FrozenWeights | None] = dict.fromkeys(stays)
        models = dict(zip(stays, self.read() if weights else self.build(), strict=True))
        if weights:
            for part, model in models.items():
                if stays[part]:
                    frozen[part] = FrozenWeights(settings.pretrained, weights_hash(model.state_dict().items()))
                cast_weights(model, frozen_dtype(settings.precision) if stays[part] else torch.float32)
        words = models["language"].get_input_embeddings().num_embeddings  # type: ignore[operator]
        prompts = self.prompts(models["vision"], image_size, words)
        vision = ImagePart(models["vision"], self.family, rule, frozen["vision"], stays["vision"])
        adapted = settings.lora is not None
        language = LanguagePart(models["language"], self.family, frozen["language"], stays["language"], adapted)
        if not stays["vision"]:
            unread = self._unread_images(image_size)
            for name, parameter in vision.named_parameters():
                parameter.requires_grad_(name not in unread)
        if settings.lora is not None:
            add_adapters(language.model, settings.lora, _linear_layers(language.model), LORA_KEY)
        return vision, language, prompts

    def save_copy(self, path: Path) -> None:
        """Write model, tokenizer and image settings as a Hugging Face folder, from which the model can be read again.

        Replaces an earlier folder of this name once the new one is complete.
        """
        with partial_folder(path) as partial:
            with quiet():
                self._read_whole().save_pretrained(partial)
                read_tokenizer(self.folder, self.name, KEY).save_pretrained(partial)
            write_text(partial / "preprocessor_config.json", json.dumps(self.images, indent=2))
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)


class _AnySize(nn.Module):
    """A frozen image part for images of any size, which only the images themselves tell."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone
        self.model = backbone.read()[0]
        self.frozen = FrozenWeights(backbone.settings.pretrained, weights_hash(self.model.state_dict().items()))
        cast_weights(self.model.eval(), frozen_dtype(backbone.settings.precision))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        backbone = self._backbone
        part = ImagePart(self.model, backbone.family, backbone.rule(images.shape[-1]), self.frozen, stays=True)
        tokens: torch.Tensor = part(images)
        return tokens


def check_backbone(settings: BackboneConfig) -> LanguageSizes:
    """The language part's sizes. Raises InputError where a policy cannot be built on the model, as far as this shows
    without its weights and the data's images."""
    if settings.lora is not None:
        check_adapters(LORA_KEY)
    backbone = Backbone.find(settings)
    with torch.device("meta"):
        vision, model = backbone.build()
        language = LanguagePart(model, backbone.family, None, stays=True)
        if settings.lora is not None:
            add_adapters(model, settings.lora, _linear_layers(model), LORA_KEY)
    words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    backbone.prompts(vision, _USUAL_SIZE, words).row("pick up the cube", 1, 0)
    return language.sizes


# ---- transformers' models ----------------------------------------------------------------------------------


def _check_kind(kind: Any, config: Any, name: str) -> None:
    """Raise InputError for an unknown kind that reads images in its own way; warn of any other unknown kind."""
    if is_known(config.model_type):
        return
    if "token_type_ids" in inspect.signature(kind.forward).parameters or not hasattr(kind, "get_image_features"):
        raise InputError(
            f"{KEY}: {name} is of the kind '{config.model_type}', which reads images in a way that vlm does not have; "
            f"it has those of {', '.join(known_kinds())}."
        )
    logger.warning(
        "%s is a model of the kind '%s', which Atlas has not been tested with: it is read like LLaVA, each view whole, "
        "with causal attention, and with model.backbone.prompt or '{images}{instruction}' as its prompt.",
        name,
        config.model_type,
    )


def _without_language(model: Any) -> tuple[nn.Module, nn.Module]:
    """(the model without its language part, the language part); of an encoder-decoder language part, the encoder."""
    name = next((n for n in ("language_model", "text_model") if isinstance(getattr(model, n, None), nn.Module)), None)
    if name is None:
        raise InputError(f"{KEY}: a {type(model).__name__} has no separate language part.")
    language = getattr(model, name)
    setattr(model, name, None)
    if getattr(language.config, "is_encoder_decoder", False):
        language = language.encoder
    return model, language


def _is_unread(tensor: str) -> bool:
    """Whether a file may lack a tensor: those of a decoder, of which Atlas reads only the encoder."""
    return ".decoder." in tensor or tensor.startswith("decoder.")


def _cut_layers(config: Any, wanted: int | None, name: str) -> None:
    there = config.text_config.num_hidden_layers
    if wanted is None:
        return
    if wanted > there:
        raise InputError(f"model.backbone.language_layers is {wanted}, but {name} has {there} language layers.")
    _set_layers(config.text_config, wanted)


def _set_layers(config: Any, count: int) -> None:
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _longest(config: Any) -> int:
    """The longest row for which a language part has learned positions; rotary positions have no limit."""
    learned = getattr(config, "is_encoder_decoder", False)
    return int(config.max_position_embeddings) if learned else 2**31


def _spatial_positions(model: Any, grid: int) -> Positions:
    """Positions for models whose positions have a time, a row and a column (M-RoPE, as Qwen's)."""
    merge = model.config.vision_config.spatial_merge_size
    find = model.get_rope_index

    def positions(ids: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
        images = int(is_image.sum()) // (grid // merge) ** 2
        grids = torch.tensor([[1, grid, grid]] * images)
        found: torch.Tensor = find(ids, mm_token_type_ids=is_image.int(), image_grid_thw=grids)[0]
        return found

    return positions


def _linear_layers(model: nn.Module) -> Iterable[str]:
    """The names of the linear layers in a model's blocks."""
    inside = {id(m) for block in repeated_blocks(model) for m in block.modules() if isinstance(m, nn.Linear)}
    return [name for name, module in model.named_modules() if id(module) in inside]
