"""The language encoders: small bytes from scratch, and pretrained text models that are read strictly and once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atlas.errors import InputError
from atlas.policies.modular.language_encoders.huggingface_language import HuggingFaceLanguageEncoder
from atlas.policies.modular.parts import BytesLanguageConfig, HuggingFaceLanguageConfig

WORDS = "pick up the red green blue cube and put it on plate open close drawer".split()
SHORT, LONG = "open it", "pick up the red cube and put it on the plate"
VOCABULARY = 32


def make_tokenizer() -> Any:
    """A word a token, with a start and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def sizes(width: int, **more: int) -> dict[str, int]:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return {"vocab_size": VOCABULARY, "hidden_size": width, "bos_token_id": 3, "eos_token_id": 1, **layers, **more}


def make_model(kind: str) -> Any:
    """A whole random model of its kind: with decoder, vision tower or language head, as published."""
    import transformers as hf

    vision = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    text = sizes(20, max_position_embeddings=16, pad_token_id=0)
    groups = {"num_key_value_heads": 1, "head_dim": 8}
    makers: dict[str, Callable[[], Any]] = {
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=VOCABULARY, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config={**text, "projection_dim": 8}, vision_config=vision, projection_dim=8)
        ),
        "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)),
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**sizes(28, max_position_embeddings=40))),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**sizes(28, max_position_embeddings=12, pad_token_id=0))),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes(16, **groups))),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes(32, **groups))),
        "bart": lambda: hf.BartModel(
            hf.BartConfig(vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1)
        ),
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**vision)),
    }
    torch.manual_seed(0)
    return makers[kind]().eval()


def text_part(kind: str, model: Any) -> Any:
    """The part of a whole model that turns ids into hidden states."""
    return {
        "t5": lambda: model.encoder,
        "clip": lambda: model.text_model,
        "siglip": lambda: model.text_model,
        "bert": lambda: model.bert,
        "llama": lambda: model.model,
        "qwen3": lambda: model.model,
    }[kind]()


KINDS = {"t5": 24, "clip": 20, "siglip": 20, "bert": 28, "llama": 16, "qwen3": 32}
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a kind of model, written once; to be left as it is."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            make_model(kind).save_pretrained(root / kind)
            make_tokenizer().save_pretrained(root / kind)
        return root / kind

    return folder


def encoder_of(folder: Path, freeze: bool = True, max_length: int = 128, **how: Any) -> HuggingFaceLanguageEncoder:
    config = HuggingFaceLanguageConfig(pretrained=str(folder), freeze=freeze, max_length=max_length)
    encoder = config.build(**how)
    assert isinstance(encoder, HuggingFaceLanguageEncoder)
    return encoder


# ---- what an encoder gives -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_last_hidden_states_of_the_saved_model(kind: str, saved: Saved) -> None:
    encoder = encoder_of(saved(kind))
    ids = torch.tensor([make_tokenizer()(LONG)["input_ids"]])
    with torch.no_grad():
        expected = text_part(kind, make_model(kind))(input_ids=ids).last_hidden_state

    tokens, is_pad = encoder([LONG])

    assert encoder.dim == KINDS[kind] == tokens.shape[-1] and tokens.dtype == torch.float32
    assert not is_pad.any()
    torch.testing.assert_close(tokens, expected)


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_attended_to(kind: str, freeze: bool, saved: Saved) -> None:
    alone, company = encoder_of(saved(kind), freeze).eval(), encoder_of(saved(kind), freeze).eval()

    one = alone([SHORT])
    three = company([LONG, SHORT, LONG])

    length = one.tokens.shape[1]
    assert three.is_pad.tolist()[1] == [False] * length + [True] * (three.tokens.shape[1] - length)
    assert not three.is_pad[0].any() and not three.is_pad[2].any()
    tolerance = {"rtol": 0.0, "atol": 0.0 if freeze else 1e-5}
    torch.testing.assert_close(three.tokens[1, :length], one.tokens[0], **tolerance)
    torch.testing.assert_close(three.summary()[1], one.summary()[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three.tokens[0], three.tokens[2])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_two_towers_only_the_one_for_text_is_built(kind: str, saved: Saved) -> None:
    encoder, whole = encoder_of(saved(kind)), make_model(kind)

    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in whole.text_model.parameters())


def test_an_instruction_that_is_too_long_is_cut_with_one_warning(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    endless = "pick up the red cube and " * 10
    by_config = encoder_of(saved("t5"), max_length=6)
    by_positions = encoder_of(saved("clip"))
    behind_padding = encoder_of(saved("roberta"))  # which counts its positions from 1

    for encoder, longest in ((by_config, 6), (by_positions, 16), (behind_padding, 11)):
        caplog.clear()
        for _ in range(2):
            assert encoder([endless, SHORT]).tokens.shape[1] == longest
        assert [r.levelno for r in caplog.records] == [logging.WARNING]
        assert endless in caplog.text and f"at most {longest}" in caplog.text


def test_an_empty_instruction_is_the_end_token_alone(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("llama"), tmp_path / "llama")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # as Qwen's, which adds nothing
    tokenizer.save_pretrained(folder)

    empty, ended = encoder_of(folder)([""]), encoder_of(folder)(["</s>"])

    assert empty.tokens.shape == (1, 1, 16) and not empty.is_pad.any()
    torch.testing.assert_close(empty.tokens, ended.tokens)
    assert encoder_of(saved("llama"))([""]).tokens.shape == (1, 2, 16)  # where there is a start and an end


def test_an_instruction_without_a_known_word_is_warned_of(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    encoder_of(saved("t5"))(["abre el cajón", SHORT])

    assert "abre el cajón" in caplog.text and "knows no word" in caplog.text and SHORT not in caplog.text


# ---- frozen and trained ----------------------------------------------------------------------------------


def test_a_frozen_encoder_has_nothing_to_train(saved: Saved) -> None:
    encoder = encoder_of(saved("t5"))

    tokens = encoder([SHORT, LONG]).tokens

    assert not tokens.requires_grad and not any(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.modules())
    assert not any(m.training for m in encoder.train().modules())
    assert not encoder.requires_grad_(True)(["close the drawer"]).tokens.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_encoder_learns_with_all_that_it_trains(kind: str, saved: Saved) -> None:
    encoder = encoder_of(saved(kind), freeze=False).train()

    tokens, is_pad = encoder([SHORT, LONG, SHORT])
    tokens[~is_pad].square().sum().backward()

    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert encoder.frozen is None and encoder.model.training
    assert trained and not [name for name, p in trained.items() if p.grad is None]


def test_each_instruction_is_encoded_once_and_alone(saved: Saved) -> None:
    encoder, shapes = encoder_of(saved("bert")), []
    encoder.model.register_forward_hook(
        lambda model, args, kwargs, out: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )

    encoder.embed([SHORT, SHORT])
    encoder([SHORT, LONG, SHORT])
    encoder([LONG, LONG])

    assert shapes == [(1, 4), (1, 13)]


def test_what_is_remembered_in_inference_mode_can_be_trained_on(saved: Saved) -> None:
    encoder, layer = encoder_of(saved("t5")), torch.nn.Linear(24, 1)
    with torch.inference_mode():
        encoder([SHORT])

    layer(encoder([SHORT]).tokens).sum().backward()

    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_the_precision_of_training_does_not_change_a_frozen_embedding(saved: Saved) -> None:
    plain, mixed = encoder_of(saved("t5")), encoder_of(saved("t5"))
    with torch.autocast("cpu", torch.bfloat16):
        inside = mixed([LONG]).tokens

    assert torch.equal(inside, plain([LONG]).tokens)


def test_weights_stay_in_the_type_they_are_stored_in_unless_they_are_trained(tmp_path: Path) -> None:
    make_model("clip").to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)

    frozen, trained = encoder_of(tmp_path), encoder_of(tmp_path, freeze=False)

    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert frozen([LONG]).tokens.dtype == torch.float32


def test_what_is_remembered_follows_the_module(saved: Saved) -> None:
    encoder = encoder_of(saved("t5"))
    encoder.embed([SHORT])

    assert encoder.to("meta")([SHORT]).tokens.device.type == "meta"


def test_a_trained_encoder_with_tied_weights_can_be_saved(saved: Saved, tmp_path: Path) -> None:
    encoder, other = encoder_of(saved("t5"), freeze=False).eval(), encoder_of(saved("t5"), freeze=False).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)

    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))

    torch.testing.assert_close(other([LONG]).tokens, encoder([LONG]).tokens)


# ---- embeddings on disk ----------------------------------------------------------------------------------


def test_embeddings_are_computed_by_one_process_and_read_by_others(saved: Saved, tmp_path: Path) -> None:
    first, second = encoder_of(saved("t5")), encoder_of(saved("t5"))
    first.embed([SHORT, LONG])
    first.save_embeddings(tmp_path / "run" / "instructions.safetensors")

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded again")

    handle = second.model.register_forward_hook(refuse)
    assert second.load_embeddings(tmp_path / "run" / "instructions.safetensors") == 2

    assert torch.equal(second([LONG, SHORT]).tokens, first([LONG, SHORT]).tokens)
    handle.remove()
    second(["close the drawer"])  # what is not in the file is still encoded


def test_embeddings_of_something_else_are_refused(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / "instructions.safetensors"
    encoder = encoder_of(saved("t5"))
    encoder.embed([SHORT])
    encoder.save_embeddings(file)

    with pytest.raises(InputError, match=r"instructions\.safetensors holds embeddings of '.*t5'.*bert.*delete"):
        encoder_of(saved("bert")).load_embeddings(file)
    with pytest.raises(InputError, match=r"cut at 128 tokens.*max_length is 64.*Set it back.*delete"):
        encoder_of(saved("t5"), max_length=64).load_embeddings(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"cannot be read as embeddings.*Delete it"):
        encoder.load_embeddings(file)
    save_file({"0": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="cannot be read as embeddings"):
        encoder.load_embeddings(file)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_source_is_the_same_encoder(kind: str, saved: Saved, tmp_path: Path) -> None:
    config = HuggingFaceLanguageConfig(pretrained=str(saved(kind)))
    encoder = encoder_of(saved(kind))
    encoder.save_source(tmp_path / "language")
    encoder.save_source(tmp_path / "language")  # again, over the first

    copy = config.build(source=tmp_path / "language")

    assert [p.name for p in tmp_path.iterdir()] == ["language"]
    assert encoder.frozen is not None and copy.frozen == encoder.frozen
    assert encoder.frozen.reference == str(saved(kind))
    assert torch.equal(copy([LONG, SHORT]).tokens, encoder([LONG, SHORT]).tokens)


def test_other_weights_have_another_hash(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("t5"), tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"][0, 0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    first, other = encoder_of(saved("t5")).frozen, encoder_of(folder).frozen

    assert first is not None and other is not None and first.sha256 != other.sha256


def test_modules_can_be_built_without_reading_weights(saved: Saved, tmp_path: Path) -> None:
    config_alone = tmp_path / "config.json"
    shutil.copy(saved("clip") / "config.json", config_alone)
    with torch.device("meta"):
        built = encoder_of(tmp_path, read_weights=False)

    read = encoder_of(saved("clip"))

    assert {p.device.type for p in built.parameters()} == {"meta"} and built.frozen is None and built.dim == 20
    assert [(n, p.shape) for n, p in built.named_parameters()] == [(n, p.shape) for n, p in read.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_can_be_had_on_the_meta_device(kind: str, saved: Saved) -> None:
    with torch.device("meta"):
        frozen = encoder_of(saved(kind), read_weights=False)
        trained = encoder_of(saved(kind), freeze=False, read_weights=False)

    for encoder in (frozen, trained):
        tokens = encoder([LONG]).tokens
        assert tokens.shape == (1, 13, KINDS[kind]) and tokens.device.type == "meta"


# ---- what is refused -------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "tensor", "named"),
    [
        ("t5", "shared.weight", r"shared\.weight"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.weight", r"encoder\.block\.0\.layer\.0\.SelfAttention\.q"),
        ("clip", "text_model.encoder.layers.1.mlp.fc1.weight", r"encoder\.layers\.1\.mlp\.fc1\.weight"),
        ("siglip", "text_model.final_layer_norm.bias", r"final_layer_norm\.bias"),
        ("bert", "bert.embeddings.word_embeddings.weight", r"embeddings\.word_embeddings\.weight"),
        ("llama", "model.norm.weight", r"norm\.weight"),
    ],
)
def test_missing_weights_are_refused_by_name(kind: str, tensor: str, named: str, saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(kind), tmp_path / kind)
    rewrite(folder, lambda weights: {name: w for name, w in weights.items() if name != tensor})

    with pytest.raises(InputError, match=rf"model\.language\.pretrained.*'{named}\S*' is missing"):
        encoder_of(folder)


def test_weights_of_another_shape_are_refused_by_name(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("bert"), tmp_path / "bert")
    name = "bert.embeddings.position_embeddings.weight"
    rewrite(folder, lambda weights: {**weights, name: weights[name][:8].clone()})

    with pytest.raises(InputError, match=r"position_embeddings\.weight' has shape \[8, 28\], expected \[40, 28\]"):
        encoder_of(folder)


def test_weights_that_no_embedding_depends_on_may_be_missing(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("siglip"), tmp_path / "siglip")
    rewrite(folder, lambda weights: {k: w for k, w in weights.items() if ".head." not in k and "vision" not in k})

    without, whole = encoder_of(folder), encoder_of(saved("siglip"))

    assert without.frozen is not None and whole.frozen is not None and without.frozen.sha256 == whole.frozen.sha256
    assert torch.equal(without([LONG]).tokens, whole([LONG]).tokens)


def test_weights_that_cannot_be_read_are_refused(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("t5"), tmp_path / "t5")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"the weights of .* cannot be read"):
        encoder_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the weights of .* cannot be read"):
        encoder_of(folder)


@pytest.mark.parametrize("kind", ["t5", "clip", "bert", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(kind), tmp_path / kind, ignore=shutil.ignore_patterns("tokenizer*"))

    with pytest.raises(InputError, match=r"model\.language\.pretrained: the tokenizer of .* cannot be read"):
        encoder_of(folder)


def test_a_tokenizer_of_another_model_is_refused(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("t5"), tmp_path / "t5")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)

    with pytest.raises(
        InputError, match=r"tokenizer of .* is of another model: it gives the token 50 for 'open word31'"
    ):
        encoder_of(folder)(["open word31"])


@pytest.mark.parametrize("kind", ["bart", "vit"])
def test_a_model_without_a_text_encoder_is_refused(kind: str, saved: Saved) -> None:
    with pytest.raises(InputError, match=rf"kind '{kind}', which has no text encoder.*such as T5"):
        encoder_of(saved(kind))


def test_a_model_that_is_not_there_is_an_error_not_a_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(monkeypatch, tmp_path / "cache")

    with pytest.raises(InputError, match=r"'nobody/nothing' could not be downloaded.*cache"):
        HuggingFaceLanguageConfig(pretrained="nobody/nothing").build()
    with pytest.raises(InputError, match=r"model\.language\.pretrained: there is no folder .*encoder; give a folder"):
        HuggingFaceLanguageConfig(pretrained=str(tmp_path / "encoder")).build()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"model\.language\.pretrained: the config of .*empty' cannot be read"):
        HuggingFaceLanguageConfig(pretrained=str(tmp_path / "empty")).build()


def test_a_model_in_the_hubs_cache_is_found_offline(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, cached = "0123456789" * 4, tmp_path / "cache" / "models--someone--tiny-t5"
    shutil.copytree(saved("t5"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    go_offline(monkeypatch, tmp_path / "cache")

    encoder = HuggingFaceLanguageConfig(pretrained="someone/tiny-t5").build()

    assert encoder.frozen is not None and encoder.frozen.reference == "someone/tiny-t5"
    assert torch.equal(encoder([LONG]).tokens, encoder_of(saved("t5"))([LONG]).tokens)
    (cached / "snapshots" / commit / "model.safetensors").unlink()  # as after a download that was cut off
    with pytest.raises(InputError, match="'someone/tiny-t5' could not be downloaded"):
        HuggingFaceLanguageConfig(pretrained="someone/tiny-t5").build()


def go_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """As with HF_HUB_OFFLINE=1 and HF_HUB_CACHE, which the hub's client reads when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_reading_a_model_leaves_the_console_alone(
    saved: Saved, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging as chatter

    folder = saved("clip")
    capfd.readouterr()
    chatter.add_handler(caplog.handler)
    try:
        encoder_of(folder)([SHORT])
    finally:
        chatter.remove_handler(caplog.handler)

    assert capfd.readouterr() == ("", "") and not caplog.records


# ---- bytes -----------------------------------------------------------------------------------------------


def test_the_bytes_encoder_masks_its_padding() -> None:
    encoder = BytesLanguageConfig(dim=16, layers=1).build().eval()

    one, two = encoder([SHORT]), encoder([LONG, SHORT])

    length = len(SHORT) + 1  # and an end
    assert two.is_pad.sum(1).tolist() == [0, len(LONG) - len(SHORT)] and encoder.frozen is None
    torch.testing.assert_close(two.tokens[1, :length], one.tokens[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two.summary()[1], one.summary()[0], rtol=1e-4, atol=1e-5)
    assert encoder([""]).tokens.shape == (1, 1, 16)


def test_the_bytes_encoder_cuts_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = BytesLanguageConfig(dim=16, layers=1, max_length=10).build()

    for _ in range(2):
        assert encoder([LONG, SHORT]).tokens.shape == (2, 10, 16)

    assert len(caplog.records) == 1 and LONG in caplog.text
