"""The policy of the type `smolvla`: images, an instruction and the state to a chunk of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from atlas.data.image_fit import ImageFit
from atlas.policies.processor import PolicyProcessor
from atlas.policies.published.camera_slots import CameraSlots
from atlas.policies.published.description import Description
from atlas.policies.published.flow_pieces import FlowTime
from atlas.policies.published.flow_policy import FlowPolicy, Prefix, pad_last
from atlas.policies.published.tokenized_prompt import PromptTokenizer
from atlas.policies.smolvla.smolvla_network import SmolVLANetwork
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from atlas.policies.smolvla.smolvla_sizes import VLM_CONFIG
from atlas.types import Batch


class SmolVLAPolicy(FlowPolicy):
    """An instruction without a final newline gets one; the state is one token."""

    config: SmolVLAConfig
    network: SmolVLANetwork
    lerobot_steps = (
        "rename_observations_processor",
        "to_batch_processor",
        "smolvla_new_line_processor",
        "tokenizer_processor",
        "device_processor",
        "normalizer_processor",
    )

    def __init__(
        self,
        config: SmolVLAConfig,
        processor: PolicyProcessor,
        description: Description,
        network: SmolVLANetwork,
        slots: CameraSlots,
        tokenizer: PromptTokenizer | None,
        fit: ImageFit,
    ) -> None:
        super().__init__(
            config,
            processor,
            description,
            slots,
            tokenizer,
            fit,
            network.sizes.action,
            FlowTime(),
            description.folder.integer("num_steps", 10, most=1000),
        )
        self.network = network
        self._hold_trained()
        self._context_trained = self._trains_context()

    def look(self, batch: Batch) -> Prefix:
        state = self.state_scaler.normalize(batch.proprio.float(), batch.source)
        followed = batch.images is not None and batch.images.requires_grad  # see `attention.by_gradient`
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self._context_trained or followed)):
            context = self.network.read_context(*self.embed_context(batch))
        return self.network.read_state(context, self.network.embed_state(pad_last(state, self.network.sizes.state)))

    def embed_context(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of images and words, and which are valid; see `SmolVLANetwork.embed_context`."""
        device = batch.proprio.device
        pictures = self.picture_tokens(batch)
        empty = [self.network.embed_pictures(self.empty_picture(device)) for _ in self.slots.absent]
        there = [True] * len(pictures) + [False] * len(empty)
        return self.network.embed_context([*pictures, *empty], there, *self.words(prompts(batch.instruction), device))

    def velocity(self, prefix: Prefix, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.network.velocity(prefix, x, time)

    @property
    def prefix_trained(self) -> bool:
        return self._context_trained or any(name.startswith("network.state_proj.") for name in self._trained)

    def _trains_context(self) -> bool:
        return any(name.startswith("network.vlm_with_expert.vlm.") for name in self._trained)

    def train(self, mode: bool = True) -> SmolVLAPolicy:
        """Set the mode; a frozen vision-language model stays in eval mode."""
        super().train(mode)
        if not self._context_trained:
            self.network.get_submodule("vlm_with_expert.vlm").eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """The trained layers of the vision tower and the language model, then the expert's."""
        layers = [*self.network.vision.layers, *self.network.text_layers, *self.network.expert_layers]
        return [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]

    def learning_rate_factor(self, name: str) -> float:
        if self.config.weights == "pretrained":
            return 1.0
        return self.network.drawn_rate_factor(name.removeprefix("network."))

    def parts(self) -> dict[str, nn.Module]:
        both = self.network.get_submodule("vlm_with_expert")
        heads = {name: part for name, part in self.network.named_children() if name != "vlm_with_expert"}
        model = both.get_submodule("vlm.model")
        return {
            "vision": model.get_submodule("vision_model"),
            "connector": model.get_submodule("connector"),
            "language": model.get_submodule("text_model"),
            "lm_head": both.get_submodule("vlm.lm_head"),
            "expert": both.get_submodule("lm_expert"),
            **heads,
        }

    def lerobot_options(self) -> Mapping[str, Any]:
        keys = ("train_expert_only", "freeze_vision_encoder", "train_state_proj")
        chosen = {key: getattr(self.config, key) for key in keys}
        return {key: value for key, value in chosen.items() if value is not None} | {"num_steps": self._steps}

    def extra_files(self) -> Mapping[str, Any]:
        """The vision-language model's config, where the name in config.json does not stand for it."""
        source = self.network.sizes.source
        return {} if source is None else {VLM_CONFIG: source}

    @torch.no_grad()
    def count_tokens(self, batch: Batch) -> dict[str, int]:
        """The number of tokens of images, words and the state together, and of the actions."""
        return {"prefix": self.embed_context(batch)[0].shape[1] + 1, "actions": self.processor.action_horizon}


def prompts(instructions: Sequence[str]) -> list[str]:
    """The instructions, each ending in a newline."""
    return [text if text.endswith("\n") else f"{text}\n" for text in instructions]
