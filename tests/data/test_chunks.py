"""Chunks, statistics, image geometry and augmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas.config import AugmentConfig
from atlas.data.formats import open_dataset
from atlas.data.image_fit import fit_images
from atlas.data.orientation import ORIENTATIONS, turn_upright
from atlas.data.sampling.augment import Augmenter
from atlas.data.sampling.chunks import ChunkDataset
from atlas.data.sampling.loader import make_loader
from atlas.data.sampling.order import TrainOrder
from atlas.data.sampling.randomness import sample_keys
from atlas.errors import InputError
from tests.conftest import MakeLibero

CAMERAS = ["agentview", "eye_in_hand"]


def make_chunks(make_libero: MakeLibero, horizon: int = 4, episodes: tuple[int, ...] = (0, 2, 3)) -> ChunkDataset:
    return ChunkDataset(open_dataset(make_libero()), np.array(episodes), CAMERAS, image_size=32, horizon=horizon)


def test_a_sample_is_the_observation_and_the_actions_from_there(make_libero: MakeLibero) -> None:
    dataset = open_dataset(make_libero())
    chunks = make_chunks(make_libero)
    episode = dataset.episode(2)  # the second of the chosen ones; sample 12 is its first frame

    batch = chunks.__getitems__([(5, 12 + 3), (5, 12 + 9)])

    assert batch.images.shape == (2, 2, 3, 32, 32) and batch.images.dtype == torch.uint8
    np.testing.assert_array_equal(batch.images[0, 1].permute(1, 2, 0), episode.images("eye_in_hand", [3])[0])
    np.testing.assert_array_equal(batch.proprio[0], episode.proprio[3])
    np.testing.assert_array_equal(batch.actions[0], episode.actions[3:7])
    assert batch.instruction == ["open the drawer"] * 2
    assert batch.action_is_pad.tolist() == [[False] * 4, [False, False, True, True]]  # 11 frames: 9 and 10 are left
    np.testing.assert_array_equal(batch.actions[1, 1:], np.repeat(episode.actions[10:11], 3, axis=0))
    assert torch.equal(batch.key, sample_keys(0, torch.tensor([5, 5]), torch.tensor([15, 21])))


def test_each_sample_of_a_batch_has_pictures_of_its_own(make_libero: MakeLibero) -> None:
    """In any order of samples and cameras; a picture's first pixel identifies it."""
    dataset, samples = open_dataset(make_libero()), [15, 2, 30, 3]
    for cameras in (CAMERAS, CAMERAS[::-1]):
        chunks = ChunkDataset(dataset, np.array([0, 2, 3]), cameras, image_size=32, horizon=4)

        images = chunks.__getitems__([(0, index) for index in samples]).images

        for row, index in enumerate(samples):
            for view, camera in enumerate(cameras):
                episode, frame = chunks.place(index)
                of_task = episode if episode < 3 else episode - 3  # its number in its file
                assert images[row, view, :, 0, 0].tolist() == [of_task, frame, CAMERAS.index(camera)]


def test_valid_steps_count_what_is_not_padding(make_libero: MakeLibero) -> None:
    chunks = make_chunks(make_libero)
    batch = chunks.__getitems__([(0, i) for i in range(len(chunks))])

    np.testing.assert_array_equal((~batch.action_is_pad).sum(1), chunks.valid_steps)


def test_a_chunk_longer_than_every_episode_is_refused(make_libero: MakeLibero) -> None:
    with pytest.raises(InputError, match=r"action_horizon is 13.*12 frames"):
        make_chunks(make_libero, horizon=13)


def test_statistics_are_those_of_the_chosen_episodes(make_libero: MakeLibero) -> None:
    dataset = open_dataset(make_libero())
    (statistics,) = make_chunks(make_libero).statistics()
    actions = np.concatenate([dataset.episode(i).actions for i in (0, 2, 3)]).astype(np.float64)

    assert (statistics.episodes, statistics.frames) == (3, len(actions))
    np.testing.assert_allclose(statistics.action.mean, actions.mean(0))
    np.testing.assert_allclose(statistics.action.q99, np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(statistics.action.min, actions.min(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_keeps_the_order(make_libero: MakeLibero, workers: int) -> None:
    chunks = make_chunks(make_libero)
    order = TrainOrder(len(chunks), seed=1, batch_size=5)

    loaded = list(make_loader(chunks, order.batches(0, 0, 6), workers))

    assert len(loaded) == 6
    for batch, samples in zip(loaded, order.batches(0, 0, 6), strict=True):
        epochs, indices = torch.tensor(samples).unbind(1)
        assert torch.equal(batch.key, sample_keys(0, epochs, indices))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_its_own_inverse(orientation: str) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3), dtype=np.uint8)

    np.testing.assert_array_equal(turn_upright(turn_upright(images, orientation), orientation), images)  # type: ignore[arg-type]


def test_images_of_the_right_size_pass_unchanged_and_others_are_cropped_and_resized() -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    wide = np.zeros((1, 20, 40, 3), np.uint8)
    wide[:, :, 10:30] = 200  # the centred square

    np.testing.assert_array_equal(fit_images(images, 32), images.transpose(0, 3, 1, 2))
    assert (fit_images(wide, 16) == 200).all() and fit_images(wide, 16).shape == (1, 3, 16, 16)
    board = np.indices((32, 32)).sum(0) % 2 * 200  # of single pixels, which are no part of a smaller picture
    smaller = fit_images(np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8), 16).float()
    assert ((smaller - 100).abs() < 30).all()


def augmented(config: AugmentConfig, make_libero: MakeLibero, samples: list[tuple[int, int]]) -> torch.Tensor:
    batch = make_chunks(make_libero).__getitems__(samples)
    return Augmenter(config)(batch.images.float() / 255, batch)


def test_augmentation_depends_on_the_sample_and_the_epoch_only(make_libero: MakeLibero) -> None:
    config = AugmentConfig(shift=0.2)

    together = augmented(config, make_libero, [(0, 3), (0, 9), (1, 3)])
    alone = augmented(config, make_libero, [(0, 9)])

    torch.testing.assert_close(together[1:2], alone)
    assert (together[0] - together[2]).abs().max() > 0.01
    assert together.min() >= 0 and together.max() <= 1


def test_augmentation_switched_off_changes_nothing(make_libero: MakeLibero) -> None:
    config = AugmentConfig(shift=0, brightness=0, contrast=0, saturation=0)
    batch = make_chunks(make_libero).__getitems__([(0, 3)])

    torch.testing.assert_close(augmented(config, make_libero, [(0, 3)]), batch.images.float() / 255)


def test_a_shift_moves_the_picture_by_whole_pixels(make_libero: MakeLibero) -> None:
    """Up, down and sideways, another way for each sample."""
    config = AugmentConfig(shift=0.2, brightness=0, contrast=0, saturation=0)
    samples = [(0, frame) for frame in range(4)]
    before = make_chunks(make_libero).__getitems__(samples).unit_images()[:, 0]
    after = augmented(config, make_libero, samples)[:, 0]

    most = round(0.2 * 32)
    shifts = [(y, x) for y in range(-most, most + 1) for x in range(-most, most + 1)]
    inner = slice(most, -most)
    found = []
    for image, moved in zip(before, after, strict=True):
        (shift,) = [s for s in shifts if torch.allclose(image.roll(s, (1, 2))[:, inner, inner], moved[:, inner, inner])]
        found.append(shift)
    assert len({y for y, _ in found}) > 1 and len({x for _, x in found}) > 1


QUIET = {"brightness": 0, "contrast": 0, "saturation": 0}


def test_a_camera_is_turned_and_zoomed_about_its_middle(make_libero: MakeLibero) -> None:
    """Another way for each sample and camera, and the same way for the frames of one; never by more than was said."""
    config = AugmentConfig(**QUIET, zoom=0.1, turn_deg=20)
    batch = make_chunks(make_libero).__getitems__([(0, frame) for frame in range(24)])
    across, down = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="xy")
    ramps = (torch.stack([across, down, 0 * down]) / 4 + 0.5).expand(24, 4, 3, 33, 33)  # two cameras in two frames

    moved = Augmenter(config, frames=2)(ramps, batch)

    inner = slice(10, -10)  # where no border shows
    slope = torch.stack([moved[..., 0, 16, inner].diff().mean(-1), moved[..., 1, 16, inner].diff().mean(-1)], -1) * 64
    scale, angle = slope.norm(dim=-1), torch.rad2deg(torch.atan2(slope[..., 1], slope[..., 0]))
    assert torch.equal(moved[:, :2], moved[:, 2:]) and not torch.allclose(moved[:, 0], moved[:, 1])
    torch.testing.assert_close(moved[:, :, 0, 16, 16], torch.full((24, 4), 0.5))
    assert 0.9 <= scale.min() < 0.93 and 1.07 < scale.max() <= 1.1
    assert -20 <= angle.min() < -15 and 15 < angle.max() <= 20
    torch.testing.assert_close(moved[:1], Augmenter(config, frames=2)(ramps[:1], replace(batch, key=batch.key[:1])))


def test_one_of_several_cameras_is_black_in_a_share_of_the_samples(make_libero: MakeLibero) -> None:
    """In all of its frames; and a single camera is never."""
    batch = replace(make_chunks(make_libero).__getitems__([(0, 0)]), key=torch.arange(200))
    augment = Augmenter(AugmentConfig(**QUIET, drop_view=0.3), frames=2)
    white = torch.ones(200, 6, 3, 4, 4)  # three cameras

    shown = augment(white, batch)[:, :, 0, 0, 0].view(200, 2, 3)

    assert torch.equal(shown[:, 0], shown[:, 1]) and set(shown.unique().tolist()) == {0, 1}
    gone = (shown[:, 0] == 0).sum(0)
    assert (shown[:, 0].sum(1) >= 2).all() and 40 <= gone.sum() <= 80 and gone.min() >= 10
    assert torch.equal(augment(white[:, :2], batch), white[:, :2])


def test_numbers_that_are_off_are_not_kept_with_a_cache() -> None:
    """So that those which were filled before there were such numbers are still theirs."""
    assert set(AugmentConfig().described()) == {"shift", "brightness", "contrast", "saturation"}
    assert AugmentConfig(zoom=0.1).described()["zoom"] == 0.1


def test_colours_follow_brightness_saturation_and_contrast(make_libero: MakeLibero) -> None:
    """One affine map gives what the three steps give one after the other."""
    batch = make_chunks(make_libero).__getitems__([(0, 3)])
    views = batch.images[0].float() / 255 * 0.5 + 0.2  # nothing is clipped
    amounts = torch.tensor([0.3, -0.5]), torch.tensor([0.2, 0.4]), torch.tensor([-0.4, 0.1])
    config = AugmentConfig(brightness=0.2, contrast=0.3, saturation=0.5)

    got = Augmenter(config)._colour(views, *amounts)

    bright, sharp, vivid = ((1 + s * a).view(-1, 1, 1, 1) for s, a in zip((0.2, 0.3, 0.5), amounts, strict=True))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = views * bright
    grey = (x * luma).sum(1, keepdim=True)
    x = grey + vivid * (x - grey)
    mean = grey.mean((2, 3), keepdim=True)
    torch.testing.assert_close(got, (mean + sharp * (x - mean)).clamp(0, 1))
