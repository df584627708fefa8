"""Starting a new run from the weights of another."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from atlas.config import Config
from atlas.config.section import differences
from atlas.data.training_data import TrainingData
from atlas.errors import InputError
from atlas.policies.base import Policy, load_model_config, load_policy
from atlas.policies.processor import PolicyProcessor
from atlas.registry import resolve_policy
from atlas.registry.lerobot_policies import is_lerobot_policy
from atlas.system.file_store import CONFIG

logger = logging.getLogger(__name__)


def check_start(reference: str, config: Config, data: TrainingData) -> None:
    """Raises InputError that names what differs if the policy at `reference` cannot be trained further with this config
    and data; reads no weights."""
    folder = resolve_policy(reference)
    if is_lerobot_policy(folder):
        raise InputError(
            f"training.start_from is {reference}, a policy as LeRobot saves them. Name it as model.pretrained, with "
            "the model.type that it has."
        )
    both = (load_model_config(folder / CONFIG), config.model)
    # How numbers are scaled comes with the weights.
    differing = differences("model", *(model.model_dump(exclude={"processor"}) for model in both))
    processor, dataset = PolicyProcessor.load(folder / "processor.json"), data.dataset
    pairs: list[tuple[str, object, object]] = [
        ("data.image_size", processor.image_size, config.data.image_size),
        ("data.history", processor.history, data.train.history),
        ("data.action_horizon", processor.action_horizon, config.data.action_horizon),
        ("data.cameras", list(processor.cameras), list(data.cameras)),
        ("the number of proprio", processor.proprio_dim, dataset.proprio_dim),
    ]
    actions = processor.action_spec.differences(dataset.action_spec)
    pairs += [(f"the actions' {what}", was, is_now) for what, was, is_now in actions]
    differing += [f"{what} was {was} and is {is_now}" for what, was, is_now in pairs if was != is_now]
    if differing:
        raise InputError(
            f"training.start_from is {reference}, whose policy does not fit this run: {'; '.join(differing)}. Set them "
            f"as they were (`atlas train --config` with the config.yaml of its run), or start without it."
        )


def start_policy(reference: str, processor: PolicyProcessor, device: torch.device | str = "cpu") -> Policy:
    """The policy at `reference` with its weights and its scaling, for the data of `processor`, on the device.

    Numbers keep the meaning that they had when the weights were trained: each source of the new data is scaled like the
    old source that was recorded in the same world, otherwise like the first old one.
    """
    folder = resolve_policy(reference)
    was = PolicyProcessor.load(folder / "processor.json")
    statistics = []
    for source in processor.statistics:
        old = was.statistics[was.source_for(source.environment)]
        statistics.append(
            replace(
                source,
                action=old.action,
                relative_action=old.relative_action,
                proprio=old.proprio,
                action_scaling=old.action_scaling,
                proprio_scaling=old.proprio_scaling,
            )
        )
    logger.info("Weights and scaling are those of %s.", _named(reference, folder))
    kept = replace(processor, statistics=tuple(statistics), scaling=was.scaling, relative=was.relative)
    return load_policy(folder, kept, device=device)


def _named(reference: str, folder: Path) -> str:
    return reference if str(folder) == reference else f"{reference} ({folder})"
