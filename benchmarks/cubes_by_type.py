"""Small networks of the types smolvla, pi0, pi05 and vlm, from random weights, on 1,000 demonstrations of the cubes.

    python benchmarks/cubes_by_type.py [--types smolvla pi0 pi05 vlm] [--steps 5000] [--episodes 50] [--data DIR]
                                       [--out DIR] [key=value ...]

For each type it writes a folder in the form of published weights, with sizes that two cores can train; `atlas train`
trains all of it, and `atlas eval` plays episodes that training has not seen with the last weights. What goes in and
comes out is the same code as with published weights. Prints a table for docs/benchmarks.md.

Such a network has to learn from nothing to see, and to listen. It sees by the camera in the hand, which shows where
the cubes are from the first picture on. Its tokenizer says a colour 16 times, since a word that is one of 70 tokens has
next to no weight in an attention that has yet to learn what to attend to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from default_job import ATLAS, row, run
from machine import describe

from atlas.environments.catalog import make_environment
from atlas.environments.cubes import INSTRUCTIONS
from atlas.policies.base import Policy, load_policy
from atlas.rollout.chunk_executor import ChunkExecutor
from atlas.types import Observation

CAMERAS = ("eye_in_hand",)
SIDE, PATCH, WIDTH, LAYERS, HEADS, HEAD_DIM = 64, 8, 64, 2, 4, 32
SAID = 16  # how often the tokenizer says a colour
STATE, ACTION, CHUNK = 8, 7, 8
WORDS = "pick up the red green cube task state action : , ; user assistant".split() + [str(n) for n in range(-1, 256)]
MARKS = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
VOCABULARY = len(MARKS) + len(WORDS)
TYPES = ("smolvla", "pi0", "pi05", "vlm")
# The default job's, in place of the slow learning rates that published weights are trained further with.
RECIPE: dict[str, object] = {
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "final_learning_rate": "null",
    "decay_steps": "null",
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "ema_decay": 0.995,
    "val_interval": 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--data", type=Path, help="demonstrations of the cubes (default: 1,000 are recorded)")
    parser.add_argument("--out", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="atlas-benchmark-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = [f"data.path={arguments.data.resolve()}"] if arguments.data else ["data.record.episodes=1000"]
    rows = []
    for kind in arguments.types:
        settings = [*settings_of(kind, write_folder(kind, out / "networks" / kind)), *data]
        rows.append(measured(kind, out, [*settings, *arguments.overrides], arguments.steps, arguments.episodes))
    print(f"\n{describe()}\n")
    print("| type | parameters | steps | minutes | heeds | success | 95% interval | by instruction | mean length |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def measured(kind: str, out: Path, settings: list[str], steps: int, episodes: int) -> str:
    """A row: train, then play."""
    begun = time.monotonic()
    lengths = [f"training.max_steps={steps}", f"checkpoint.save_interval={min(steps, 1000)}"]
    run([*ATLAS, "train", f"run_name={kind}", *lengths, *settings], cwd=out)
    minutes = (time.monotonic() - begun) / 60
    latest = out / "outputs" / kind / "checkpoints" / "latest"
    command = [*ATLAS, "eval", "--checkpoint", str(latest), "--env", "cubes", "--json", "--episodes", str(episodes)]
    found: dict[str, Any] = json.loads(run(command, cwd=out, capture=True))
    policy = load_policy(latest / "policy")
    size = sum(p.numel() for p in policy.parameters())
    return row(f"{kind} | {size:,} | {steps:,} | {minutes:.0f} | {heeds_words(policy):.2f}", found)


def heeds_words(policy: Policy, starts: int = 24) -> float:
    """Column "heeds": how much farther a first chunk goes towards the cube that is named than if the other were.

    The mean over starts of the sum of its actions along the line between the cubes, in units of the actions. 0: it
    does not listen.
    """
    env = make_environment("cubes", policy.processor.camera_size)
    try:
        farther = [_farther(policy, env.reset(seed=seed), env.positions()) for seed in range(starts)]
    finally:
        env.close()
    return float(np.mean(farther))


def _farther(policy: Policy, seen: Observation, positions: dict[str, np.ndarray]) -> float:
    ways = []
    for instruction in INSTRUCTIONS:
        actor = ChunkExecutor(policy.eval(), policy.processor.action_horizon, environment="cubes")
        ways.append(actor.plan({0: replace(seen, instruction=instruction)})[0][:, :2].sum(0))
    between = (positions["red cube"] - positions["green cube"])[:2]
    return float(between @ (ways[0] - ways[1]) / np.linalg.norm(between))


def settings_of(kind: str, folder: Path) -> list[str]:
    """All of the network is trained, from random weights, with the default job's batches and pictures as they are."""
    section: dict[str, Any] = {"type": kind}
    if kind == "vlm":
        backbone = {"pretrained": str(folder), "freeze": False, "learning_rate_factor": 1.0, "precision": "fp32"}
        section |= {"backbone": backbone, "head": {"name": "vlm-oft", "dim": 128}}
    else:
        section |= {"pretrained": str(folder), "weights": "random", "statistics": "dataset", "noise_draws": 4}
    if kind == "smolvla":
        section |= {"train_expert_only": False, "freeze_vision_encoder": False}
    training = [f"training.{key}={value}" for key, value in RECIPE.items()]
    plain = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    data: dict[str, Any] = {"action_horizon": CHUNK, "cameras": list(CAMERAS), "augment": plain}
    settings = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    return [f"model={json.dumps(section)}", *settings, "evaluation.episodes=0", *training]


# ---- folders in the form of published weights ----------------------------------------------------------------


def write_folder(kind: str, folder: Path) -> Path:
    """What describes a network of a type, and its tokenizer; of `vlm` also random weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kind == "vlm":
        _write_vlm(folder)
        return folder
    scaled = "QUANTILES" if kind == "pi05" else "MEAN_STD"
    heads = {"num_heads": HEADS, "num_kv_heads": 2, "head_dim": HEAD_DIM}
    config: dict[str, Any] = {
        "type": kind,
        "input_features": {
            **{f"observation.images.{name}": {"type": "VISUAL", "shape": [3, SIDE, SIDE]} for name in CAMERAS},
            "observation.state": {"type": "STATE", "shape": [STATE]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": scaled, "ACTION": scaled},
        "chunk_size": CHUNK,
        "max_state_dim": STATE,
        "max_action_dim": ACTION,
        "tokenizer_max_length": SAID + (24 if kind == "pi05" else 8),  # pi0.5 is told its state in words
    }
    if kind == "smolvla":
        config |= {
            "resize_imgs_with_padding": [SIDE, SIDE],
            "vlm_model_name": "./vlm",
            "num_vlm_layers": LAYERS + 1,  # the last is not trained, since nothing reads what comes out of it
            "pad_language_to": "max_length",
            "self_attn_every_n_layers": 2,
            "expert_width_multiplier": 1.0,
        }
        _write(folder / "vlm" / "config.json", _smolvlm())
    else:
        config["image_resolution"] = [SIDE, SIDE]
        layers = {"width": WIDTH, "depth": LAYERS, "mlp_dim": 2 * WIDTH, **heads}
        sizes = {"text": layers, "expert": layers, "vision": _vit(), "vocab_size": VOCABULARY}
        _write(folder / "backbone.json", sizes)
    _write(folder / "config.json", config)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def _vit() -> dict[str, Any]:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    return {**sizes, "num_attention_heads": HEADS, "patch_size": PATCH, "image_size": SIDE}


def _smolvlm() -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS + 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,  # all that the expert learns of images and words passes through these
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
    }
    return {
        "model_type": "smolvlm",
        "scale_factor": 1,  # patches are not joined: two cubes in one token are hard to tell apart
        "image_token_id": MARKS.index("<image>"),
        "text_config": text,
        "vision_config": {"model_type": "smolvlm_vision", **_vit()},
    }


def _write_vlm(folder: Path) -> None:
    """Florence-2, whose image part begins with convolutions: three of its stages, and four layers that read."""
    import torch
    import transformers as hf

    vision: dict[str, Any] = {
        "depths": [1, 1, 1],
        "embed_dim": [WIDTH // 2, WIDTH, WIDTH],
        "num_heads": [2, HEADS, HEADS],
        "num_groups": [2, HEADS, HEADS],
        "patch_size": [7, 3, 3],
        "patch_stride": [4, 2, 2],  # 4 x 4 tokens an image, so that a word is one of few that the layers read
        "patch_padding": [3, 1, 1],
        "patch_prenorm": [False, True, True],
        "window_size": 4,
        "mlp_ratio": 2.0,
        "drop_path_rate": 0.0,
        "projection_dim": WIDTH,
    }
    text: dict[str, Any] = {
        "model_type": "bart",
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "encoder_layers": 4,
        "decoder_layers": 1,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "max_position_embeddings": 192,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    image = MARKS.index("<image>")
    config = hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=image)  # type: ignore[attr-defined]
    model = hf.Florence2ForConditionalGeneration(config)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        if parameter.ndim > 1:  # transformers' deviation of 0.02 is for layers that are hundreds of times as wide
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255, "resample": 3}
    _write(folder / "preprocessor_config.json", {**pixels, "size": {"height": SIDE, "width": SIDE}})


def make_tokenizer() -> Any:
    """A word or a number a token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    said = [normalizers.Replace(colour, " ".join([colour] * SAID)) for colour in ("red", "green")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *said])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"-?\d+|\w+|[^\s\w]"), "removed", invert=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
