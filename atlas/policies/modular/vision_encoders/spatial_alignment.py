"""Drawing a small encoder's patch tokens towards those of a frozen VGGT, which knows more about space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atlas.policies.modular.modular_section import TEACHER_KEY, AlignmentConfig
from atlas.policies.modular.vision_encoders.vggt_backbone import PretrainedVGGTEncoder


class Alignment(nn.Module):
    """1 - cosine between projected patch tokens and the teacher's last layer (Spatial Forcing, Li et al., 2025).

    The projection is trained and saved with the policy; the teacher exists only in training, after `load_teacher`.
    """

    def __init__(self, config: AlignmentConfig, dim: int, key: str = TEACHER_KEY) -> None:
        """dim: of the tokens. key: the setting that names the teacher's weights, for messages."""
        super().__init__()
        self._config, self._key = config, key
        self.weight = config.weight
        target = 2 * config.teacher.embed_dim
        self.project = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, target), nn.GELU(), nn.Linear(target, target, bias=False)
        )
        self.teacher: PretrainedVGGTEncoder | None = None

    def load_teacher(self, read_weights: bool = True) -> None:
        """Read the teacher's weights. Raises InputError if they are not available."""
        frozen = self._config.teacher.model_copy(update={"freeze": True, "lora": None, "pool": 1})
        device = next(self.project.parameters()).device
        self.teacher = PretrainedVGGTEncoder(frozen, read_weights=read_weights, key=self._key).to(device).eval()

    def forward(self, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """tokens [B, V, rows, columns, dim] of images float [B, V, 3, H, W] in [0, 1]; a mean over all tokens, 0-d."""
        target = self._target(images, tokens.shape[2:4])
        return 1 - F.cosine_similarity(self.project(tokens).float(), target, dim=-1).mean()

    def _target(self, images: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """The teacher's patch tokens, averaged to the student's grid: float32 [B, V, rows, columns, 2C]."""
        assert self.teacher is not None
        b, v = images.shape[:2]
        size = self._config.image_size
        resized = F.interpolate(images.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True)
        tokens = self.teacher(resized.unflatten(0, (b, v))).float()
        side = size // self._config.teacher.patch_size
        patches = tokens.unflatten(1, (v, -1))[:, :, -side * side :]  # [B, V, side * side, 2C]
        maps = patches.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        pooled = F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))
        # VGGT's outputs are not normalised; without this, a few large channels would dominate the cosine.
        return F.layer_norm(pooled.permute(0, 2, 3, 1), (pooled.shape[1],)).unflatten(0, (b, v))
