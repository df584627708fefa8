"""A small encoder drawn towards a frozen VGGT's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import atlas
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from tests.conftest import MakeLibero
from tests.policies.test_policy import SMALL, make_batch, make_processor
from tests.policies.test_vggt_backbone import SIZES, WEIGHTS

STUDENT = ["model.vision={name: vggt, stem: conv, embed_dim: 32, depth: 1}"]


def alignment(weights: Path = WEIGHTS, weight: float = 0.5) -> list[str]:
    teacher = f"{{pretrained: {weights}, {SIZES}}}"
    return [f"model.alignment={{teacher: {teacher}, image_size: 56, weight: {weight}}}"]


def make_policy(*overrides: str, hired: bool = True) -> ModularPolicy:
    torch.manual_seed(0)
    policy = ModularPolicy(load_config({}, [*SMALL, *STUDENT, *overrides]).model, make_processor())
    if hired and policy.alignment is not None:
        policy.alignment.load_teacher()
    return policy


def test_the_loss_has_a_share_of_the_cosine() -> None:
    plain = make_policy()
    policy = make_policy(*alignment(weight=0.5))
    policy.load_state_dict(plain.state_dict(), strict=False)

    with_teacher, without = policy(make_batch()), plain(make_batch())

    cosine = with_teacher.terms["alignment_loss"]
    assert 0 < cosine.item() < 2
    torch.testing.assert_close(with_teacher.loss, without.loss + 0.5 * cosine)
    assert "alignment_loss" not in without.terms


def test_training_brings_the_tokens_together() -> None:
    policy = make_policy(*alignment(weight=10.0)).train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    batch = make_batch()
    losses = []
    for _ in range(30):
        terms = policy(batch)
        losses.append(float(terms.terms["alignment_loss"].detach()))
        terms.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert losses[-1] < 0.6 * losses[0]


def test_the_student_learns_and_the_teacher_does_not() -> None:
    policy = make_policy(*alignment())

    policy.train()(make_batch()).terms["alignment_loss"].backward()

    touched = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert touched == {"vision", "alignment"}
    assert all(p.grad is None for p in policy.alignment.teacher.parameters())  # type: ignore[union-attr]


def test_the_teacher_is_not_saved_and_not_needed_to_act(tmp_path: Path) -> None:
    weights = Path(tmp_path / "teacher.safetensors")
    weights.write_bytes(WEIGHTS.read_bytes())
    policy = make_policy(*alignment(weights)).eval()
    policy.save_pretrained(tmp_path / "policy")
    weights.unlink()

    loaded = load_policy(tmp_path / "policy")

    batch = make_batch()
    assert torch.equal(loaded.sample(batch), policy.sample(batch))
    assert not any("teacher" in name for name in load_file(tmp_path / "policy" / "model.safetensors"))


def test_a_run_logs_the_loss_and_goes_on_after_a_stop(make_libero: MakeLibero, tmp_path: Path) -> None:
    settings = [
        *SMALL,
        *STUDENT,
        *alignment(),
        f"data.path={make_libero()}",
        "data.image_size=32",
        "data.batch_size=8",
        "data.val_fraction=0.3",
        "training.warmup_steps=1",
        "training.log_interval=2",
        f"output_dir={tmp_path}",
        "run_name=run",
    ]

    first = atlas.train({}, [*settings, "training.max_steps=2"])  # type: ignore[operator]
    second = atlas.train({}, [*settings, "training.max_steps=4"], resume="auto")  # type: ignore[operator]

    for metrics in (first.metrics, second.metrics):
        assert 0 < metrics["train/alignment_loss"] < 2 and 0 < metrics["val/alignment_loss"] < 2
    assert second.metrics["train/step"] == 4


@pytest.mark.parametrize("vision", ["{name: keypoints}", "{name: vggt, stem: keypoints}"])
def test_an_encoder_without_patches_has_nothing_to_align(vision: str) -> None:
    with pytest.raises(InputError, match="has patches to align"):
        load_config({}, [f"model.vision={vision}", *alignment()])


def test_the_teachers_images_must_fit_its_patches() -> None:
    with pytest.raises(InputError, match=r"model\.alignment\.image_size is 60.*such as 56"):
        load_config({}, [*STUDENT, *alignment(), "model.alignment.image_size=60"])


def test_features_and_alignment_do_not_go_together() -> None:
    with pytest.raises(InputError, match=r"data\.feature_cache holds a frozen backbone.s outputs"):
        load_config({}, [*STUDENT, *alignment(), "data.feature_cache=somewhere"])


def test_gradients_are_those_of_the_mean_over_all_tokens() -> None:
    """Two halves of a batch weigh alike, so that ranks with the same number of samples do."""
    policy = make_policy(*alignment())
    batch = make_batch(2)
    halves = [
        policy(
            replace(
                batch,
                **{
                    name: getattr(batch, name)[i : i + 1]
                    for name in ("images", "proprio", "instruction", "source", "actions", "action_is_pad")
                },
            )
        ).terms["alignment_loss"]
        for i in range(2)
    ]

    torch.testing.assert_close(policy(batch).terms["alignment_loss"], torch.stack(halves).mean(), atol=1e-3, rtol=1e-3)
