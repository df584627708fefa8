"""`answers`: asked the same again, does a policy answer as it did when it was validated; and if not, since when not.

The samples go through everything that stands before the network and behind it. The first stage at which something
differs from what was kept is what is named: train mode, pictures, proprio, words, weights, precision, answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import nn

from atlas.checks.finding import Finding
from atlas.checks.silent_bugs import BUGS, BugId
from atlas.checks.view_page import TURNS
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.policies.processor import Scaler
from atlas.policies.reference_answers import (
    ReferenceAnswers,
    same_weights,
    scale_proprio,
    weights_sums,
    words_of,
)
from atlas.types import Batch

_PIXEL = 1.5  # of 255: rounding on another machine
_SCALED = 1e-3  # of normalised proprio
_SAME = 2e-3  # of an action's deviation: sums in another order
_BF16 = 0.12  # likewise, where one side was computed in bfloat16
_AFFINE = 0.02  # of the deviation, that is left of answers that are others multiplied and shifted
_SHOWN = 3
_RULED_OUT: tuple[BugId, ...] = ("unnormalised", "statistics", "precision", "words", "resize")  # by the same answers


def check_answers(policy: Policy) -> Iterator[Finding]:
    """Ask a policy, as it is to act, what it was asked when it was validated."""
    modes = list(_modes(policy))
    yield from modes or [_well("no part of the policy is in train mode", "train_mode", "dropout")]
    reference = policy.reference_answers
    if reference is None:
        message = "the checkpoint keeps no reference answers: it was not validated at its step, or is older"
        yield Finding("answers", "info", message)
        return
    try:
        batch = _batch(policy, reference)
    except InputError as error:
        yield _wrong(f"the policy does not take its own samples: {error}", "state_source")
        return
    inputs = [*_images(reference, batch), *_proprio(policy, reference), *_words(policy, reference)]
    yield from inputs
    other = _weights(policy, reference)
    if other is not None:
        yield other
    elif not inputs:
        yield _well("the weights are those that were validated", "average")
    if not (modes or inputs or other):  # which explain answers that are others
        yield from _answers(policy, reference, batch)


def _well(message: str, *bugs: BugId) -> Finding:
    return Finding("answers", "info", message, bugs=bugs)


def _wrong(message: str, bug: BugId, evidence: dict[str, object] | None = None, fix: str | None = None) -> Finding:
    return Finding("answers", "error", message, fix or BUGS[bug].advice, evidence or {}, bugs=(bug,))


def _batch(policy: Policy, reference: ReferenceAnswers) -> Batch:
    device = next(policy.parameters()).device
    batch = policy.processor.batch(reference.observations)
    return replace(batch, source=reference.source, key=reference.key).to(device)


# ---- what the policy is --------------------------------------------------------------------------------------


def _modes(policy: Policy) -> Iterator[Finding]:
    """Modules that behave as in training."""
    training = [(name, module) for name, module in policy.named_modules() if module.training]
    dropping = [name for name, module in training if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0]
    dropping += [n for n, m in training if isinstance(m, nn.MultiheadAttention) and m.dropout > 0]
    if dropping:
        shown = ", ".join(dropping[:_SHOWN])
        yield _wrong(f"dropout is on in {len(dropping)} parts of the policy: {shown}", "dropout", {"parts": dropping})
    training = [(name, module) for name, module in training if any(True for _ in module.parameters())]
    if training and not dropping:
        parts = sorted({name.split(".")[0] or "the policy" for name, _ in training})
        message = f"parts of the policy are in train mode: {', '.join(parts[:_SHOWN])}"
        yield _wrong(message, "train_mode", {"parts": parts})


def _weights(policy: Policy, reference: ReferenceAnswers) -> Finding | None:
    """None where they are those that were validated, in the same precision."""
    dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
    if dtype != reference.dtype:
        return _wrong(f"the weights are {dtype}, and were {reference.dtype} when it was validated", "precision")
    if same_weights(weights_sums(policy.own_state_dict()), reference.weights):
        return None
    return _wrong(
        f"the weights are others than those that were validated at step {reference.step:,}: those of training instead "
        "of their average, or of another step",
        "average",
    )


# ---- what it is shown ----------------------------------------------------------------------------------------


def _images(reference: ReferenceAnswers, batch: Batch) -> Iterator[Finding]:
    assert batch.images is not None
    now, then = batch.images.cpu().numpy().astype(np.float32), reference.images.numpy().astype(np.float32)
    if now.shape != then.shape:
        yield _wrong(f"the network is shown images of {now.shape[1:]}, and was shown {then.shape[1:]}", "resize")
        return
    off = float(np.abs(now - then).mean())
    if np.abs(now - then).max() <= _PIXEL:
        yield from ()
        return
    evidence: dict[str, object] = {"mean_difference": round(off, 2)}
    views = range(now.shape[1])
    for order in permutations(views):
        if order != tuple(views) and np.abs(now[:, order] - then).max() <= _PIXEL:
            yield _wrong("the network is shown the cameras in another order than in training", "cameras", evidence)
            return
    if np.abs(now[:, :, ::-1] - then).max() <= _PIXEL:
        yield _wrong("the network is shown red and blue swapped, compared with training", "colours", evidence)
        return
    flat = then.reshape(-1, *then.shape[2:]).transpose(0, 2, 3, 1)  # [n * V, S, S, 3]
    seen = now.reshape(flat.shape[0], *now.shape[2:]).transpose(0, 2, 3, 1)
    for turn in TURNS[1:]:
        if np.abs(turn(flat) - seen).max() <= _PIXEL:
            yield _wrong(f"the network is shown images {turn.name}, compared with training", "turned", evidence)
            return
    message = f"images are fitted in another way than in training: pixels differ by {off:.1f} of 255 on average"
    yield _wrong(message, "resize", evidence)


def _proprio(policy: Policy, reference: ReferenceAnswers) -> Iterator[Finding]:
    now = scale_proprio(policy.processor, reference.proprio, reference.source)
    scaler = getattr(policy, "proprio_scaler", None)  # what the network itself does, where it shows it
    if isinstance(scaler, Scaler) and scaler.offset.dtype == torch.float32:  # in another precision it is another number
        now = scaler.normalize(reference.proprio.to(scaler.offset.device), reference.source.to(scaler.offset.device))
    off = (now.cpu() - reference.scaled_proprio).abs().amax(0)
    if float(off.max()) > _SCALED:
        yield _wrong(
            f"proprio is scaled otherwise than in training: number {int(off.argmax())} becomes another one by "
            f"{float(off.max()):.3g}",
            "statistics",
            {"largest_difference": [round(float(value), 4) for value in off]},
        )


def _words(policy: Policy, reference: ReferenceAnswers) -> Iterator[Finding]:
    now = words_of(policy, reference.instructions)
    if now is None or reference.words is None or list(now) == list(reference.words):
        return
    place = next(i for i, (a, b) in enumerate(zip(now, reference.words, strict=True)) if a != b)
    yield _wrong(
        f"'{reference.instructions[place]}' is read as {now[place]} tokens, and was read as {reference.words[place]}",
        "words",
        {"tokens": list(now), "then": list(reference.words)},
    )


# ---- what it answers -----------------------------------------------------------------------------------------


@torch.no_grad()
def _answers(policy: Policy, reference: ReferenceAnswers, batch: Batch) -> Iterator[Finding]:
    then = reference.actions.numpy().astype(np.float64)
    now, again = (policy.sample(batch).float().cpu().numpy().astype(np.float64) for _ in range(2))
    deviation = np.maximum(np.array(policy.processor.statistics[int(reference.source[0])].action.std), 1e-3)
    if np.abs(now - again).max() > 1e-5:
        yield _wrong("the same question is answered in two ways: something in the policy is random", "dropout")
        return
    off = np.abs(now - then) / deviation
    evidence: dict[str, object] = {"largest_difference_in_deviations": round(float(off.max()), 4)}
    low = reference.computed != reference.dtype
    if off.max() <= (_BF16 if low else _SAME):
        message = f"the policy answers {len(then)} samples of validation as it did at step {reference.step:,}"
        yield Finding("answers", "info", message, None, evidence, bugs=_RULED_OUT)
        return
    scaled = _scaled_otherwise(now, then, deviation)
    if scaled:
        names = [policy.processor.action_spec.names[d] for d in scaled]
        message = f"answers are those of validation, multiplied and shifted, in {', '.join(names[:_SHOWN])}"
        yield _wrong(f"{message}: they are un-normalised in another way", "unnormalised", evidence)
    elif off.max() <= _BF16:
        yield _wrong(
            f"answers differ from those of validation by up to {off.max():.2%} of an action's deviation, and nothing "
            "else does: they are computed in another precision",
            "precision",
            evidence,
        )
    else:
        yield _wrong(
            f"answers differ from those of validation by up to {off.max():.2f} deviations, though pictures, proprio "
            "and weights are the same: instructions are read in another way, or something in the policy has changed",
            "words",
            evidence,
        )


def _scaled_otherwise(now: np.ndarray, then: np.ndarray, deviation: np.ndarray) -> list[int]:
    """The dimensions of actions [n, H, A] that differ by a factor and an offset alone; none where one differs in
    another way."""
    found = []
    for d in range(then.shape[-1]):
        a, b = then[..., d].ravel(), now[..., d].ravel()
        if np.abs(a - b).max() <= _SAME * deviation[d]:
            continue
        slope, offset = np.polyfit(a, b, 1) if a.std() > 1e-6 else (1.0, float((b - a).mean()))
        if np.abs(b - (slope * a + offset)).max() > _AFFINE * max(b.std(), 1e-3) or abs(slope) < 1e-3:
            return []
        if abs(slope - 1) > 0.005 or abs(offset) > 0.005 * deviation[d]:
            found.append(d)
    return found
