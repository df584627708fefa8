"""Keeps what a policy answers to a few samples of validation, so that its checkpoint can be asked the same again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from atlas.data.sampling.chunks import ChunkDataset, Sample
from atlas.policies.base import Policy
from atlas.policies.reference_answers import (
    ReferenceAnswers,
    samples_that_fit,
    scale_proprio,
    weights_sums,
    words_of,
)
from atlas.system.safe_text import cause
from atlas.types import Batch

logger = logging.getLogger(__name__)


def keep_answers(
    policy: Policy,
    data: ChunkDataset,
    samples: Sequence[Sample],
    batch: Batch,
    sampled: torch.Tensor,
    step: int,
    computed: torch.dtype,
    execute: int,
) -> None:
    """Set the policy's `reference_answers` from the first samples of a batch, all of one source of the data.

    batch: of these samples, with images in [0, 1]; sampled: float [B, H, A], what the policy, whose weights are whole
    now, made of it. Data that cannot be read again, and batches of features, leave it without any.
    """
    policy.reference_answers = None
    if batch.images is None:
        return
    source = batch.source.cpu()
    same = [place for place, number in enumerate(source.tolist()) if number == source[0]]
    try:
        first = data.camera_images([samples[same[0]]])
        n = samples_that_fit(sum(image.nbytes for image in first.values()), len(same))
        rows = torch.tensor(_spread(same, n))
        cameras = data.camera_images([samples[place] for place in rows.tolist()])
    except OSError as error:
        logger.warning("The checkpoint keeps no reference answers: %s", cause(error))
        return
    proprio = batch.proprio.cpu()[rows].float()
    instructions = [batch.instruction[place] for place in rows.tolist()]
    assert batch.key is not None
    parameter = next(policy.parameters())
    policy.reference_answers = ReferenceAnswers(
        step=step,
        cameras={camera: torch.from_numpy(images) for camera, images in cameras.items()},
        images=(batch.images.cpu()[rows] * 255).round().to(torch.uint8).contiguous(),
        proprio=proprio,
        scaled_proprio=scale_proprio(policy.processor, proprio, source[rows]),
        instructions=instructions,
        words=words_of(policy, instructions),
        source=source[rows],
        key=batch.key.cpu()[rows],
        actions=sampled.cpu()[rows].float(),
        weights=weights_sums(policy.own_state_dict()),
        dtype=str(parameter.dtype).removeprefix("torch."),
        computed=str(computed).removeprefix("torch."),
        execute=execute,
    )


def _spread(places: Sequence[int], n: int) -> list[int]:
    """n of them, evenly: neighbours in an episode look alike."""
    return [places[i * len(places) // n] for i in range(n)]
