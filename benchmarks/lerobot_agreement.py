"""A policy that Atlas has written for LeRobot, in LeRobot's own class: are the actions the same?

    python benchmarks/lerobot_agreement.py write FOLDER [--policy REF]          with Atlas's Python
    python benchmarks/lerobot_agreement.py compare FOLDER [--right-positions]   with LeRobot's, 0.4.4 or newer

The first form exports a policy of type smolvla, pi0 or pi05 (default: the tiny SmolVLA of the tests) into
FOLDER/lerobot, and writes observations, noise and its own actions beside it. The second loads the folder with LeRobot's
classes and processors, and prints the largest difference of actions, which it ends with 1 for if it is more than 2e-4.
Both run on the CPU in float32. pi0 and pi0.5 need LeRobot 0.5 or newer: 0.4.4 wants a transformers that is patched.

--right-positions: transformers 4.57, which LeRobot 0.4.4 asks for, gives the patches of SmolVLM wrong positions in
float32 (rows and columns 0, 0, 1, 2, …); this puts them right in the process that compares.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "smolvla"
TOLERANCE = 2e-4  # of sampled values, as the golden data has it
_TASKS = ["pick up the red cube", "open the top drawer and place the spoon inside"]


def write(folder: Path, reference: str) -> None:
    """Export a policy, and what it does."""
    import numpy as np

    from atlas.policies.base import load_policy
    from atlas.policies.exporting import export_policy
    from atlas.types import Observation

    export_policy(reference, "lerobot", folder / "lerobot")
    policy: Any = load_policy(reference)
    processor, rng = policy.processor, np.random.default_rng(0)
    side = processor.camera_size
    observations = [
        Observation(
            {camera: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for camera in processor.cameras},
            rng.standard_normal(processor.proprio_dim).astype(np.float32),
            task,
        )
        for task in _TASKS
    ]
    noise = torch.randn(2, processor.action_horizon, 32, generator=torch.Generator().manual_seed(0))
    saved = {"noise": noise, "actions": policy.sample_chunk(processor.batch(observations), noise)}
    saved["state"] = torch.stack([torch.from_numpy(o.proprio) for o in observations])
    for slot, view in policy.slots.present:
        images = [o.images[processor.cameras[view]] for o in observations]
        saved[f"observation.images.{slot}"] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    save_file(saved, folder / "answers.safetensors")
    (folder / "tasks.json").write_text(json.dumps(_TASKS))
    print(f"{reference} is in {folder / 'lerobot'}, and its answers beside it.")


def compare(folder: Path, right_positions: bool) -> int:
    """Load it with LeRobot, and compare."""
    answers, tasks = load_file(folder / "answers.safetensors"), json.loads((folder / "tasks.json").read_text())
    policy, before, after = load_exported(folder / "lerobot", right_positions)
    observation: dict[str, Any] = {"observation.state": answers["state"], "task": tasks}
    observation |= {name: v.float() / 255 for name, v in answers.items() if name.startswith("observation.images.")}
    with torch.no_grad():
        chunk = policy.predict_action_chunk(before(observation), noise=answers["noise"])
    found = after(chunk)
    difference = float((found - answers["actions"]).abs().max())
    print(f"{versions()}, type {policy.config.type}")
    print(f"largest difference of actions: {difference:.1e} (allowed {TOLERANCE:.0e})")
    return int(not difference <= TOLERANCE)


def load_exported(path: Path, right_positions: bool) -> tuple[Any, Any, Any]:
    """LeRobot's policy from an exported folder, on the CPU, and the processors before and after it."""
    _stand_in_for_operators()
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(path)
    _name_backbone(config, path)
    _name_sizes(config, path)
    if right_positions:
        _right_positions()
    policy = get_policy_class(config.type).from_pretrained(path, config=config).eval()
    overrides = {"device_processor": {"device": "cpu"}}
    overrides["tokenizer_processor"] = {"tokenizer_name": str(path / "tokenizer")}
    before, after = make_pre_post_processors(config, path, preprocessor_overrides=overrides)
    return policy, before, after


def versions() -> str:
    import lerobot
    import transformers

    return f"LeRobot {lerobot.__version__}, transformers {transformers.__version__}"


def _name_backbone(config: Any, path: Path) -> None:
    """A tiny model's sizes and tokenizer are beside it; the name in its config stands for a model on the hub."""
    if not (path / "vlm" / "config.json").exists():
        return
    from lerobot.policies.smolvla import smolvlm_with_expert
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer")
    for mark in ("fake_image_token_id", "global_image_token_id"):  # put around images, where that is asked for
        if not hasattr(tokenizer, mark):
            assert not config.add_image_special_tokens
            setattr(tokenizer, mark, tokenizer.unk_token_id)
    config.vlm_model_name = str(path / "vlm")
    smolvlm_with_expert.AutoProcessor = SimpleNamespace(
        from_pretrained=lambda *_, **__: SimpleNamespace(tokenizer=tokenizer)
    )


def _name_sizes(config: Any, path: Path) -> None:
    """pi's classes know the published sizes by name; a tiny model's are beside it."""
    file = path / "backbone.json"
    if not file.exists():
        return
    import importlib

    sizes = json.loads(file.read_text())
    module = importlib.import_module(f"lerobot.policies.{config.type}.modeling_{config.type}")
    streams = {config.paligemma_variant: sizes["text"], config.action_expert_variant: sizes["expert"]}
    module.get_gemma_config = lambda variant: SimpleNamespace(**streams[variant])  # type: ignore[attr-defined]

    def smaller(model: Any) -> Any:
        def make(config: Any) -> Any:
            getattr(config, "text_config", config).vocab_size = sizes["vocab_size"]
            if hasattr(config, "vision_config"):
                config.image_token_id = sizes["vocab_size"] - 1  # no prompt has it
                for name, value in (*sizes["vision"].items(), ("projection_dim", sizes["text"]["width"])):
                    setattr(config.vision_config, name, value)
            return model(config=config)

        return make

    for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
        setattr(module, name, smaller(getattr(module, name)))


def _right_positions() -> None:
    from transformers.models.smolvlm import modeling_smolvlm

    def forward(self: Any, pixel_values: torch.Tensor, patch_attention_mask: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values)
        rows, columns = (torch.arange(count) for count in patches.shape[-2:])
        positions = (rows[:, None] * self.num_patches_per_side + columns).flatten()
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(positions)

    modeling_smolvlm.SmolVLMVisionEmbeddings.forward = forward


def _stand_in_for_operators() -> None:
    """torchvision for GPUs beside torch for CPUs lacks its own operators, which nothing here calls."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # else it is gone with this call


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["write", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", default=str(TINY), metavar="REF")
    parser.add_argument("--right-positions", action="store_true")
    arguments = parser.parse_args()
    if arguments.form == "write":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write(arguments.folder, arguments.policy)
        return None
    return compare(arguments.folder, arguments.right_positions)


if __name__ == "__main__":
    raise SystemExit(main())
