"""What `atlas model summary` counts, against formulas and against the real thing."""

from __future__ import annotations

import pytest
import torch

from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.summary import summarize
from tests.policies.test_alignment import alignment
from tests.policies.test_policy import SMALL, VISIONS, make_batch, make_policy

BACKBONE = ["model.vision.name=vggt_pretrained", "data.image_size=224"]


def vggt_flops(views: int, patches: int) -> int:
    """A multiplication and an addition count as two. C = 1024, a patch is 14 x 14 x 3 = 588 numbers, 48 + 24 attentions
    within a view and 24 over all of them."""
    c, t = 1024, patches + 5
    linear = 2 * views * patches * c * 588 + 72 * 24 * views * t * c**2
    attention = 4 * c * (48 * views * t**2 + 24 * views**2 * t**2)
    return linear + attention


@pytest.mark.parametrize(("size", "patches"), [(224, 16 * 16), (518, 37 * 37)])
def test_the_backbones_operations_are_those_of_the_formula(size: int, patches: int) -> None:
    found = summarize(load_config({}, [*BACKBONE, f"data.image_size={size}"]))

    vision = found["parts"][0]
    assert vision["parameters"] == 909_112_320 and vision["trainable"] == 0
    assert vision["flops"] == pytest.approx(vggt_flops(2, patches), rel=1e-3)
    # Forward once; the trained parts are small.
    assert found["training_flops_per_sample"] == pytest.approx(vision["flops"], rel=0.05)
    roofline = found["roofline"]["samples_per_second"]
    assert roofline == pytest.approx(989e12 / found["training_flops_per_sample"])


def test_an_unfrozen_backbone_takes_three_times_the_operations() -> None:
    found = summarize(load_config({}, [*BACKBONE, "model.vision.freeze=false"]))

    assert found["training_flops_per_sample"] == pytest.approx(3 * found["flops_per_sample"], rel=0.01)
    assert found["memory_gib"]["weights_and_optimizer"] > 16


@pytest.mark.parametrize("vision", VISIONS)
def test_parameters_are_those_of_the_policy(vision: str) -> None:
    found = summarize(load_config({}, [*SMALL, *VISIONS[vision], "data.image_size=32", "data.action_horizon=4"]))

    policy = make_policy(vision)
    assert found["parameters"] == sum(p.numel() for p in policy.parameters())
    assert sum(part["flops"] for part in found["parts"]) == found["flops_per_sample"] > 0


def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    small, large = (summarize(load_config({}, [f"data.batch_size={b}"]))["memory_gib"] for b in (8, 32))

    assert large["weights_and_optimizer"] == small["weights_and_optimizer"]
    assert large["activations"] == pytest.approx(4 * small["activations"])
    assert large["total"] == pytest.approx(large["weights_and_optimizer"] + large["activations"])


def test_recomputing_lowers_the_activations_and_leaves_the_models_operations() -> None:
    plain, recomputed = (
        summarize(load_config({}, [f"training.activation_checkpointing={on}"])) for on in ("false", "true")
    )

    assert recomputed["memory_gib"]["activations"] < 0.5 * plain["memory_gib"]["activations"]
    assert recomputed["training_flops_per_sample"] == plain["training_flops_per_sample"]


def test_a_teacher_takes_part_in_training_alone() -> None:
    student = ["model.vision={name: vggt, stem: conv, embed_dim: 32, depth: 1}", *SMALL]
    plain, taught = (summarize(load_config({}, [*student, *more])) for more in ([], alignment()))

    assert taught["training_flops_per_sample"] > 1.5 * plain["training_flops_per_sample"]
    assert taught["parts"] == plain["parts"]


def test_memory_is_for_a_batch_of_a_known_size() -> None:
    with pytest.raises(InputError, match=r"data.batch_size is 'auto'.*give a number"):
        summarize(load_config({}, ["data.batch_size=auto"]))


def test_what_is_kept_for_the_way_back_is_what_autograd_keeps() -> None:
    overrides = [*SMALL, *VISIONS["keypoints"], "data.image_size=32", "data.action_horizon=4", "data.batch_size=1"]
    predicted = summarize(load_config({}, overrides))["memory_gib"]["activations"] * 2**30
    policy, batch = make_policy(), make_batch(1)  # "pick up the red cube", as in the count
    policy(batch)  # caches are filled
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = policy(batch)

    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    assert terms.loss.requires_grad
    assert predicted == pytest.approx(sum(size for place, size in kept.items() if place not in weights), rel=0.1)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"--gpu is one of .*h100.*, not 'h1000'.*Did you mean 'h100'"):
        summarize(load_config(), gpu="h1000")
