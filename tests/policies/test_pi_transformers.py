"""transformers' own pi0 and Atlas's give the same velocities, also in sizes that the golden numbers do not have."""

from __future__ import annotations

import pytest
import torch
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.models.pi0.modeling_pi0 import PI0TimestepEmbeddings

from atlas.policies.pi.pi_network import PiNetwork, PiShape
from atlas.policies.pi.pi_sizes import BackboneSizes, GemmaSizes, SiglipSizes
from atlas.policies.published.flow_pieces import time_embedding

KEY_VALUE_HEADS, ACTION_DIM, STATE_DIM, CHUNK, WORDS = 2, 24, 20, 5, 90
# Nothing is as usual: 6 heads of 10 in a width of 44, and pictures of 45 pixels, of which 42 are three patches.
TEXT = GemmaSizes(width=44, depth=2, mlp_dim=50, num_heads=6, num_kv_heads=KEY_VALUE_HEADS, head_dim=10)
EXPERT = GemmaSizes(width=28, depth=2, mlp_dim=30, num_heads=6, num_kv_heads=KEY_VALUE_HEADS, head_dim=10)
VISION = SiglipSizes(
    hidden_size=36,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    patch_size=14,
    image_size=45,
)
# (theirs, ours)
NAMES = (
    ("model.vlm.vision_tower.", "vision."),
    ("model.vlm.multi_modal_projector.linear.", "projector."),
    ("model.vlm.language_model.embed_tokens.", "words."),
    ("model.vlm.language_model.", "language."),
    ("model.dit.", "expert."),
    ("embed_action_time.", ""),
    ("action_out_proj.", "action_out_proj."),
)


def _gemma(sizes: GemmaSizes) -> dict[str, object]:
    return {
        "model_type": "gemma",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "intermediate_size": sizes.mlp_dim,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": WORDS,
    }


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> PI0ForConditionalGeneration:
    """With random weights, norms too, and with its time in float64, as LeRobot has it."""

    def exactly(module: PI0TimestepEmbeddings, time: torch.Tensor) -> torch.Tensor:
        return time_embedding(time, EXPERT.width, 4e-3, 4.0).float()

    monkeypatch.setattr(PI0TimestepEmbeddings, "forward", exactly)
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": TEXT.width}
    vision |= {name: value for name, value in vars(VISION).items() if not name.startswith("_")}
    vlm = {"model_type": "paligemma", "text_config": _gemma(TEXT), "vision_config": vision}
    config = PI0Config(
        vlm_config=vlm | {"projection_dim": TEXT.width, "image_token_id": WORDS},
        dit_config=_gemma(EXPERT),
        chunk_size=CHUNK,
        max_state_dim=STATE_DIM,
        max_action_dim=ACTION_DIM,
    )
    torch.manual_seed(0)
    model = PI0ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3 if weight.ndim == 1 else 1.5 / weight.shape[-1] ** 0.5)
    return model


def ours_like(theirs: PI0ForConditionalGeneration) -> PiNetwork:
    sizes = BackboneSizes(text=TEXT, expert=EXPERT, vision=VISION, vocab_size=WORDS)
    network = PiNetwork(sizes, PiShape("pi0", CHUNK, STATE_DIM, ACTION_DIM)).eval()
    weights = {}
    for name, tensor in theirs.state_dict().items():
        start, own = next(pair for pair in NAMES if name.startswith(pair[0]))
        weights[own + name.removeprefix(start)] = tensor
    del weights["expert.embed_tokens.weight"]  # made up by the library, and never used
    network.load_state_dict(weights)
    return network


@pytest.mark.parametrize("absent", ["left out", "masked"])
def test_velocities_are_those_of_transformers(theirs: PI0ForConditionalGeneration, absent: str) -> None:
    network, n = ours_like(theirs), 2
    patches = VISION.patches
    images = [torch.randn(n, 3, VISION.image_size, VISION.image_size) for _ in range(3)]
    ids, length = torch.randint(1, WORDS, (n, 7)), torch.tensor([7, 4])
    valid = torch.arange(7)[None] < length[:, None]
    state, noisy, time = torch.randn(n, STATE_DIM), torch.randn(n, CHUNK, ACTION_DIM), torch.tensor([0.3, 0.95])
    there = torch.ones(n, dtype=torch.bool)

    with torch.no_grad():
        slots = images if absent == "masked" else images[:2]
        seen = [there, there, ~there][: len(slots)]
        prefix = network.embed_prefix(slots, seen, ids, valid)
        found = network.velocity(network.read_prefix(prefix).memory, prefix.valid, state, noisy, time)
        marks = torch.full((n, 2 * patches), WORDS)
        expected = theirs(
            state=state,
            noise=noisy,
            timestep=time,
            input_ids=torch.cat([marks, ids], dim=1),
            pixel_values=torch.stack(images[:2], dim=1),
            pixel_attention_mask=torch.ones(n, 2, dtype=torch.bool),
            attention_mask=torch.cat([torch.ones(n, 2 * patches, dtype=torch.bool), valid], dim=1),
        ).logits

    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < 1e-4
