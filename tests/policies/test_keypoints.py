"""The small vision encoder: its keypoints follow what moves."""

from __future__ import annotations

import pytest
import torch

from atlas.policies.modular.vision_encoders.keypoints import KeypointStem, SpatialSoftmax, places_in_image


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


def test_where_keypoints_lie_in_the_image_and_how_certain_they_are() -> None:
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 0, 4, 8] = maps[0, 1, 0, 15] = 50.0  # rows 4 and 0, columns 8 and 15; the third is flat

    ((first, second, flat),) = places_in_image(maps, 64)

    assert first.tolist() == pytest.approx([32.5 / 64, 16.5 / 64, 1.0], abs=1e-4)
    assert second.tolist() == pytest.approx([60.5 / 64, 0.5 / 64, 1.0], abs=1e-4)
    assert flat[2] == pytest.approx(0, abs=1e-3)
