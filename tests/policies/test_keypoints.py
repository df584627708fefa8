"""The small vision encoder: its keypoints follow what moves."""

from __future__ import annotations

import pytest
import torch

from atlas.policies.modular.vision_encoders.keypoints import KeypointStem, SpatialSoftmax


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_keypoints_move_with_things_before_anything_is_learned(seed: int) -> None:
    torch.manual_seed(seed)
    stem, softmax = KeypointStem(width=16, keypoints=32, language_dim=8), SpatialSoftmax()
    images = torch.full((49, 3, 64, 64), 0.5)
    for place in range(49):  # a red square, at 7 x 7 places
        y, x = 8 * (place // 7), 8 * (place % 7)
        images[place, :, y : y + 8, x : x + 8] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]

    with torch.no_grad():
        positions = softmax(stem(images, torch.zeros(49, 8)))  # [49, 32, 2]

    assert positions.std(0).mean() > 0.2  # 0.05 with torch's own weights
