"""What policies on published backbones take: parameters, tokens, arithmetic and memory, side by side.

    python benchmarks/backbones.py [--only NAME] [--head vlm-oft] [--gpu h100]

Nothing is downloaded, and no weight is made: the models are built on torch's meta device from the sizes in their
config.json, which are written down in backbone_models.py, and counted as `atlas model summary` counts. Two cameras,
chunks of eight actions. Image encoders are parts of a modular policy with T5's base size, frozen, and bidirectional
fusion, as in atlas/configs/libero_dinov3_8gpu.yaml. Prints the tables of docs/policy.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from backbone_models import ENCODERS, IMAGE_TEXT_MODELS, Published, describe_model, describe_t5

from atlas.config import load_config
from atlas.policies.summary import summarize

_FUSION = "model.fusion={name: bidirectional, dim: 512, exchange_layers: 2, layers: 4, heads: 8}"
_LORA = "{rank: 16, alpha: 32}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="of the models, those with this in their name")
    parser.add_argument("--head", default="vlm-oft", help="of the image-text models: vlm-oft, vlm-adapter, vlm-expert")
    parser.add_argument("--gpu", default="h100", help="for samples a second, at 45%% of its peak")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        language = describe_t5(root / "t5")
        chosen = [model for model in ENCODERS if arguments.only in model.name]
        ways = ("frozen", "lora", "trained")
        if chosen:
            print(_head(f"image encoder (with T5 base, frozen) on {arguments.gpu}"))
        for number, model in enumerate(chosen):
            described = describe_model(model, root / f"encoder{number}")
            print(_row(model, [_encoder(model, described, language, way, arguments.gpu) for way in ways]), flush=True)
        chosen = [model for model in IMAGE_TEXT_MODELS if arguments.only in model.name]
        if chosen:
            print(_head(f"image-text model with {arguments.head} on {arguments.gpu}"))
        for number, model in enumerate(chosen):
            described = describe_model(model, root / f"model{number}")
            found = [_image_text(model, described, arguments.head, way, arguments.gpu) for way in ways]
            print(_row(model, found), flush=True)


def _encoder(model: Published, folder: Path, language: Path, way: str, gpu: str) -> dict[str, Any]:
    vision = f"name: huggingface, pretrained: {folder}, {_way(way)}"
    text = f"model.language={{name: huggingface, pretrained: {language}}}"
    return _summary(model, [f"model.vision={{{vision}}}", text, _FUSION], gpu)


def _image_text(model: Published, folder: Path, head: str, way: str, gpu: str) -> dict[str, Any]:
    keys = f"type: vlm, backbone: {{pretrained: {folder}, {_way(way)}}}, head: {{name: {head}}}"
    return _summary(model, [f"model={{{keys}}}", *model.overrides], gpu)


def _way(way: str) -> str:
    return {"frozen": "freeze: true", "lora": f"lora: {_LORA}", "trained": "freeze: false"}[way]


def _summary(model: Published, overrides: Sequence[str], gpu: str) -> dict[str, Any]:
    common = [f"data.image_size={model.image_size}", "data.action_horizon=8", "data.batch_size=1"]
    return summarize(load_config({}, [*common, *overrides]), gpu)


def _head(what: str) -> str:
    columns = (
        what,
        "pixels",
        "tokens a view",
        "parameters",
        "trained: frozen / LoRA / all",
        "GFLOP a chunk",
        "GFLOP a training sample",
        "weights and optimizer, GiB",
        "kept for the way back, GiB a sample",
        "samples/s",
    )
    return "\n".join([f"\n| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"])


def _row(model: Published, found: Sequence[dict[str, Any]]) -> str:
    """Of a model frozen, with adapters and trained on."""
    first = found[0]
    cells = [
        model.name,
        str(model.image_size),
        str(first["parts"][0]["tokens"] // 2),
        _millions(first["parameters"]),
        _each(_millions(f["trainable_parameters"]) for f in found),
        f"{first['flops_per_sample'] / 1e9:,.0f}",
        _each(f"{f['training_flops_per_sample'] / 1e9:,.0f}" for f in found),
        _each(f"{f['memory_gib']['weights_and_optimizer']:.1f}" for f in found),
        _each(f"{f['memory_gib']['activations']:.2f}" for f in found),
        _each(f"{0.45 * f['roofline']['samples_per_second']:,.0f}" for f in found),
    ]
    return f"| {' | '.join(cells)} |"


def _each(values: Iterable[str]) -> str:
    return " / ".join(values)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f}M"


if __name__ == "__main__":
    main()
