"""How much host memory loading a published policy takes at most, beside the size of its file.

    python benchmarks/pretrained_memory.py [--type pi0] [--precision stored bfloat16] [--tiny DIR] [--folder .]

Writes a folder of LeRobot's form with random weights in the published sizes (pi0: 14 GB of disk), loads it as a policy
in a process of its own for each precision of frozen weights, prints a table for docs/benchmarks.md, and removes the
folder. The process is measured from before torch is imported; pages of files that the kernel keeps are not its memory.
A run with precision `stored` needs about as much memory as the file is large. --tiny: another folder's config.json,
backbone.json and tokenizer instead of the published sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe

FILES = ("config.json", "backbone.json")
_CHUNK = 2**24  # numbers
_LOADS = """
import json, resource, sys, time
import torch
from atlas.config.model_section import MODEL
from atlas.policies.base import load_policy
from atlas.policies.pi.pi_loading import of_lerobot

started = time.perf_counter()
kind, folder, precision = sys.argv[1:]
section = MODEL.validate({"type": kind, "pretrained": folder, "precision": precision, "train_expert_only": True})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
policy = section.of_lerobot(__import__("pathlib").Path(folder))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
held = sum(p.numel() * p.element_size() for p in policy.parameters())
print(json.dumps({"before": before, "peak": peak, "held": held, "seconds": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=["pi0", "pi05"], default="pi0")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "stored"])
    parser.add_argument("--tiny", type=Path, help="a folder with other sizes, and with a tokenizer")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; it needs the room")
    arguments = parser.parse_args()
    print(f"\n{describe()}\n")
    print("| precision of frozen weights | file, GB | weights in memory, GB | peak, GB | peak / file | seconds |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="atlas-pretrained-", dir=arguments.folder) as name:
        folder = Path(name)
        write_policy(folder, arguments.type, arguments.tiny)
        size = (folder / "model.safetensors").stat().st_size
        for precision in arguments.precision:
            print(row(precision, size, load(folder, arguments.type, precision)), flush=True)


def row(precision: str, size: int, found: dict[str, Any]) -> str:
    numbers = [size / 1e9, found["held"] / 1e9, found["peak"] / 1e9]
    cells = [f"{number:.2f}" for number in (*numbers, found["peak"] / size)]
    return f"| {precision} | {' | '.join(cells)} | {found['seconds']:.0f} |"


def load(folder: Path, kind: str, precision: str) -> dict[str, Any]:
    """What a process that loads the folder says of itself."""
    command = [sys.executable, "-c", _LOADS, kind, str(folder), precision]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)  # type: ignore[no-any-return]


# ---- a folder with random weights ------------------------------------------------------------------------


def write_policy(folder: Path, kind: str, tiny: Path | None) -> None:
    """config.json, a tokenizer and random weights, in the published sizes or in those of `tiny`."""
    if tiny is not None:
        for name in FILES:
            shutil.copy(tiny / name, folder)
        shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    else:
        from atlas.policies.pi.pi_base import base_description

        description = base_description(f"hf:lerobot/{kind}_base")
        assert description is not None
        (folder / "config.json").write_text(json.dumps(dict(description.folder.config)))
        _write_tokenizer(folder / "tokenizer")
    steps = {"pi0": "pi0_new_line_processor", "pi05": "pi05_prepare_state_tokenizer_processor_step"}
    config = json.loads((folder / "config.json").read_text())
    norm = {"norm_map": config["normalization_mapping"]}
    tokenizer = {"tokenizer_name": "tokenizer", "max_length": config["tokenizer_max_length"], "padding": "max_length"}
    before = [(steps[kind], {}), ("tokenizer_processor", tokenizer), ("normalizer_processor", norm)]
    for file, named in (("pre", before), ("post", [("unnormalizer_processor", norm)])):
        content = {"steps": [{"registry_name": name, "config": settings} for name, settings in named]}
        (folder / f"policy_{file}processor.json").write_text(json.dumps(content))
    _write_weights(folder / "model.safetensors", _shapes(folder, kind))


def _shapes(folder: Path, kind: str) -> dict[str, tuple[int, ...]]:
    """Of a published file, by name."""
    import torch

    from atlas.policies.pi.pi_names import TABLE, TIED_TABLE, UNUSED, published_name
    from atlas.policies.pi.pi_network import PiNetwork
    from atlas.policies.pi.pi_settings import PiSettings
    from atlas.policies.published.lerobot_folder import LeRobotFolder

    settings = PiSettings.of(LeRobotFolder.open(folder, kind))
    with torch.device("meta"):
        network = PiNetwork(settings.sizes, settings.shape)
    shapes = {published_name(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes[TIED_TABLE] = shapes.pop(TABLE)
    return shapes | {UNUSED: (settings.sizes.vocab_size, settings.sizes.expert.width)}


def _write_weights(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Float32 in the safetensors format, from one buffer of small random numbers again and again."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = memoryview((torch.randn(_CHUNK) * 0.02).numpy()).cast("B")
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        while end:
            count = min(end, len(numbers))
            out.write(numbers[:count])
            end -= count


def _write_tokenizer(folder: Path) -> None:
    """One that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "pick", "up", "the", "cube"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>")
    fast.save_pretrained(folder)


if __name__ == "__main__":
    main()
