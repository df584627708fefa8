"""VGGT's depth head, a dense prediction transformer: from four layers' patch tokens to depth and its confidence.

The layers' tokens become images of four sizes, which are fused from the smallest to the largest (Ranftl et al. 2021,
"Vision Transformers for Dense Prediction").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas.errors import InputError
from atlas.policies.pretrained_weights import without_autocast
from atlas.policies.vggt.weight_loading import PublishedHead

_POSITION_WEIGHT = 0.1
_FRAMES_AT_ONCE = 8  # views are independent here, and one of 518 x 518 needs about 0.5 GB while it is computed


@dataclass(frozen=True)
class DepthHeadConfig:
    """Sizes of a depth head; `DepthHeadConfig()` is VGGT-1B's. Raises InputError if they do not go together."""

    dim: int = 2048  # 2C of the aggregator
    layers: tuple[int, int, int, int] = (4, 11, 17, 23)  # of the aggregator's outputs, from 0
    patch_size: int = 14
    features: int = 256
    out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)  # of the four layers' images

    def __post_init__(self) -> None:
        for name in ("layers", "out_channels"):
            if len(getattr(self, name)) != 4:
                raise InputError(f"The depth head's {name} are {getattr(self, name)}; it takes four.")
        sizes = {"dim": self.dim, "patch_size": self.patch_size, "features": self.features}
        for name, size in (*sizes.items(), *(("out_channels", c) for c in self.out_channels)):
            if size < 1:
                raise InputError(f"The depth head's {name} is {size}; it must be at least 1.")
        if self.features % 8 or any(c % 4 for c in self.out_channels):
            raise InputError(
                f"The depth head's features are {self.features} and its out_channels {self.out_channels}; the position "
                "embedding needs multiples of 8 and of 4."
            )


class VGGTDepthHead(PublishedHead):
    """Depth and confidence of every pixel. The names of its parts are those of the published checkpoint.

    It runs in float32, also under autocast.
    """

    prefix = "depth_head."
    title = "this VGGT depth head"

    def __init__(self, config: DepthHeadConfig) -> None:
        super().__init__()
        self.config = config
        c = config.out_channels
        self.norm = nn.LayerNorm(config.dim, eps=1e-5)
        self.projects = nn.ModuleList(nn.Conv2d(config.dim, channels, 1) for channels in c)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(c[0], c[0], 4, stride=4),
                nn.ConvTranspose2d(c[1], c[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(c[3], c[3], 3, stride=2, padding=1),
            )
        )
        self.scratch = _Scratch(config.features, c)

    def forward(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The aggregator's outputs for `config.layers`, each [B, S, T, 2C], any float dtype; (height, width) in pixels.

        Returns depth [B, S, H, W, 1] along the camera's axis, in the scene's own unit, above 0, and its confidence
        [B, S, H, W], above 1: float32.
        """
        self._check(outputs, image_size)
        assert self.norm.weight.dtype == torch.float32, "the depth head runs in float32"
        height, width = image_size
        patches = (height // self.config.patch_size) * (width // self.config.patch_size)
        batch = outputs[0].shape[:2]
        layers = [output[:, :, -patches:].flatten(0, 1) for output in outputs]  # without the special tokens
        found = []
        with without_autocast(outputs[0].device):
            for frames in zip(*(layer.split(_FRAMES_AT_ONCE) for layer in layers), strict=True):
                found.append(self._predict([tokens.float() for tokens in frames], height, width))
        values = torch.cat(found).unflatten(0, batch)  # [B, S, 2, H, W]
        return values[:, :, 0].exp().unsqueeze(-1), 1 + values[:, :, 1].exp()

    def _predict(self, layers: list[Tensor], height: int, width: int) -> Tensor:
        """Four layers' patch tokens [M, N, 2C] to the last layer's values [M, 2, height, width]."""
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        aspect = width / height
        images = []
        for tokens, project, resize in zip(layers, self.projects, self.resize_layers, strict=True):
            image = project(self.norm(tokens).transpose(1, 2).unflatten(2, grid))
            images.append(resize(_placed(image, aspect)))
        x = self.scratch.fuse(images)
        x = _placed(_resized(self.scratch.output_conv1(x), (height, width)), aspect)
        return self.scratch.output_conv2(x)

    def _check(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> None:
        c = self.config
        if any(size < 1 or size % c.patch_size for size in image_size):
            raise InputError(f"The depth head's image is {image_size}; both must be multiples of {c.patch_size}.")
        patches = (image_size[0] // c.patch_size) * (image_size[1] // c.patch_size)
        shapes = {tuple(output.shape) for output in outputs}
        shape = next(iter(shapes), ())
        fits = len(outputs) == 4 and len(shapes) == 1 and len(shape) == 4 and shape[-1] == c.dim
        if not fits or shape[2] < patches:
            raise InputError(
                f"The depth head takes four outputs [batch, views, tokens, {c.dim}] with at least {patches} tokens "
                f"for an image {image_size}, not {[list(output.shape) for output in outputs]}."
            )


class _Scratch(nn.Module):
    """Fusion of the four images and the last convolutions; the published name for what is not specific to a layer."""

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (_Fusion(features, lateral=True) for _ in range(3))
        self.refinenet4 = _Fusion(features, lateral=False)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1))

    def fuse(self, images: Sequence[Tensor]) -> Tensor:
        """Images of four sizes, the largest first, to one of twice the largest's size, [M, features, h, w]."""
        first, second, third, fourth = (
            layer(image)
            for layer, image in zip(
                (self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn), images, strict=True
            )
        )
        x = self.refinenet4(fourth, None, third.shape[-2:])
        x = self.refinenet3(x, third, second.shape[-2:])
        x = self.refinenet2(x, second, first.shape[-2:])
        height, width = first.shape[-2:]
        return self.refinenet1(x, first, (2 * height, 2 * width))


class _Fusion(nn.Module):
    """Adds a larger image to what came from the smaller ones, and brings the sum to the next size."""

    def __init__(self, features: int, lateral: bool) -> None:
        super().__init__()
        if lateral:
            self.resConfUnit1 = _Residual(features)
        self.resConfUnit2 = _Residual(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        """x and lateral [M, F, h, w] -> [M, F, *size]."""
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        return self.out_conv(_resized(self.resConfUnit2(x), size))


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[M, F, h, w] -> the same. The shortcut carries the rectified input, not the input: the published weights were
        trained that way, as the first ReLU works in place."""
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _placed(x: Tensor, aspect: float) -> Tensor:
    """Images [M, C, h, w] with sines and cosines of each point's place added; aspect: the picture's width / height."""
    height, width = x.shape[-2:]
    diagonal = (aspect**2 + 1) ** 0.5
    across = _waves(width, aspect / diagonal, x.shape[1] // 2, x.device)  # [C/2, w]
    down = _waves(height, 1 / diagonal, x.shape[1] // 2, x.device)  # [C/2, h]
    places = torch.cat((across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)))
    return x + _POSITION_WEIGHT * places


def _waves(points: int, span: float, channels: int, device: torch.device) -> Tensor:
    """Sines, then cosines, of coordinates in the middle of `points` cells that fill [-span, span]: [channels, points].

    In float64 until the end, and on the CPU, since not every device has that.
    """
    reach = span * (points - 1) / points
    coordinates = torch.linspace(-reach, reach, points, dtype=torch.float64)
    frequencies = 100.0 ** -(torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
    angles = frequencies[:, None] * coordinates
    return torch.cat((angles.sin(), angles.cos())).float().to(device)
