"""pi0 and pi0.5 in their published sizes, without memory: the tensors of the published files, and what fits where."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.pi.pi_base import base_description
from atlas.policies.pi.pi_names import TABLE, TIED_TABLE, UNUSED, published_name
from atlas.policies.pi.pi_network import PiNetwork
from atlas.policies.pi.pi_settings import PiSettings
from atlas.policies.pi.pi_sizes import BackboneSizes, GemmaSizes
from atlas.policies.summary import summarize
from tests.policies.golden_pi import FOLDER, KINDS

CONFIGS = Path(atlas.__file__).parent / "configs"


def published(kind: str) -> dict[str, Any]:
    return json.loads((FOLDER / kind / "checkpoint_shapes.json").read_text())  # type: ignore[no-any-return]


def network_of(kind: str) -> PiNetwork:
    description = base_description(f"hf:lerobot/{kind}_base")
    assert description is not None
    settings = PiSettings.of(description.folder)
    with torch.device("meta"):
        return PiNetwork(settings.sizes, settings.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tensors_of_the_published_file_are_accounted_for(kind: str) -> None:
    file = {name: tuple(entry["shape"]) for name, entry in published(kind)["tensors"].items()}

    ours = {published_name(name): tuple(tensor.shape) for name, tensor in network_of(kind).state_dict().items()}

    ours[TIED_TABLE] = ours.pop(TABLE)
    assert len(file) == published(kind)["number_of_tensors"] == {"pi0": 777, "pi05": 812}[kind]
    assert ours | {UNUSED: file[UNUSED]} == file
    counted = sum(math.prod(shape) for shape in ours.values()) + math.prod(file[UNUSED])
    assert counted == published(kind)["number_of_parameters"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_sizes_are_the_usual_ones(kind: str) -> None:
    backbone = published(kind)["backbone"]

    description = base_description(f"hf:lerobot/{kind}_base")

    assert description is not None
    found = PiSettings.of(description.folder).sizes.to_dict()
    usual = {"projection_dim": None, "hidden_act": "gelu_pytorch_tanh"}
    assert found == {name: value for name, value in backbone.items() if name != "source"} | usual
    config = published(kind)["config"]
    assert {name: config[name] for name in description.folder.config if name in config} == {
        name: value for name, value in description.folder.config.items() if name in config
    }


def test_pictures_of_another_resolution_have_positions_of_their_own() -> None:
    description = base_description("hf:lerobot/pi0_base")
    assert description is not None
    folder = description.folder

    larger = PiSettings.of(replace(folder, config={**folder.config, "image_resolution": [448, 448]}))

    assert larger.sizes.vision.patches == 4 * PiSettings.of(folder).sizes.vision.patches == 1024
    with pytest.raises(InputError, match=r"'image_resolution' is .*, expected the same number twice"):
        PiSettings.of(replace(folder, config={**folder.config, "image_resolution": [224, 448]}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "most_gib", "gpus"),
    [("pi0_lora_1gpu", 20, 1), ("pi05_expert_1gpu", 40, 1), ("pi0_8gpu", 20, 8), ("pi05_8gpu", 20, 8)],
)
def test_the_shipped_configs_fit_their_gpus(config: str, most_gib: float, gpus: int) -> None:
    """24 GB for all but pi05_expert_1gpu, which has 48: what is left is for the work of one block and the allocator."""
    settings = load_config(CONFIGS / f"{config}.yaml", [])

    found = summarize(settings)

    kind = settings.model.type
    memory = found["memory_gib"]
    frozen = found["parameters"] - found["trainable_parameters"]
    copies = 5 if settings.training.ema_decay else 4  # weights, gradients, two moments, the average
    assert memory["weights_and_optimizer"] * 2**30 == 4 * copies * found["trainable_parameters"] + 2 * frozen
    # The rest of FSDP's shares, which is put together for each step: all that is no layer, once in float32.
    together = 4 * 0.6 if gpus > 1 else 0
    assert memory["weights_and_optimizer"] / gpus + memory["activations"] + together < most_gib
    by_part = {part["name"]: part["flops"] for part in found["parts"]}
    cameras, horizon = 2, settings.data.action_horizon
    words = {"pi0": 48, "pi05": 200}[kind]
    expected = {
        "vision": cameras * vision_flops(),
        "projector": cameras * 256 * 2 * 1152 * 2048,
        "language": language_flops(cameras * 256 + words),
        "expert": expert_flops(kind, cameras * 256 + words, horizon),
    }
    adapted = settings.model.lora is not None  # type: ignore[attr-defined]
    for name, flops in expected.items():
        assert by_part[name] == pytest.approx(flops, rel=0.03 if adapted else 1e-6), name
    forward, training = found["flops_per_sample"], found["training_flops_per_sample"]
    most = {"pi0_lora_1gpu": 2.2, "pi05_expert_1gpu": 1.01}.get(config, 3.001)
    assert forward < training < most * forward


def vision_flops() -> int:
    """Of a picture: patches, then 27 layers of 4 square matrices, an MLP and attention. Twice the multiplications."""
    n, d, mlp = 256, 1152, 4304
    return 2 * n * d * 3 * 14**2 + 27 * (2 * n * (4 * d * d + 2 * d * mlp) + 4 * n * n * d)


def layer_flops(sizes: GemmaSizes, tokens: int, seen: int) -> int:
    """Of a layer over `tokens`, each looking at `seen`."""
    queries, others = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    matrices = sizes.width * (2 * queries + 2 * others + 3 * sizes.mlp_dim)
    return 2 * tokens * matrices + 4 * tokens * seen * queries


def language_flops(tokens: int) -> int:
    """Of the last layer keys and values alone are computed."""
    sizes = BackboneSizes().text
    keys_and_values = 2 * tokens * sizes.width * 2 * sizes.num_kv_heads * sizes.head_dim
    return (sizes.depth - 1) * layer_flops(sizes, tokens, tokens) + keys_and_values


def expert_flops(kind: str, prefix: int, horizon: int) -> int:
    sizes = BackboneSizes().expert
    tokens = horizon + (kind == "pi0")
    norms = 2 * sizes.width * 3 * sizes.width * (2 * sizes.depth + 1) if kind == "pi05" else 0
    return sizes.depth * layer_flops(sizes, tokens, prefix + tokens) + norms
