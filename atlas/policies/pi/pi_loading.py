"""Builds a pi0 or pi0.5 policy from LeRobot's folder, from a folder that Atlas saved, or with random weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from atlas.data.image_fit import ImageFit
from atlas.policies.pi.pi_base import TOKENIZER, base_description
from atlas.policies.pi.pi_names import ALIASES, BESIDE, NAMING
from atlas.policies.pi.pi_network import PiNetwork
from atlas.policies.pi.pi_policy import PiPolicy
from atlas.policies.pi.pi_section import LORA_KEY, PiConfig
from atlas.policies.pi.pi_settings import PiSettings, default_normalization
from atlas.policies.pi.trained_parts import adapt_backbone, freeze, held_in, trains_whole
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import CameraSlots, assign_cameras
from atlas.policies.published.description import Description, check_widths
from atlas.policies.published.picture_features import frozen_sight, sight_weights
from atlas.policies.published.processor_files import TokenizerStep
from atlas.policies.published.published_section import DESCRIPTION
from atlas.policies.published.tokenized_prompt import PromptTokenizer
from atlas.policies.published.weight_filling import (
    Precision,
    allocate,
    check_file,
    fill,
    fill_backbone,
    holds_backbone,
)
from atlas.registry.lerobot_policies import WEIGHTS
from atlas.types import ActionSpec

OWN_STEPS = {"pi0": ("pi0_new_line_processor",), "pi05": ("pi05_prepare_state_tokenizer_processor_step",)}


def read_description(config: PiConfig, folder: Path | None = None, read_weights: bool = True) -> Description:
    """The description in a saved policy's folder, or in LeRobot's. Raises InputError.

    Without read_weights nothing is fetched for the published base models, whose sizes are known.
    """
    saved = folder is not None and (folder / DESCRIPTION).is_dir()
    known = None if read_weights or saved else base_description(config.pretrained)
    if known is not None:
        return known
    path = config.find(folder, weights=read_weights)
    return _read(config, path, str(folder) if saved else config.pretrained, saved)


def _read(config: PiConfig, path: Path, called: str, saved: bool = False) -> Description:
    usual = default_normalization(config.type)
    return Description.read(path, config.type, OWN_STEPS[config.type], called, saved, usual)


def fit_of(description: Description) -> ImageFit:
    """Images centred in a black border, resized without antialiasing."""
    height, width = description.folder.pair("image_resolution", (224, 224))
    return ImageFit(height, width, "centre")


def build(
    config: PiConfig, processor: PolicyProcessor, folder: Path | None, read_weights: bool, device: torch.device | str
) -> PiPolicy:
    """See `PublishedConfig.build`."""
    description = read_description(config, folder, read_weights)
    settings = PiSettings.of(description.folder, config.sizes)
    if not read_weights:
        return _assemble(config, processor, description, settings, _network(config, description, settings), False)
    processor = description.with_statistics(processor, config.statistics)
    if config.weights == "random" and folder is None:
        network = _network(config, description, settings)
        nn.init.normal_(network.words.weight, std=network.words.embedding_dim**-0.5)  # 1 when they are scaled
        return _assemble(config, processor, description, settings, network)
    with torch.device("meta"):
        network = _network(config, description, settings)
    precision = _precision(network, config)
    if folder is None:
        _fill(network, description.folder.path / WEIGHTS, precision, config, device=device)
    else:
        complete = config.weights == "random" or trains_whole(network)
        allocate(network, complete, device)  # the saved weights are read into this memory later
        if not complete:
            fill_backbone(
                network,
                folder,
                config.weights_file,
                precision,
                config.pretrained,
                ALIASES,
                BESIDE,
                NAMING,
                device,
            )
    return _assemble(config, processor, description, settings, network)


def of_lerobot(config: PiConfig, directory: Path, device: torch.device | str) -> PiPolicy:
    """The policy in a LeRobot folder, with the folder's processor, in eval mode."""
    description = _read(config, directory, config.pretrained)
    settings = PiSettings.of(description.folder, config.sizes)
    with torch.device("meta"):
        network = _network(config, description, settings)
    _fill(network, directory / WEIGHTS, _precision(network, config), config, device=device)
    processor = description.own_processor(fit_of(description), config.cameras)
    policy = _assemble(config, processor, description, settings, network)
    policy.eval()
    return policy


def check(config: PiConfig, folder: Path | None = None) -> None:
    """See `ModelConfig.check_pretrained`."""
    description = read_description(config, folder)
    settings = PiSettings.of(description.folder, config.sizes)
    with torch.device("meta"):
        network = _network(config, description, settings)
        complete = folder is not None and (trains_whole(network) or holds_backbone(folder))
        if config.weights == "pretrained" and not complete:
            check_file(config.weights_file(folder), network, config.pretrained, ALIASES, BESIDE, NAMING)
        if config.lora is not None:
            adapt_backbone(network, config.lora, LORA_KEY)
    _words(config, description, settings)


def open_sight(config: PiConfig, read_weights: bool) -> tuple[PiNetwork, tuple[str, ...], ImageFit]:
    """See `Opening`."""
    description = read_description(config, read_weights=read_weights)
    settings = PiSettings.of(description.folder, config.sizes)
    with torch.device("meta"):
        network, adapted = (_network(config, description, settings) for _ in range(2))
        if config.lora is not None:
            adapt_backbone(adapted, config.lora, LORA_KEY)
    parts = frozen_sight(network, {name for name, p in adapted.named_parameters() if p.requires_grad})
    if read_weights:
        only = {name for name, _ in sight_weights(network, parts)}
        _fill(network, description.folder.path / WEIGHTS, _precision(network, config), config, only=only)
    return network.eval(), parts, fit_of(description)


def check_dataset(
    config: PiConfig, cameras: Sequence[str], spec: ActionSpec, proprio_dim: int, folder: Path | None = None
) -> None:
    """See `ModelConfig.check_dataset`."""
    description = read_description(config, folder)
    _check_widths(description, PiSettings.of(description.folder, config.sizes), spec.dim, proprio_dim)
    description.check_statistics(config.statistics, spec.dim, proprio_dim)
    _slots(config, description, cameras, say=False)


def _check_widths(description: Description, settings: PiSettings, actions: int, proprio: int) -> None:
    # pi0.5 has the state in its prompt, which takes any number of values.
    most = settings.shape.max_state_dim if settings.shape.kind == "pi0" else proprio
    check_widths(description, actions, proprio, settings.shape.max_action_dim, most)


def _slots(config: PiConfig, description: Description, cameras: Sequence[str], say: bool) -> CameraSlots:
    folder, renamed = description.folder, description.files.renamed
    return assign_cameras(folder.cameras, cameras, config.cameras, renamed, called=folder.called, say=say)


def _fill(
    network: PiNetwork,
    path: Path,
    precision: Precision,
    config: PiConfig,
    device: torch.device | str = "cpu",
    only: Collection[str] | None = None,
) -> None:
    fill(network, path, precision, config.pretrained, ALIASES, device, only, BESIDE, NAMING)


def _network(config: PiConfig, description: Description, settings: PiSettings) -> PiNetwork:
    """The network with its trained weights marked, before adapters are added."""
    network = PiNetwork(settings.sizes, settings.shape)
    folder = description.folder
    backbone, vision = (
        folder.boolean(key, False) if own is None else own
        for own, key in (
            (config.train_expert_only, "train_expert_only"),
            (config.freeze_vision_encoder, "freeze_vision_encoder"),
        )
    )
    freeze(network, backbone or config.lora is not None, vision)
    return network


def _precision(network: PiNetwork, config: PiConfig) -> Precision:
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    low = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(config.precision)
    return lambda name, stored: held_in(name, name in trained, stored, low)


def _words(config: PiConfig, description: Description, settings: PiSettings) -> PromptTokenizer:
    """The tokenizer; PaliGemma's for a folder without processor files."""
    tokenizer = description.tokenizer(config, TokenizerStep(TOKENIZER, settings.words, "max_length"))
    tokenizer.check_vocabulary(settings.sizes.vocab_size)
    return tokenizer


def _assemble(
    config: PiConfig,
    processor: PolicyProcessor,
    description: Description,
    settings: PiSettings,
    network: PiNetwork,
    with_words: bool = True,
) -> PiPolicy:
    _check_widths(description, settings, processor.action_spec.dim, processor.proprio_dim)
    slots = _slots(config, description, processor.cameras, say=with_words)
    tokenizer = _words(config, description, settings) if with_words else None
    if config.lora is not None:
        adapt_backbone(network, config.lora, LORA_KEY)
    return PiPolicy(config, processor, description, settings, network, slots, tokenizer, fit_of(description))
