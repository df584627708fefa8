"""The policy of the types `pi0` and `pi05`: images, an instruction and the state to a chunk of actions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from atlas.data.image_fit import ImageFit
from atlas.errors import InputError
from atlas.policies.adapters import merged_state
from atlas.policies.pi.pi_names import BESIDE, NAMING, TABLE, TIED_TABLE, UNUSED, published_name
from atlas.policies.pi.pi_network import PiNetwork
from atlas.policies.pi.pi_section import PiConfig
from atlas.policies.pi.pi_settings import BACKBONE_FILE, PiSettings, named_sizes
from atlas.policies.pi.trained_parts import BACKBONE, is_backbone, trains_whole
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import CameraSlots
from atlas.policies.published.description import Description
from atlas.policies.published.flow_policy import FlowPolicy, Prefix, pad_last
from atlas.policies.published.tokenized_prompt import PromptTokenizer
from atlas.policies.published.weight_filling import read_beside
from atlas.types import Batch

logger = logging.getLogger(__name__)

BINS = 256  # of the normalised state, from -1 in steps of 2 / BINS

LEROBOT_STEPS = {  # of the preprocessor, in the order of 0.4.4 and main
    "pi0": (
        "rename_observations_processor",
        "to_batch_processor",
        "pi0_new_line_processor",
        "tokenizer_processor",
        "device_processor",
        "normalizer_processor",
    ),
    "pi05": (
        "rename_observations_processor",
        "to_batch_processor",
        "normalizer_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "tokenizer_processor",
        "device_processor",
    ),
}


class PiPolicy(FlowPolicy):
    """Slots without a camera are left out: no token would attend to theirs, and positions would not change."""

    config: PiConfig
    network: PiNetwork

    def __init__(
        self,
        config: PiConfig,
        processor: PolicyProcessor,
        description: Description,
        settings: PiSettings,
        network: PiNetwork,
        slots: CameraSlots,
        tokenizer: PromptTokenizer | None,
        fit: ImageFit,
    ) -> None:
        width = settings.shape.max_action_dim
        super().__init__(config, processor, description, slots, tokenizer, fit, width, settings.time, settings.steps)
        self.settings, self.network = settings, network
        self._hold_trained()
        if trains_whole(network):  # save the unused weights too
            self._trained = frozenset(name for name, _ in self.named_parameters())
        self._backbone_trained = any(is_backbone(name) for name in self._trained)

    def look(self, batch: Batch) -> Prefix:
        state = self.state_scaler.normalize(batch.proprio.float(), batch.source)
        pictures, words = self.picture_tokens(batch), self.words(self.prompts(batch, state), batch.proprio.device)
        there = torch.ones(len(batch), dtype=torch.bool, device=batch.proprio.device)
        tokens = self.network.join_prefix(pictures, [there] * len(pictures), *words)
        memory = self.network.read_prefix(tokens).memory
        padded = pad_last(state, self.settings.shape.max_state_dim) if self.settings.shape.kind == "pi0" else None
        return Prefix([keys for keys, _ in memory], [values for _, values in memory], tokens.valid, padded)

    def prompts(self, batch: Batch, state: torch.Tensor) -> list[str]:
        """The texts of the prompts; state: float32 [B, P], normalised."""
        if self.settings.shape.kind == "pi0":
            return command_prompts(batch.instruction)
        if state.is_meta:  # only shapes are needed
            return list(batch.instruction)
        return state_prompts(batch.instruction, state)

    def velocity(self, prefix: Prefix, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        memory = list(zip(prefix.keys, prefix.values, strict=True))
        return self.network.velocity(memory, prefix.valid, prefix.state, x, time)

    # ---- learning ----------------------------------------------------------------------------------------

    @property
    def prefix_trained(self) -> bool:
        return self._backbone_trained

    def train(self, mode: bool = True) -> PiPolicy:
        """Set the mode; a fully frozen backbone stays in eval mode."""
        super().train(mode)
        if not self._backbone_trained:
            for part in BACKBONE:
                self.network.get_submodule(part).eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """The trained layers of the backbone's towers, then the expert's."""
        layers = [*self.network.vision.blocks, *self.network.language.layers, *self.network.expert.blocks]
        return [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]

    def learning_rate_factor(self, name: str) -> float:
        return self.config.backbone_learning_rate_factor if is_backbone(name) else 1.0

    def parts(self) -> dict[str, nn.Module]:
        return dict(self.network.named_children())

    # ---- export to LeRobot -------------------------------------------------------------------------------

    @property
    def lerobot_steps(self) -> tuple[str, ...]:  # type: ignore[override]
        return LEROBOT_STEPS[self.settings.shape.kind]

    def lerobot_options(self) -> Mapping[str, Any]:
        expert_only = self.config.train_expert_only if self.config.lora is None else True
        chosen = {"train_expert_only": expert_only, "freeze_vision_encoder": self.config.freeze_vision_encoder}
        return {key: value for key, value in chosen.items() if value is not None} | {"num_inference_steps": self._steps}

    def extra_files(self) -> Mapping[str, Any]:
        """The sizes, where they differ from those of the variants that config.json names."""
        known = named_sizes(self.description.folder)
        return {} if self.settings.sizes == known else {BACKBONE_FILE: self.settings.sizes.to_dict()}

    def named_for_lerobot(self) -> dict[str, torch.Tensor]:
        """All weights, with the two heads that compute nothing, from the file with which training began.

        Where the word table has been trained, the language model's head is a copy of it, so that releases that read
        only one of the two read the right one.
        """
        weights = {published_name(name): tensor for name, tensor in merged_state(self.network).items()}
        if self.config.lora is not None:  # merged weights are float32; give all layers the same precision
            weights = {name: tensor.float() for name, tensor in weights.items()}
        heads = self._heads()
        if TIED_TABLE not in heads or self.network.words.weight.requires_grad:
            heads[TIED_TABLE] = weights[TABLE].clone()
        return {f"model.{name}": tensor for name, tensor in (weights | heads).items()}

    def _heads(self) -> dict[str, torch.Tensor]:
        sizes = self.settings.sizes
        try:
            if self.config.weights == "pretrained":
                return read_beside(self.origin or self.config.weights_file(), BESIDE, NAMING)
            why = "the policy began with random weights"
        except InputError as error:
            why = str(error)
        logger.warning("'%s', which computes nothing, is written as zeros: %s", UNUSED, why)
        return {UNUSED: torch.zeros(sizes.vocab_size, sizes.expert.width)}

    @torch.no_grad()
    def count_tokens(self, batch: Batch) -> dict[str, int]:
        """The number of tokens of images and words together, and of the actions."""
        patches = self.settings.sizes.vision.patches * len(self.slots.present)
        words = self.words(list(batch.instruction), batch.proprio.device)[0].shape[1]
        return {"prefix": patches + words, "actions": self.processor.action_horizon}


def command_prompts(instructions: Sequence[str]) -> list[str]:
    """pi0's prompts: the instruction, ending in a newline."""
    return [text if text.endswith("\n") else f"{text}\n" for text in instructions]


def state_bins(state: torch.Tensor) -> torch.Tensor:
    """The bin of each number of normalised states float32 [B, P], int64 [B, P]: -1 below -1, and 255, the last one,
    from 0.9921875 up. The bins' edges are float64, and nothing is clipped."""
    edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64, device=state.device)[:-1]
    return torch.bucketize(state.double(), edges, right=True) - 1


def state_prompts(instructions: Sequence[str], state: torch.Tensor) -> list[str]:
    """pi0.5's prompts: the instruction in one line, then the bins of the state [B, P], which is normalised and without
    padding."""
    prompts = []
    # Words are the host's: of a state on a GPU this waits, once.
    for text, bins in zip(instructions, state_bins(state).cpu().tolist(), strict=True):
        line = text.strip().replace("_", " ").replace("\n", " ")
        prompts.append(f"Task: {line}, State: {' '.join(map(str, bins))};\nAction: ")
    return prompts
