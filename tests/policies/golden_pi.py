"""pi0's and pi0.5's golden numbers, and the same numbers from Atlas's network."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from atlas.policies.pi import pi_network
from atlas.policies.pi.pi_names import TIED_TABLE, UNUSED, own_name
from atlas.policies.pi.pi_network import PiNetwork, PiShape, suffix_mask, suffix_positions
from atlas.policies.pi.pi_sizes import BackboneSizes
from atlas.policies.published.flow_pieces import look_ahead_mask, positions_of

FOLDER = Path(__file__).parents[1] / "fixtures"
KINDS = ("pi0", "pi05")

# The largest difference of a tensor by how its name begins; the first that fits. Masks and ids are the same.
LIMITS = {
    "image.": 1e-6,
    "vision_out": 2e-5,
    "image_emb": 2e-5,
    "prefix_embs": 2e-5,
    "time_emb": 1e-12,
    "sample.": 2e-4,
    "rtc.": 2e-4,
    "loss_elements": 5e-4,
    "loss": 2e-5,
    "state_normalized": 1e-6,
    "action_normalized": 1e-6,
    "": 1e-4,
}


@dataclass(frozen=True)
class Golden:
    """A set of golden numbers; tests do not change its tensors."""

    kind: str
    config: dict[str, Any]
    sizes: BackboneSizes
    weights: dict[str, torch.Tensor]  # as in the file
    inputs: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]

    def of(self, case: str) -> dict[str, torch.Tensor]:
        """Those of one batch, `full` or `missing`."""
        return {name.removeprefix(f"{case}."): t for name, t in self.tensors.items() if name.startswith(f"{case}.")}

    @property
    def shape(self) -> PiShape:
        names = ("chunk_size", "max_state_dim", "max_action_dim", "min_period", "max_period")
        return PiShape(self.kind, **{name: self.config[name] for name in names})  # type: ignore[arg-type]

    @property
    def actions(self) -> int:
        """Real dimensions of an action."""
        return self.config["output_features"]["action"]["shape"][0]  # type: ignore[no-any-return]


@functools.cache
def inputs(kind: str) -> dict[str, Any]:
    """What inputs.json says: tasks, cameras, cases."""
    return json.loads((FOLDER / kind / "inputs.json").read_text())  # type: ignore[no-any-return]


@functools.cache
def mistakes_of(kind: str) -> dict[str, Any]:
    """What deliberate mistakes do to the numbers; a set may have none."""
    file = FOLDER / kind / "mistakes.json"
    return json.loads(file.read_text()) if file.exists() else {}


@functools.cache
def golden(kind: str) -> Golden:
    folder = FOLDER / kind
    sizes = json.loads((folder / "backbone.json").read_text())
    sizes.pop("note", None)
    return Golden(
        kind,
        json.loads((folder / "config.json").read_text()),
        BackboneSizes(**sizes),
        load_file(folder / "model.safetensors"),
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "golden.safetensors"),
    )


def make_network(kind: str) -> PiNetwork:
    """With the golden weights."""
    numbers = golden(kind)
    network = PiNetwork(numbers.sizes, numbers.shape).eval()
    own = {own_name(name): tensor for name, tensor in numbers.weights.items() if name != UNUSED}
    own["words.weight"] = own.pop(TIED_TABLE)
    network.load_state_dict(own)
    return network


@torch.no_grad()
def compute(kind: str, case: str = "full") -> dict[str, torch.Tensor]:
    """Everything that golden.safetensors has of training, from the images and ids on, under its names."""
    numbers, network = golden(kind), make_network(kind)
    known = numbers.of(case)
    count = len(known["image.0"])  # of the samples whose images are known
    found: dict[str, torch.Tensor] = {}
    watch(network, found)
    images = [known[name] for name in sorted(known) if name.startswith("image.")]
    seen = [known[name][:count] for name in sorted(known) if name.startswith("image_mask.")]
    for slot, picture in enumerate(images):
        found[f"vision_out.{slot}"] = network.vision(picture)
        found[f"image_emb.{slot}"] = network.embed_image(picture)
    prefix = network.embed_prefix(images, seen, known["tokens"][:count], known["token_mask"][:count])
    read = network.read_prefix(prefix, whole=True)
    state = pad(known["state_normalized"], numbers.config["max_state_dim"])[:count]
    actions = pad(known["action_normalized"], numbers.config["max_action_dim"])[:count]
    noise, time = numbers.inputs["noise"][:count], numbers.inputs["time"][:count]
    noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    suffix, condition = network.embed_suffix(state, noisy, time)
    velocity = network.velocity(read.memory, prefix.valid, state, noisy, time)
    first, of_first = network.embed_suffix(state, numbers.inputs["sample_noise"][:count], torch.ones(count))
    errors = (noise - actions - velocity).square()
    assert read.out is not None
    found |= {
        "prefix_embs": prefix.embeddings,
        "prefix_pad_masks": prefix.valid,
        "prefix_att_masks": prefix.begins,
        "prefix_out": read.out,
        "sample.prefix_out": read.out,
        "sample.suffix_out.0": network.read_suffix(first, read.memory, prefix.valid, of_first),
        "suffix_embs": suffix.embeddings,
        "suffix_pad_masks": suffix.valid,
        "suffix_att_masks": suffix.begins.float(),
        "suffix_out": network.read_suffix(suffix, read.memory, prefix.valid, condition),
        "time_emb": pi_network.time_embedding(
            time, numbers.sizes.expert.width, network.shape.min_period, network.shape.max_period
        ),
        "x_t": noisy,
        "u_t": noise - actions,
        "velocity": velocity,
        "loss_elements": errors,
        "loss_per_sample": errors[..., : numbers.actions].mean((1, 2)),
    } | masks(prefix.valid, prefix.begins, suffix.valid, suffix.begins)
    return found if condition is None else found | {"adarms_cond": condition}


def masks(
    prefix_valid: torch.Tensor, prefix_begins: torch.Tensor, valid: torch.Tensor, begins: torch.Tensor
) -> dict[str, torch.Tensor]:
    both = torch.cat([prefix_valid, valid], 1), torch.cat([prefix_begins, begins], 1)
    return {
        "attention_mask": look_ahead_mask(*both),
        "position_ids": positions_of(both[0]),
        "sample.prefix_attention_mask": look_ahead_mask(prefix_valid, prefix_begins),
        "sample.prefix_position_ids": positions_of(prefix_valid),
        "sample.suffix_attention_mask": suffix_mask(prefix_valid, valid, begins),
        "sample.suffix_position_ids": suffix_positions(prefix_valid, valid),
    }


def watch(network: PiNetwork, found: dict[str, torch.Tensor]) -> None:
    """Have both streams noted after each layer."""
    for stream, layers in (("prefix", network.language.layers), ("suffix", network.expert.layers)):
        for depth, layer in enumerate(layers):
            layer.register_forward_hook(
                lambda _m, _i, out, name=f"layer.{depth}.{stream}": found.__setitem__(name, out[0])
            )


def pad(values: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(values, (0, width - values.shape[-1]))


def limit(name: str) -> float:
    return next(most for start, most in LIMITS.items() if name.startswith(start))


def differences(found: dict[str, torch.Tensor], known: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each tensor that is in both, the largest; over the rows that are valid, of the prefix."""
    valid = known["prefix_pad_masks"]
    worst = {}
    for name in found.keys() & known.keys():
        ours, theirs = found[name], known[name]
        rows = min(len(ours), len(theirs))
        ours, theirs = ours[:rows].double(), theirs[:rows].double()
        if name.endswith(("prefix", "prefix_out", "prefix_embs")):
            ours, theirs = ours[valid[:rows]], theirs[valid[:rows]]
        assert ours.shape == theirs.shape, f"{name}: {list(ours.shape)} and {list(theirs.shape)}"
        worst[name] = float((ours - theirs).abs().max())
    return worst
