"""The published VGGT checkpoint's names and shapes, and strict reading of it.

The aggregator's own modules are named as in the checkpoint. Only the DINOv2 inside, which is transformers' model, has
other names and separate queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from atlas.errors import InputError
from atlas.policies.pretrained_weights import WeightsHash
from atlas.policies.vggt.weight_loading import PARTS, check_names_and_shapes, open_checkpoint
from atlas.system.files import atomic_path

if TYPE_CHECKING:
    from atlas.policies.vggt.aggregator import VGGTAggregator

PREFIX = "aggregator."
_OTHER_PARTS = tuple(part for part in PARTS if part != PREFIX)  # published, but not part of this model

_VIT = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_VIT_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def published_names(model: VGGTAggregator) -> dict[str, tuple[str, ...]]:
    """Return for each published name this model's tensors that make it up, one below the other. Dinov2 stem only."""
    if model.config.stem != "dinov2":
        raise InputError(
            f"This VGGT has the {model.config.stem} stem; only one with the dinov2 stem has the published weights."
        )
    names: dict[str, tuple[str, ...]] = {
        PREFIX + name: (name,) for name in model.state_dict() if not name.startswith("stem.")
    }
    outer, inner = PREFIX + "patch_embed.", "stem.model."
    names.update({outer + theirs: (inner + ours,) for theirs, ours in _VIT.items()})
    for i in range(model.config.patch_embed_depth):
        block, layer = f"{outer}blocks.{i}.", f"{inner}encoder.layer.{i}."
        for theirs, parts in _VIT_BLOCK.items():
            for kind in ("weight", "bias"):
                names[f"{block}{theirs}.{kind}"] = tuple(f"{layer}{part}.{kind}" for part in parts)
        for n in (1, 2):
            names[f"{block}ls{n}.gamma"] = (f"{layer}layer_scale{n}.lambda1",)
    return names


def published_state_dict(model: VGGTAggregator) -> dict[str, Tensor]:
    """The model's weights under the published names; those that are a single tensor here share its memory."""
    names, ours = published_names(model), model.state_dict()
    return {
        name: ours[parts[0]] if len(parts) == 1 else torch.cat([ours[part] for part in parts])
        for name, parts in names.items()
    }


def load_published(
    model: VGGTAggregator, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], source: str
) -> str:
    """Copy published tensors into the model, after checking all names and shapes; returns their hash.

    shapes: of everything the source holds; read: returns one tensor by name; source: its name in messages.
    """
    names, ours = published_names(model), model.state_dict()
    if any(tensor.is_meta for tensor in ours.values()):
        raise InputError("This VGGT is on the meta device, which holds no weights; call to_empty(device=...) first.")
    _check(model, shapes, source)
    with torch.no_grad():
        total = WeightsHash()
        for name, parts in sorted(names.items()):
            tensor = read(name)  # one at a time: the published weights are 3.6 GB
            total.add(name, tensor)
            for part, value in zip(parts, tensor.chunk(len(parts)), strict=True):
                ours[part].copy_(value)
    return total.hexdigest()


def check_published_file(model: VGGTAggregator, path: Path) -> None:
    """Raises InputError if `load_published_file` would; reads names and shapes only. The model may be on meta."""
    with open_checkpoint(path) as (shapes, _):
        _check(model, shapes, f"The file {path}")


def _check(model: VGGTAggregator, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    ours = model.state_dict()
    expected = {}
    for name, parts in published_names(model).items():
        first, *others = (ours[part].shape for part in parts)
        expected[name] = (first[0] * (1 + len(others)), *first[1:])
    found = {name: shape for name, shape in shapes.items() if not name.startswith(_OTHER_PARTS)}
    check_names_and_shapes(expected, found, source, "this VGGT aggregator")


def load_published_file(model: VGGTAggregator, path: Path) -> str:
    """`load_published` from a safetensors file, of which only the wanted tensors are read."""
    published_names(model)  # refuses a model with another stem before the file is looked at
    with open_checkpoint(path) as (shapes, read):
        return load_published(model, shapes, read, f"The file {path}")


def published_hash(path: Path) -> str:
    """The hash of the aggregator's tensors in a published checkpoint, as `load_published_file` returns it."""
    total = WeightsHash()
    with open_checkpoint(path) as (shapes, read):
        for name in sorted(shapes):
            if name.startswith(PREFIX):
                total.add(name, read(name))
    return total.hexdigest()


def copy_published_file(path: Path, to: Path) -> None:
    """Write only the aggregator's tensors of a published checkpoint into another file, unchanged."""
    with open_checkpoint(path) as (shapes, read):
        tensors = {name: read(name) for name in shapes if name.startswith(PREFIX)}
    with atomic_path(to) as partial:
        save_file(tensors, partial)
