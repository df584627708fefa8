"""What the phases of gpu_check.py train: the smallest trainings that use every feature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "vggt_parity" / "weights.safetensors"
_SMALL_VGGT = "embed_dim: 48, depth: 4, num_heads: 3, img_size: 56, patch_embed_depth: 2, patch_embed_num_heads: 3"
SMALL = [
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "model.fusion.dim=32",
    "model.fusion.layers=1",
    "model.language.dim=16",
    "model.language.layers=1",
]


@dataclass(frozen=True)
class Job:
    """out: a folder. data: demonstrations. vggt: published weights, or None for small made-up ones."""

    out: str
    data: str
    gpus: int
    quick: bool
    vggt: str | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def folder(self) -> Path:
        return Path(self.out)


def overrides_of(job: Job, run_name: str | None = None) -> list[str]:
    """Overrides for every training."""
    return [
        f"data.path={job.data}",
        f"output_dir={job.folder / 'runs'}",
        *([f"run_name={run_name}"] if run_name else []),
        *(SMALL if job.quick else []),
        "data.image_size=32" if job.quick else "data.image_size=64",
        "data.batch_size=8",
        "data.action_horizon=4",
        "evaluation.episodes=0",
        "training.log_interval=1",
        "training.val_interval=1000000",
        *(f"logging.media.{kind}.interval=0" for kind in ("gradient_logger", "plot_logger", "action_logger")),
        "logging.media.vis_dataset.interval=0",
        *([] if job.gpus else ["distributed.cpu=true"]),
    ]


def vggt_of(job: Job, *more: str) -> list[str]:
    """Overrides for a policy on the published VGGT."""
    sizes = "" if job.vggt else f", {_SMALL_VGGT}"
    keys = ", ".join((f"name: vggt_pretrained, pretrained: {job.vggt or FIXTURE}{sizes}", *more))
    return [f"model.vision={{{keys}}}", f"data.image_size={224 if job.vggt else 56}"]


def policies(job: Job) -> dict[str, list[str]]:
    """The policies whose numbers are compared; the first is the default one."""
    flow = "model.head={name: flow_matching, dim: 32, layers: 1, heads: 2}"
    if job.quick:
        return {"default": []}
    return {
        "default": [],
        "flow": [flow],
        "vggt of convolutions": ["model.vision={name: vggt, stem: conv, embed_dim: 64, depth: 2}", flow],
        "vggt frozen": vggt_of(job, "precision: fp32"),
        "vggt trained": vggt_of(job, "freeze: false") if job.vggt is None else vggt_of(job, "lora: {rank: 4}"),
    }
