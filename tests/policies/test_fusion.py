"""Fusion: vision, language and proprio become one token per action."""

from __future__ import annotations

import pytest
import torch

from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.modular.fusion import BidirectionalFusion, QueryFusion
from atlas.policies.modular.language_encoders.language_tokens import LanguageTokens
from atlas.policies.modular.parts import BidirectionalFusionConfig, QueryFusionConfig

BATCH, HORIZON, DIM = 2, 4, 32
TOKENS, WORDS = 9, 6
FUSIONS = {
    "queries": QueryFusionConfig(dim=DIM, layers=2),
    "bidirectional": BidirectionalFusionConfig(dim=DIM, layers=2, exchange_layers=2),
}
Config = QueryFusionConfig | BidirectionalFusionConfig


def make(config: Config) -> QueryFusion | BidirectionalFusion:
    torch.manual_seed(0)
    return config.build(HORIZON, vision_dim=24, language_dim=16, proprio_dim=8)


def inputs() -> tuple[torch.Tensor, LanguageTokens, torch.Tensor]:
    """Vision tokens, language tokens of which some are padded, proprio."""
    generator = torch.Generator().manual_seed(1)
    is_pad = torch.zeros(BATCH, WORDS, dtype=torch.bool)
    is_pad[0, 4:], is_pad[1, 2:] = True, True
    said = LanguageTokens(torch.randn(BATCH, WORDS, 16, generator=generator), is_pad)
    return (
        torch.randn(BATCH, TOKENS, 24, generator=generator),
        said,
        torch.randn(BATCH, 8, generator=generator),
    )


@pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())
def test_every_part_of_fusion_learns(config: Config) -> None:
    fusion = make(config)

    fused = fusion(*inputs())
    fused.square().mul(torch.linspace(0, 1, DIM)).sum().backward()

    assert fused.shape == (BATCH, HORIZON, DIM)
    assert not [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())
def test_words_that_are_not_there_change_nothing(config: Config) -> None:
    fusion = make(config)
    seen, said, felt = inputs()
    before = fusion(seen, said, felt)

    padded = torch.where(said.is_pad[..., None], torch.full_like(said.tokens, 9.0).cumsum(-1), said.tokens)
    torch.testing.assert_close(fusion(seen, said._replace(tokens=padded), felt), before)
    shorter = LanguageTokens(said.tokens[1:, :2], said.is_pad[1:, :2])  # nothing padded is left of it
    torch.testing.assert_close(fusion(seen[1:], shorter, felt[1:]), before[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())
def test_each_token_of_an_image_each_word_and_proprio_matter(config: Config) -> None:
    fusion = make(config)
    seen, said, felt = inputs()
    before = fusion(seen, said, felt)

    def moved(tokens: torch.Tensor, *place: int) -> torch.Tensor:
        tokens = tokens.clone()
        tokens[(0, *place)] = tokens[(0, *place)].flip(-1)
        return tokens

    others = [fusion(moved(seen, token), said, felt) for token in range(TOKENS)]
    others += [fusion(seen, said._replace(tokens=moved(said.tokens, word)), felt) for word in range(4)]
    others.append(fusion(seen, said, moved(felt)))

    for other in others:
        assert not torch.allclose(other[0], before[0], atol=1e-5)
        torch.testing.assert_close(other[1], before[1])  # the batch's other sample is left alone


@pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())
def test_tokens_are_told_apart_by_where_they_are_and_not_averaged(config: Config) -> None:
    """Two images with the same mean token are two images."""
    fusion = make(config)
    seen, said, felt = inputs()
    spread = seen.clone()
    spread[:, 0] += 2 * seen[:, 1]
    spread[:, 1] -= 2 * seen[:, 1]

    torch.testing.assert_close(spread.mean(1), seen.mean(1))
    assert not torch.allclose(fusion(spread, said, felt), fusion(seen, said, felt), atol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())
def test_a_frozen_encoders_tokens_may_be_bfloat16_and_of_any_size(config: Config, autocast: bool) -> None:
    fusion = make(config)
    seen, said, felt = inputs()
    rounded = seen.bfloat16()

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fused, larger = fusion(rounded, said, felt), fusion(100 * rounded, said, felt)

    tolerance = 0.1 if autocast else 1e-6
    torch.testing.assert_close(fused, fusion(rounded.float(), said, felt), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(larger, fused, rtol=0.1, atol=0.1)  # the entrance normalises


def test_words_reach_the_image_before_the_queries_read_it() -> None:
    """And the image reaches the words; both only in `bidirectional`, and all through the exchange."""
    fusion = make(FUSIONS["bidirectional"])
    assert isinstance(fusion, BidirectionalFusion)
    read: list[tuple[torch.Tensor, LanguageTokens]] = []
    fusion.read.register_forward_pre_hook(lambda _, given: read.append(given[:2]))
    seen, said, felt = inputs()

    fusion(seen, said, felt)
    fusion(seen, said._replace(tokens=said.tokens.flip(-1)), felt)
    fusion(seen.flip(-1), said, felt)

    (sights, words), (sights_of_other_words, _), (_, words_of_other_sights) = read
    assert sights.shape == (BATCH, TOKENS, DIM)
    assert ((sights - sights_of_other_words).abs().amax(-1) > 1e-3).all()  # every token of every image
    assert ((words.tokens - words_of_other_sights.tokens).abs().amax(-1) > 1e-3)[~said.is_pad].all()


def test_dropout_is_off_outside_training() -> None:
    for config in FUSIONS.values():
        fusion = make(config.model_copy(update={"dropout": 0.5}))

        assert not torch.equal(fusion(*inputs()), fusion(*inputs()))
        torch.testing.assert_close(fusion.eval()(*inputs()), fusion(*inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("part", ["fusion={name: queries", "fusion={name: bidirectional", "head={name: flow_matching"])
def test_a_width_that_its_attention_heads_cannot_share_is_refused(part: str) -> None:
    with pytest.raises(InputError, match=r"dim is 30; it must be a multiple of heads \(4\), such as 32"):
        load_config({}, [f"model.{part}, dim: 30, heads: 4}}"])


def test_saved_query_fusions_find_their_tensors() -> None:
    """The names that saved policies have."""
    layer = {
        f"layers.layers.0.{part}"
        for part in (
            *(f"{a}.{p}" for a in ("self_attn", "multihead_attn") for p in ("in_proj_weight", "in_proj_bias")),
            *(f"{a}.out_proj.{p}" for a in ("self_attn", "multihead_attn") for p in ("weight", "bias")),
            *(f"{m}.{p}" for m in ("linear1", "linear2", "norm1", "norm2", "norm3") for p in ("weight", "bias")),
        )
    }
    entrances = {f"{m}.{p}" for m in ("vision.0", "vision.1", "language.0", "language.1") for p in ("weight", "bias")}
    ends = {f"{m}.{p}" for m in ("proprio.0", "proprio.2", "layers.norm") for p in ("weight", "bias")}

    fusion = make(QueryFusionConfig(dim=DIM, layers=1))

    assert set(fusion.state_dict()) == layer | entrances | ends | {"kinds", "queries"}
