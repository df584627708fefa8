"""What SmolVLA, pi0 and pi0.5 have in common: several noises for a sample, and where they look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atlas.config import TrainingConfig
from atlas.policies.attention import ShowsAttention
from atlas.policies.published import flow_policy
from atlas.policies.published.flow_pieces import draw_training
from atlas.training.optimizer import make_optimizer, set_learning_rate
from tests.policies.test_picture_features import begin, some_batch

KINDS: list[tuple[str, dict[str, Any]]] = [("smolvla", {}), ("pi0", {}), ("pi05", {"train_expert_only": True})]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_more_noises_for_a_sample_are_the_mean_of_one_after_the_other(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, one = begin(kind, noise_draws=3, **settings), begin(kind, **settings)
    one.load_state_dict(policy.state_dict())
    batch = some_batch(policy)
    batch = replace(batch, action_is_pad=torch.arange(batch.action_is_pad.shape[1]) >= torch.tensor([[2], [4], [3]]))
    shape = (3, policy.processor.action_horizon, policy._width)
    noise, time = draw_training(shape, batch.key, torch.device("cpu"), policy._time, draws=3)

    found = policy(batch)

    losses = []
    for draw in range(3):
        monkeypatch.setattr(flow_policy, "draw_training", lambda *_, draw=draw: (noise[draw::3], time[draw::3]))
        losses.append(one(batch))
    torch.testing.assert_close(found.loss, torch.stack([terms.loss for terms in losses]).mean())
    assert float(found.n_valid) == float(losses[0].n_valid) == 9
    assert len(noise.unique(dim=0)) == 9 and len(time.unique()) == 9


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_it_says_where_it_looks_and_stays_as_it_is(kind: str, settings: dict[str, Any]) -> None:
    policy = begin(kind, **settings).eval()
    batch = some_batch(policy)
    before = policy.sample(batch)

    with torch.no_grad():
        found = policy.attention(batch)

    assert isinstance(policy, ShowsAttention) and found.maps is not None
    assert found.maps.shape == (3, policy.processor.views, 16, 16)
    assert torch.isfinite(found.maps).all() and (found.maps >= 0).all() and (found.maps.amax((2, 3)) > 0).all()
    assert all(p.grad is None for p in policy.parameters()) and torch.equal(policy.sample(batch), before)


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_random_weights_let_words_count_as_much_as_images(kind: str) -> None:
    network = begin(kind, weights="random", statistics="dataset").network
    image, words = torch.rand(1, 3, 64, 64) * 2 - 1, torch.arange(4)[None]
    valid = torch.ones_like(words, dtype=torch.bool)

    if kind == "smolvla":
        seen = [network.embed_pictures(image)]
        tokens, _ = network.embed_context(seen, [True], words, valid)
    else:
        tokens = network.embed_prefix([image], [valid[:, 0]], words, valid).embeddings

    assert 0.5 < tokens[0, -4:].std() / tokens[0, :-4].std() < 2.5


def test_training_does_not_let_images_outgrow_the_words() -> None:
    policy = begin("smolvla", weights="random", statistics="dataset", train_expert_only=False)
    batch, config = some_batch(policy), TrainingConfig(learning_rate=1e-3)
    optimizer = make_optimizer(policy, config)
    set_learning_rate(optimizer, config.learning_rate)

    for _ in range(10):
        optimizer.zero_grad()
        policy(batch).loss.backward()
        optimizer.step()

    tokens, _ = policy.embed_context(batch)
    of_images = policy.picture_tokens(batch)[0].shape[1]
    assert 0.5 < tokens[:, :of_images].std() / tokens[:, -4:].std() < 2.5
