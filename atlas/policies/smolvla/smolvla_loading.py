"""Builds a SmolVLA policy from LeRobot's folder, from a folder that Atlas saved, or with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from atlas.data.image_fit import ImageFit
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import CameraSlots, assign_cameras
from atlas.policies.published.description import Description, check_widths
from atlas.policies.published.picture_features import frozen_sight, sight_weights
from atlas.policies.published.processor_files import TokenizerStep
from atlas.policies.published.published_section import DESCRIPTION
from atlas.policies.published.tokenized_prompt import PromptTokenizer
from atlas.policies.published.weight_filling import (
    allocate,
    check_file,
    fill,
    fill_backbone,
    holds_backbone,
    precision_of,
)
from atlas.policies.smolvla.published_base import base_description
from atlas.policies.smolvla.smolvla_network import TABLES, SmolVLANetwork
from atlas.policies.smolvla.smolvla_policy import SmolVLAPolicy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from atlas.policies.smolvla.smolvla_sizes import VLM_CONFIG, SmolVLASizes, read_sizes
from atlas.registry.lerobot_policies import WEIGHTS
from atlas.types import ActionSpec

OWN_STEPS = ("smolvla_new_line_processor",)


def read_description(config: SmolVLAConfig, folder: Path | None = None, read_weights: bool = True) -> Description:
    """The description in a saved policy's folder, or in LeRobot's. Raises InputError.

    Without read_weights nothing is fetched for the published base model, whose sizes are known.
    """
    saved = folder is not None and (folder / DESCRIPTION).is_dir()
    known = None if read_weights or saved else base_description(config.pretrained)
    if known is not None:
        return known
    path = config.find(folder, weights=read_weights)
    return Description.read(path, config.type, OWN_STEPS, str(folder) if saved else config.pretrained, saved)


def fit_of(description: Description) -> ImageFit:
    """Images at the bottom right, with black borders, resized without antialiasing."""
    width, height = description.folder.pair("resize_imgs_with_padding")
    return ImageFit(height, width, "right_bottom")


def build(
    config: SmolVLAConfig,
    processor: PolicyProcessor,
    folder: Path | None,
    read_weights: bool,
    device: torch.device | str,
) -> SmolVLAPolicy:
    """See `PublishedConfig.build`."""
    description = read_description(config, folder, read_weights)
    processor = description.with_statistics(processor, config.statistics) if read_weights else processor
    if not read_weights:
        return _assemble(config, processor, description, _network(config, description), with_words=False)
    if config.weights == "random" and folder is None:
        network = _network(config, description)
        network.draw_embeddings()
        return _assemble(config, processor, description, network)
    with torch.device("meta"):
        network = _network(config, description)
    if folder is None:
        fill(
            network,
            description.folder.path / WEIGHTS,
            precision_of(network, config.precision),
            config.pretrained,
            TABLES,
            device,
        )
    else:
        allocate(network, config.weights == "random", device)  # the saved weights are read into this memory later
        if config.weights == "pretrained":
            precision = precision_of(network, config.precision)
            fill_backbone(network, folder, config.weights_file, precision, config.pretrained, TABLES, device=device)
    return _assemble(config, processor, description, network)


def of_lerobot(config: SmolVLAConfig, directory: Path, device: torch.device | str) -> SmolVLAPolicy:
    """The policy in a LeRobot folder, with the folder's processor, in eval mode."""
    description = Description.read(directory, config.type, OWN_STEPS, config.pretrained)
    with torch.device("meta"):
        network = _network(config, description)
    fill(network, directory / WEIGHTS, precision_of(network, config.precision), config.pretrained, TABLES, device)
    policy = _assemble(config, description.own_processor(fit_of(description), config.cameras), description, network)
    policy.eval()
    return policy


def check(config: SmolVLAConfig, folder: Path | None = None) -> None:
    """See `ModelConfig.check_pretrained`."""
    description = read_description(config, folder)
    with torch.device("meta"):
        network = _network(config, description)
    if config.weights == "pretrained" and not (folder is not None and holds_backbone(folder)):
        check_file(config.weights_file(folder), network, config.pretrained, TABLES)
    _words(config, description, network)


def open_sight(config: SmolVLAConfig, read_weights: bool) -> tuple[SmolVLANetwork, tuple[str, ...], ImageFit]:
    """See `Opening`."""
    description = read_description(config, read_weights=read_weights)
    with torch.device("meta"):
        network = _network(config, description)
    parts = frozen_sight(network, {name for name, p in network.named_parameters() if p.requires_grad})
    if read_weights:
        only = {name for name, _ in sight_weights(network, parts)}
        precision = precision_of(network, config.precision)
        fill(network, description.folder.path / WEIGHTS, precision, config.pretrained, TABLES, only=only)
    return network.eval(), parts, fit_of(description)


def check_dataset(
    config: SmolVLAConfig, cameras: Sequence[str], spec: ActionSpec, proprio_dim: int, folder: Path | None = None
) -> None:
    """See `ModelConfig.check_dataset`."""
    description = read_description(config, folder)
    sizes = _sizes(config, description)
    check_widths(description, spec.dim, proprio_dim, sizes.action, sizes.state)
    description.check_statistics(config.statistics, spec.dim, proprio_dim)
    _slots(config, description, cameras, say=False)


def _slots(config: SmolVLAConfig, description: Description, cameras: Sequence[str], say: bool) -> CameraSlots:
    folder = description.folder
    empty = folder.integer("empty_cameras", 0, least=0)
    return assign_cameras(folder.cameras, cameras, config.cameras, description.files.renamed, empty, folder.called, say)


def _sizes(config: SmolVLAConfig, description: Description) -> SmolVLASizes:
    """The network's sizes; a saved policy's are those it was saved with, whatever `model.vlm` says."""
    kept = description.saved and (description.folder.path / VLM_CONFIG).is_file()
    return read_sizes(description.folder, None if kept else config.vlm)


def _network(config: SmolVLAConfig, description: Description) -> SmolVLANetwork:
    folder = description.folder
    network = SmolVLANetwork(_sizes(config, description))
    chosen = {key: getattr(config, key) for key in ("train_expert_only", "freeze_vision_encoder", "train_state_proj")}
    network.set_trained(*(folder.boolean(key, True) if own is None else own for key, own in chosen.items()))
    return network


def _words(config: SmolVLAConfig, description: Description, network: SmolVLANetwork) -> PromptTokenizer:
    """The tokenizer; the vision-language model's for a folder without processor files."""
    folder = description.folder
    step = TokenizerStep(
        folder.text("vlm_model_name"),
        folder.integer("tokenizer_max_length", 48),
        folder.text("pad_language_to", "longest", ("longest", "max_length")),
    )
    tokenizer = description.tokenizer(config, step)
    tokenizer.check_vocabulary(network.sizes.vocabulary)
    return tokenizer


def _assemble(
    config: SmolVLAConfig,
    processor: PolicyProcessor,
    description: Description,
    network: SmolVLANetwork,
    with_words: bool = True,
) -> SmolVLAPolicy:
    sizes = network.sizes
    check_widths(description, processor.action_spec.dim, processor.proprio_dim, sizes.action, sizes.state)
    slots = _slots(config, description, processor.cameras, with_words)
    tokenizer = _words(config, description, network) if with_words else None
    return SmolVLAPolicy(config, processor, description, network, slots, tokenizer, fit_of(description))
