"""The frozen VGGT backbone: its speed and memory compared with a plain implementation of the same layers, by pieces.

    python benchmarks/vggt.py [--size 224] [--views 2] [--batch 1] [--rounds 5]
    python benchmarks/vggt.py --sweep [--size 224] [--gpu h100]
    python benchmarks/vggt.py --parity

The first form times the pieces, and the whole compared with the plain form; the second, on a GPU, compares batch sizes
with its peak, and a training step with the frozen forward; the third compares the small golden data of the published
network with this one, eager and compiled. Shapes are full-size with random weights (speed does not depend on them). The
plain form uses the same weights, computes rotations in every block, resizes the position grid in every forward and
keeps the outputs of all 24 layers, as readable code would. On CPUs the two take turns, and memory is measured in a
separate process for each. Prints tables for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from safetensors.torch import load_file

from atlas.config import load_config
from atlas.data.statistics import ColumnStatistics, DatasetStatistics
from atlas.policies.modular.policy import ModularPolicy
from atlas.policies.modular.vision_encoders.vggt_backbone import compile_blocks
from atlas.policies.processor import PolicyProcessor
from atlas.policies.vggt import VGGTAggregator, VGGTConfig
from atlas.policies.vggt.attention_blocks import Block
from atlas.policies.vggt.camera_head import CameraHeadConfig, VGGTCameraHead
from atlas.policies.vggt.depth_head import DepthHeadConfig, VGGTDepthHead
from atlas.system.gpu_facts import GPU_PEAKS
from atlas.types import ActionSpec, Batch

GIB = 2**30
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--gpu", default="h100", choices=sorted(GPU_PEAKS), help="whose peak the sweep is compared with"
    )
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # in a separate process
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(peak_memory(arguments)))
        return
    print(f"\n{describe()}\n")
    if arguments.parity:
        parity()
    elif arguments.sweep:
        if not CUDA:
            raise SystemExit("--sweep measures GPUs, and there is none here.")
        sweep(arguments)
    else:
        pieces(arguments)


# ---- what is measured --------------------------------------------------------------------------------------


def build(dtype: torch.dtype) -> VGGTAggregator:
    """VGGT-1B with random weights, as the frozen backbone holds it."""
    with torch.device("meta"):
        model = VGGTAggregator(VGGTConfig())
    model = model.to(dtype).to_empty(device=DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02, generator=generator)
    return model


def make_images(arguments: argparse.Namespace, batch: int | None = None) -> torch.Tensor:
    return torch.rand(batch or arguments.batch, arguments.views, 3, arguments.size, arguments.size, device=DEVICE)


def plain_forward(model: VGGTAggregator, images: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers from the same weights, computed in the plainest way."""
    b, s, _, h, w = images.shape
    p, c = model.config.patch_size, model.config.embed_dim
    dtype = model.camera_token.dtype
    stem: Any = model.stem
    patches = stem.model(model.normalize(images.flatten(0, 1)).to(dtype)).last_hidden_state[:, 5:]
    special = torch.cat((model.camera_token, model.register_token), dim=2)
    first, others = special[:, :1], special[:, 1:].expand(-1, s - 1, -1, -1)
    special = torch.cat((first, others), dim=1).expand(b, -1, -1, -1).flatten(0, 1)
    x = torch.cat((special, patches), dim=1)  # [B*S, T, C]
    t = x.shape[1]
    grid = torch.cartesian_prod(torch.arange(h // p, device=DEVICE), torch.arange(w // p, device=DEVICE)) + 1
    positions = torch.cat((grid.new_zeros(5, 2), grid)).expand(b * s, -1, -1)
    outputs = []
    for frame_block, global_block in zip(model.frame_blocks, model.global_blocks, strict=True):
        x = plain_block(frame_block, x, positions)
        within = x
        x = plain_block(global_block, x.reshape(b, s * t, c), positions.reshape(b, s * t, 2)).reshape(b * s, t, c)
        outputs.append(torch.cat((within, x), dim=-1).unflatten(0, (b, s)))
    return outputs


def plain_block(block: Any, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    n, t, c = x.shape
    a = block.attn
    q, k, v = a.qkv(block.norm1(x)).reshape(n, t, 3, -1, a.head_dim).permute(2, 0, 3, 1, 4)  # [n, heads, T, D] each
    q, k = plain_rotation(a.q_norm(q), positions), plain_rotation(a.k_norm(k), positions)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
    x = x + block.ls1(a.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x)))


def plain_rotation(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    halves = []
    for axis, half in enumerate(x.chunk(2, dim=-1)):
        d = half.shape[-1]
        frequencies = 100 ** (-torch.arange(0, d, 2, device=x.device).float() / d)
        angles = positions[..., axis, None].float() * frequencies  # [n, T, d/2]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        low, high = half.chunk(2, dim=-1)
        halves.append(half * angles.cos().to(x.dtype) + torch.cat((-high, low), dim=-1) * angles.sin().to(x.dtype))
    return torch.cat(halves, dim=-1)


def atlas_forward(model: VGGTAggregator, images: torch.Tensor) -> list[torch.Tensor]:
    return model(images)


FORWARDS: dict[str, Callable[[VGGTAggregator, torch.Tensor], list[torch.Tensor]]] = {
    "atlas": atlas_forward,
    "plain": plain_forward,
}


# ---- parity ------------------------------------------------------------------------------------------------


def parity() -> None:
    """Largest absolute differences from the golden data, float32 on the CPU."""
    folder = Path(__file__).parents[1] / "tests" / "fixtures" / "vggt_parity"
    kit = json.loads((folder / "config.json").read_text())
    inputs, golden, heads = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "golden", "heads_golden"))
    camera = VGGTCameraHead(CameraHeadConfig(**kit["camera_head"]))
    depth = VGGTDepthHead(DepthHeadConfig(**kit["depth_head"]))
    for head in (camera, depth):
        head.load_checkpoint(folder / "heads_weights.safetensors")
    forms = {"eager": build_small(kit["config"], folder, False), "compiled": build_small(kit["config"], folder, True)}
    print("| case | layers, eager | layers, compiled | pose | depth |\n|---|---|---|---|---|")
    for case in kit["cases"]:
        torch._dynamo.reset()  # each case has a shape of its own
        images = inputs[f"{case}.images_u8"].float() / 255
        layers = [i for i in range(4) if f"{case}.layer{i}" in golden]
        errors = []
        with torch.inference_mode():
            for model in forms.values():
                outputs = model(images, layers)
                errors.append(
                    max(
                        float((o - golden[f"{case}.layer{i}"]).abs().max())
                        for i, o in zip(layers, outputs, strict=True)
                    )
                )
            everything = forms["eager"](images, [0, 1, 2, 3])
            pose = camera(everything[-1]).activated
            distances, _ = depth(everything, images.shape[-2:])
        errors.append(float((pose - heads[f"{case}.pose_enc_iters"]).abs().max()))
        expected = heads.get(f"{case}.depth")
        shown = [f"{e:.1e}" for e in errors] + [
            "" if expected is None else f"{float((distances - expected).abs().max()):.1e}"
        ]
        print(f"| {case} | {' | '.join(shown)} |", flush=True)


def build_small(sizes: dict[str, Any], folder: Path, compiled: bool) -> VGGTAggregator:
    model = VGGTAggregator(VGGTConfig(**sizes)).eval()
    model.load_checkpoint(folder / "weights.safetensors")
    if compiled:
        compile_blocks(model)
    return model


# ---- the pieces, beside the plain form ---------------------------------------------------------------------


def pieces(arguments: argparse.Namespace) -> None:
    print(f"Batch {arguments.batch} of {arguments.views} views of {arguments.size} px.\n")
    images = make_images(arguments)
    times: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = build(dtype)
        name = str(dtype).removeprefix("torch.")
        with torch.inference_mode():
            check_agreement(model, images, name)
            rounds = [compare(model, images) for _ in range(arguments.rounds)]
            for form in FORWARDS:
                times[f"{form} {name}"] = statistics.median(r[form] for r in rounds)
            ratio = statistics.median(r["atlas"] / r["plain"] for r in rounds)
            print(f"{name}: atlas over plain {ratio:.3f} (median of {len(rounds)} rounds)", flush=True)
            if dtype == torch.float32:
                parts = time_parts(model, images, arguments.rounds)
        del model
    memory = {key: run_memory(arguments, key) for key in times}
    print("\n| forward | seconds | weights, GiB | beyond them at the peak, MiB |\n|---|---|---|---|")
    for key, seconds in times.items():
        used = memory[key]
        print(f"| {key} | {seconds:.2f} | {used['weights']:.2f} | {1024 * used['forward']:.0f} |")
    print("\n| piece (float32) | seconds | calls in a forward |\n|---|---|---|")
    for piece, (seconds, calls) in parts.items():
        print(f"| {piece} | {seconds:.3f} | {calls} |")


def compare(model: VGGTAggregator, images: torch.Tensor) -> dict[str, float]:
    """Seconds for each form, one after the other."""
    return {form: timed(lambda forward=forward: forward(model, images)) for form, forward in FORWARDS.items()}


def check_agreement(model: VGGTAggregator, images: torch.Tensor, name: str) -> None:
    ours, plain = atlas_forward(model, images)[0].float(), plain_forward(model, images)[-1].float()
    print(
        f"{name}: largest difference {(ours - plain).abs().max():.2e} of values with a deviation of {plain.std():.2f}"
    )


def time_parts(model: VGGTAggregator, images: torch.Tensor, rounds: int) -> dict[str, tuple[float, int]]:
    b, s = images.shape[:2]
    stem: Any = model.stem
    p = model.config.patch_size
    normal = model.normalize(images.flatten(0, 1))
    grid = images.shape[-2] // p, images.shape[-1] // p
    tokens = stem(normal).unflatten(0, (b, s))
    by = model._rotation(tokens, grid, None)
    x = torch.cat((model._special_tokens(b, s), tokens), dim=2).flatten(0, 1)
    frame, everything = model.frame_blocks[0], model.global_blocks[0]
    assert isinstance(frame, Block) and isinstance(everything, Block)
    depth = model.config.depth
    todo: dict[str, tuple[Callable[[], object], int]] = {
        "DINOv2 stem": (lambda: stem(normal), 1),
        "frame block": (lambda: frame(x, by, 1), depth),
        "global block": (lambda: everything(x, by, s), depth),
        "of a global block: attention": (lambda: everything.attn(x, by, s), depth),
        "of a global block: MLP": (lambda: everything.mlp(x), depth),
    }
    return {name: (statistics.median(timed(f) for _ in range(rounds)), calls) for name, (f, calls) in todo.items()}


def timed(run: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run_memory(arguments: argparse.Namespace, key: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", key]
    command += [f"--{n}={getattr(arguments, n)}" for n in ("size", "views", "batch")]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def peak_memory(arguments: argparse.Namespace) -> dict[str, float]:
    """GiB of the weights and, beyond them, at the peak of a forward; in a process that does nothing else."""
    form, name = arguments.memory_of.split()
    model, images = build(getattr(torch, name)), make_images(arguments)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    start = reset_peak()
    with torch.inference_mode():
        FORWARDS[form](model, images)
    return {"weights": weights / GIB, "forward": (peak() - start) / GIB}


def reset_peak() -> int:
    """Bytes in use now; the peak is counted again from here. On CPUs: the process's memory, as Linux counts it."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak() -> int:
    return torch.cuda.max_memory_allocated() if CUDA else status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


# ---- GPUs --------------------------------------------------------------------------------------------------


def sweep(arguments: argparse.Namespace) -> None:
    """The frozen forward and a whole training step by batch size, eager and compiled, compared with the GPU's peak."""
    peak = GPU_PEAKS[arguments.gpu].bf16
    flops = flops_per_sample(arguments.size, arguments.views)
    print(
        f"{arguments.views} views of {arguments.size} px: {flops / 1e12:.3f} TFLOP a sample; peak {peak / 1e12:.0f}\n"
    )
    print("| form | batch | forward, ms | samples/s | of the peak | training step, ms | over the forward | peak, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for compiled in (False, True):
        policy = make_policy(arguments, compiled)
        for batch in (1, 8, 16, 32, 64, 128):
            if batch * arguments.views * (arguments.size / 224) ** 2 > 300:
                break
            torch.cuda.reset_peak_memory_stats()
            samples = make_batch(policy, arguments, batch)
            forward = gpu_seconds(lambda p=policy, s=samples: p.vision(s.images), arguments.rounds)
            step = gpu_seconds(training_step(policy, samples), arguments.rounds)
            memory = torch.cuda.max_memory_allocated() / GIB
            print(
                f"| {'compiled' if compiled else 'eager'} | {batch} | {1e3 * forward:.1f} | {batch / forward:.0f} | "
                f"{flops * batch / forward / peak:.1%} | {1e3 * step:.1f} | {step / forward:.3f} | {memory:.1f} |",
                flush=True,
            )
        del policy
        torch.cuda.empty_cache()


def flops_per_sample(size: int, views: int) -> int:
    n, c = (size // 14) ** 2, 1024
    t = n + 5
    attention = 4 * c * (48 * views * t**2 + 24 * views**2 * t**2)
    return 2 * views * n * c * 588 + 72 * 24 * views * t * c**2 + attention


def make_policy(arguments: argparse.Namespace, compiled: bool) -> ModularPolicy:
    """The policy of the shipped LIBERO config with random weights in the backbone."""
    columns = {n: ColumnStatistics(*((float(i),) * n for i in (0, 1, -1, 1, -1, 1))) for n in (7, 8)}
    config = load_config(
        "atlas/configs/libero_vggt_8gpu.yaml",
        ["model.language.name=bytes", f"data.image_size={arguments.size}", "model.vision.precision=bf16"],
    )
    processor = PolicyProcessor(
        cameras=tuple(f"camera{i}" for i in range(arguments.views)),
        camera_size=arguments.size,
        image_size=arguments.size,
        action_horizon=8,
        proprio_dim=8,
        action_spec=ActionSpec(),
        statistics=(DatasetStatistics("none", 1, 1, columns[7], columns[8]),),
        scaling=config.model.processor,
    )
    config.model.vision.compile = compiled  # type: ignore[union-attr]
    policy = ModularPolicy(config.model, processor, read_weights=False)
    policy.vision.aggregator.to(torch.bfloat16)  # type: ignore[union-attr]
    return policy.to(DEVICE).train()


def make_batch(policy: ModularPolicy, arguments: argparse.Namespace, batch: int) -> Batch:
    return Batch(
        images=make_images(arguments, batch),
        proprio=torch.zeros(batch, 8, device=DEVICE),
        instruction=["put the bowl on the plate"] * batch,
        source=torch.zeros(batch, dtype=torch.int64, device=DEVICE),
        actions=torch.rand(batch, 8, 7, device=DEVICE) * 2 - 1,
        action_is_pad=torch.zeros(batch, 8, dtype=torch.bool, device=DEVICE),
        key=torch.arange(batch, device=DEVICE),
    )


def training_step(policy: ModularPolicy, batch: Batch) -> Callable[[], None]:
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = policy(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gpu_seconds(run: Callable[[], object], rounds: int) -> float:
    for _ in range(3):
        run()
    return statistics.median(timed(run) for _ in range(max(rounds, 10)))


if __name__ == "__main__":
    main()
