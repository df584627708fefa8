"""VGGT's camera head: from the camera token of every view to the cameras' poses and fields of view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas.errors import InputError
from atlas.policies.pretrained_weights import without_autocast
from atlas.policies.vggt.attention_blocks import MLP, LayerScale
from atlas.policies.vggt.weight_loading import PublishedHead

POSE_SIZE = 9  # translation 3, quaternion 4 (x, y, z, w), vertical and horizontal field of view in radians


# ---- pose encodings --------------------------------------------------------------------------------------------


def pose_to_cameras(pose: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pose encodings [..., 9] of images of (height, width) pixels to extrinsics [..., 3, 4], intrinsics [..., 3, 3].

    An extrinsic takes points in the world to the camera's axes (OpenCV: x right, y down, z forward); the intrinsics
    are in pixels, with the principal point in the centre of the image. Any quaternion except 0 is normalised. A field
    of view of 0, which the camera head returns if it finds none, makes an infinite focal length.
    """
    height, width = image_size
    extrinsics = torch.cat((_rotation_of(pose[..., 3:7]), pose[..., :3, None]), dim=-1)
    half = torch.tan(pose[..., 7:9] / 2)
    intrinsics = pose.new_zeros(*pose.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = width / 2 / half[..., 1]
    intrinsics[..., 1, 1] = height / 2 / half[..., 0]
    intrinsics[..., 0, 2] = width / 2
    intrinsics[..., 1, 2] = height / 2
    intrinsics[..., 2, 2] = 1.0
    return extrinsics, intrinsics


def _rotation_of(quaternion: Tensor) -> Tensor:
    """Quaternions (x, y, z, w) [..., 4] of any norm to rotation matrices [..., 3, 3]."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    entries = (
        *(1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        *(s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        *(s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


# ---- the network -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraHeadConfig:
    """Sizes of a camera head; `CameraHeadConfig()` is VGGT-1B's. Raises InputError if they do not go together."""

    dim: int = 2048  # 2C of the aggregator
    trunk_depth: int = 4
    num_heads: int = 16
    mlp_ratio: float = 4.0
    iterations: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "trunk_depth", "num_heads", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"The camera head's {name} is {getattr(self, name)}; it must be at least 1.")
        if self.dim % self.num_heads:
            raise InputError(
                f"The camera head's dim is {self.dim}; it must be a multiple of num_heads, {self.num_heads}."
            )


class Poses(NamedTuple):
    """Every iteration's estimate of S views' cameras, the last one best. [I, B, S, 9], float32."""

    raw: Tensor  # what an iteration passes to the next
    activated: Tensor  # with non-negative fields of view: for `pose_to_cameras`


class VGGTCameraHead(PublishedHead):
    """Guesses the cameras of all views, then corrects the guess a few times, each time given the last one.

    The names of its parts are those of the published checkpoint. It runs in float32, also under autocast.
    """

    prefix = "camera_head."
    title = "this VGGT camera head"

    def __init__(self, config: CameraHeadConfig) -> None:
        super().__init__()
        self.config = config
        c = config.dim
        self.trunk = nn.Sequential(*(_Block(c, config.num_heads, config.mlp_ratio) for _ in range(config.trunk_depth)))
        self.token_norm = nn.LayerNorm(c, eps=1e-5)
        self.trunk_norm = nn.LayerNorm(c, eps=1e-5)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_SIZE))
        self.embed_pose = nn.Linear(POSE_SIZE, c)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c, 3 * c))
        self.pose_branch = nn.ModuleDict({"fc1": nn.Linear(c, c // 2), "fc2": nn.Linear(c // 2, POSE_SIZE)})

    def forward(self, tokens: Tensor) -> Poses:
        """The aggregator's last output [B, S, T, 2C], any float dtype, to pose encodings of each iteration."""
        if tokens.ndim != 4 or tokens.shape[-1] != self.config.dim:
            raise InputError(
                f"The camera head takes [batch, views, tokens, {self.config.dim}], not {list(tokens.shape)}."
            )
        assert self.embed_pose.weight.dtype == torch.float32, "the camera head runs in float32"
        with without_autocast(tokens.device):
            return self._iterate(self.token_norm(tokens[:, :, 0].float()))

    def _iterate(self, tokens: Tensor) -> Poses:
        """Normalised camera tokens [B, S, 2C] to the iterations' poses."""
        plain = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        known = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)  # the last guess; at first, a learned "none"
        pose: Tensor | None = None
        poses = []
        for _ in range(self.config.iterations):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(known)).chunk(3, dim=-1)
            x = self.trunk(tokens + gate * (plain * (1 + scale) + shift))
            x = F.gelu(self.pose_branch["fc1"](self.trunk_norm(x)))
            change = self.pose_branch["fc2"](x)
            pose = change if pose is None else pose + change
            known = pose.detach()  # as published: each iteration is trained on its own correction
            poses.append(pose)
        raw = torch.stack(poses)
        return Poses(raw, torch.cat((raw[..., :7], F.relu(raw[..., 7:])), dim=-1))


class _Attention(nn.Module):
    """Plain self-attention, named as in the checkpoint; without positions, as the views are a set."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, S, D]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """The aggregator's block without rotation and without norms of queries and keys."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = _Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, 0.01)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))
