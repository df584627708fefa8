"""Reading image encoders from the Hugging Face hub or folders: the image tower of any model, strictly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from atlas.errors import InputError
from atlas.policies import huggingface_folder
from atlas.policies.huggingface_folder import quiet, read_description, read_weights
from atlas.policies.modular.vision_encoders.vision_sections import VISION_KEY as KEY
from atlas.policies.pretrained_weights import weights_hash
from atlas.system.device_copies import send

# Nothing beside or behind the patches' last hidden states is read: files may lack it, and it is not trained. (CLIP's
# post_layernorm is only for its pooled token, the mask token for training with parts left out.)
_UNREAD = ("pooler", "head")
_UNREAD_ENDS = ("embeddings.mask_token",)


def _plain(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model(pixel_values=pixels).last_hidden_state
    return hidden


def _interpolated(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Call models that take images of a size other than their own only when told to."""
    hidden: torch.Tensor = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    return hidden


def _patches(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Call SigLIP 2 at any resolution, which takes patches [n, N, p * p * 3], each of them row by row."""
    patch = model.config.patch_size
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    cut = pixels.unflatten(-2, (rows, patch)).unflatten(-1, (columns, patch))  # [n, 3, rows, p, columns, p]
    flat = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), rows * columns, -1)
    # All images have one size: the grid of positions is computed once, for all of them.
    shape = torch.tensor([[rows, columns]], device="cpu")
    hidden: torch.Tensor = model(pixel_values=flat, pixel_attention_mask=None, spatial_shapes=shape).last_hidden_state
    return hidden


class _Kind(NamedTuple):
    model: str  # a class of transformers
    look: Callable[[Any, torch.Tensor], torch.Tensor]  # (model, pixels [n, 3, H, W]) to hidden states [n, S + N, dim]
    specials: Callable[[Any], int]  # (config) to the tokens S before the patches
    unread: tuple[str, ...] = ()  # beginnings of further tensors that the hidden states do not depend on


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


_KINDS = {
    "dinov3_vit": _Kind("DINOv3ViTModel", _plain, _registers),
    "dinov2": _Kind("Dinov2Model", _plain, lambda config: 1),
    "dinov2_with_registers": _Kind("Dinov2WithRegistersModel", _plain, _registers),
    "siglip_vision_model": _Kind("SiglipVisionModel", _interpolated, lambda config: 0),
    "siglip2_vision_model": _Kind("Siglip2VisionModel", _patches, lambda config: 0),
    "clip_vision_model": _Kind("CLIPVisionModel", _interpolated, lambda config: 1, ("post_layernorm",)),
    "vit": _Kind("ViTModel", _interpolated, lambda config: 1),
}


def find_image_model(reference: str | Path, weights: bool) -> Path:
    """The folder of an image model; see `huggingface_folder.find_model`."""
    wanted, example = "config.json, weights and preprocessor_config.json", "facebook/dinov3-vitb16-pretrain-lvd1689m"
    return huggingface_folder.find_model(reference, weights, KEY, wanted, example)


class ImageTower(NamedTuple):
    """The part of a model that reads images: the whole of an image model, or one of SigLIP's and CLIP's two towers."""

    folder: Path
    name: str  # for messages
    kind: _Kind
    config: Any  # its config

    @classmethod
    def find(cls, folder: Path, name: str) -> ImageTower:
        """Read config.json. Raises InputError if it is missing, or the model has no image encoder."""
        described = read_description(folder, name, KEY)
        config = getattr(described, "vision_config", described)
        kind = _KINDS.get(getattr(config, "model_type", ""))
        if kind is None:
            raise InputError(
                f"{KEY}: {name} is a model of the kind '{described.model_type}', which has no image encoder that could "
                f"be read by itself; give one such as DINOv3, DINOv2, SigLIP 2, SigLIP, CLIP or ViT "
                f"({', '.join(_KINDS)})."
            )
        if hasattr(config, "vision_use_head"):
            config.vision_use_head = False
        for name_of in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
            if hasattr(config, name_of):  # DINOv3 randomises positions in training: Atlas does its own augmentation
                setattr(config, name_of, None)
        return cls(folder, name, kind, config)

    @property
    def dim(self) -> int:
        """The width of its last hidden states."""
        return int(self.config.hidden_size)

    @property
    def patch(self) -> int:
        """Pixels per side of a patch."""
        size = self.config.patch_size
        return int(size if isinstance(size, int) else size[0])

    def patches_a_side(self, image_size: int) -> int:
        """Return the patches per side of images with this many pixels per side. Raises InputError for a size that
        patches do not fill."""
        if image_size % self.patch:
            near = max(1, round(image_size / self.patch)) * self.patch
            raise InputError(
                f"data.image_size is {image_size}; it must be a multiple of the patches of {self.name} ({self.patch} "
                f"pixels), such as {near}."
            )
        return image_size // self.patch

    def look(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        """The patches' tokens [n, rows * columns, dim] for images [n, 3, H, W], scaled as the model expects."""
        return self.kind.look(model, pixels)[:, self.kind.specials(self.config) :]

    def build(self) -> Any:
        """The modules with random weights, or with none on the meta device."""
        with quiet():
            return self._class()(self.config, **self._options())

    def read(self, dtype: torch.dtype | None) -> Any:
        """The model with its weights, in eval mode; `dtype` None: as they are stored.

        Raises InputError that names tensors that are missing or have another shape, or the file that cannot be read.
        """
        return read_weights(
            self._class(),
            self.config,
            self.folder,
            self.name,
            KEY,
            dtype=dtype,
            may_lack=self.is_unread,
            **self._options(),
        )

    def is_unread(self, tensor: str) -> bool:
        """Whether a tensor does not take part in the patches' last hidden states."""
        return tensor.startswith((*_UNREAD, *self.kind.unread)) or tensor.endswith(_UNREAD_ENDS)

    def hash_of(self, model: Any) -> str:
        """The hash of what the tokens depend on, for a model returned by `read(None)`."""
        return weights_hash((k, v) for k, v in model.state_dict().items() if not self.is_unread(k))

    def weights_hash(self) -> str:
        """The hash of the weights in the folder. Raises InputError if they cannot be read."""
        return self.hash_of(self.read(None))

    def _class(self) -> Any:
        import transformers

        return getattr(transformers, self.kind.model)

    def _options(self) -> dict[str, Any]:
        has_choice = "add_pooling_layer" in inspect.signature(self._class().__init__).parameters
        return {"add_pooling_layer": False} if has_choice else {}


class PixelScale(NamedTuple):
    """The scale of the pixels that a model expects: (p * 255 * rescale - mean) / std, for pixels p in [0, 1]."""

    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, settings: dict[str, Any], name: str, key: str) -> PixelScale:
        """Read the contents of preprocessor_config.json. Raises InputError if they do not say it."""
        rescale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
        if not settings.get("do_normalize", True):
            return cls(rescale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        try:
            mean, std = (tuple(float(v) for v in settings[k]) for k in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError):
            mean, std = (), ()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(
                f"{key}: {name} does not say how images are scaled for it: its preprocessor_config.json has no "
                "image_mean and image_std of three numbers each."
            )
        return cls(rescale, mean, std)

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """images float [..., 3, H, W] in [0, 1]."""
        mean, std = send(torch.tensor([self.mean, self.std]), images.device).view(2, 3, 1, 1)
        scaled: torch.Tensor = (images * (255 * self.rescale) - mean) / std
        return scaled


def pool_grid(tokens: torch.Tensor, side: int, pool: int) -> torch.Tensor:
    """Tokens [n, side * side, D] averaged over pool x pool of them; at the borders of a grid that does not divide, over
    those that exist: [n, N', D]."""
    if pool == 1:
        return tokens
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(maps, pool, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)
