"""Folders of LeRobot's read, saved as Atlas's, exported and read back; and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.base import Policy, load_policy
from atlas.policies.exporting import export_policy
from atlas.policies.smolvla.smolvla_loading import check
from atlas.policies.smolvla.smolvla_policy import SmolVLAPolicy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from tests.policies.golden import FIXTURES, Golden

SMOLVLA = FIXTURES / "smolvla"
NEEDED = ("config.json", "model.safetensors", "policy_*", "tokenizer", "vlm")
NORMALIZER = "policy_preprocessor_step_5_normalizer_processor.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny SmolVLA's folder, to change."""
    copy = tmp_path / "smolvla"
    copy.mkdir()
    for pattern in NEEDED:
        for file in SMOLVLA.glob(pattern):
            if file.is_dir():
                shutil.copytree(file, copy / file.name)
            else:
                shutil.copyfile(file, copy / file.name)
    return copy


def change(file: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> None:
    """Change tensors of a file."""
    tensors = load_file(folder / name)
    edit(tensors)
    save_file(tensors, folder / name)


def smolvla(reference: str | Path) -> SmolVLAPolicy:
    policy = load_policy(reference)
    assert isinstance(policy, SmolVLAPolicy)
    return policy


def actions_of(policy: Policy) -> torch.Tensor:
    """Of the golden inputs, from the golden noise."""
    assert isinstance(policy, SmolVLAPolicy)
    golden = Golden("smolvla")
    return policy.sample_chunk(golden.batch(policy.processor), golden.inputs["sample_noise"])


def assert_same(first: Policy, second: Policy) -> None:
    """Weights and actions, bit for bit."""
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name].dtype != theirs[name].dtype or not mine[name].equal(theirs[name])] == []
    assert actions_of(first).equal(actions_of(second))


# ---- what is read ------------------------------------------------------------------------------------------------


def test_the_files_of_release_0_4_4_mean_the_same(folder: Path) -> None:
    shutil.copytree(SMOLVLA / "v044", folder, dirs_exist_ok=True)

    assert_same(smolvla(folder), smolvla(SMOLVLA))


def test_names_may_lack_the_prefix(folder: Path) -> None:
    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(folder, strip)

    assert_same(smolvla(folder), smolvla(SMOLVLA))


def test_a_word_table_that_is_stored_once_is_both(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.vlm_with_expert.vlm.lm_head.weight"))
    policy = smolvla(folder)

    table = policy.network.text.get_parameter("embed_tokens.weight")
    assert policy.network.get_parameter("vlm_with_expert.vlm.lm_head.weight").equal(table)
    assert actions_of(policy).equal(actions_of(smolvla(SMOLVLA)))


def test_old_statistics_among_the_weights_are_left_out_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(
        folder, lambda tensors: tensors.update({"normalize_inputs.so100_buffer_observation_state.mean": torch.ones(6)})
    )

    assert_same(smolvla(folder), smolvla(SMOLVLA))
    assert "normalize_inputs.so100_buffer_observation_state.mean" in caplog.text


def test_weights_keep_the_precision_of_the_file_but_for_those_that_are_trained(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items() if "vlm_with" in k}))
    policy = smolvla(folder)

    kinds = {p.requires_grad: set() for p in policy.parameters()}
    for parameter in policy.parameters():
        kinds[parameter.requires_grad].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    assert actions_of(policy).isfinite().all()


def test_statistics_that_are_not_there_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the published base model, whose statistics have other names."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith(("action.", "observation.state.")):
                tensors[f"so100.buffer.{name}"] = tensors.pop(name)

    for file in (NORMALIZER, "policy_postprocessor_step_0_unnormalizer_processor.safetensors"):
        rewrite(folder, rename, file)
    policy = smolvla(folder)

    golden = Golden("smolvla")
    batch = golden.batch(policy.processor)
    assert policy.state_scaler.normalize(batch.proprio, batch.source).equal(batch.proprio)
    assert "no statistics for 'action'" in caplog.text and "'observation.state' passes unscaled" in caplog.text


def test_statistics_are_the_datasets_where_the_folder_has_none(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in folder.glob("policy_*.json"):
        steps = json.loads(file.read_text())["steps"]
        change(file, steps=[{k: v for k, v in step.items() if k != "state_file"} for step in steps])
    whole = smolvla(SMOLVLA).processor
    (source,) = whole.statistics
    mine = replace(source, action=replace(source.action, mean=(9.0,) * 7))

    policy = SmolVLAConfig(pretrained=str(folder)).build(replace(whole, statistics=(mine,)))

    assert policy.processor.statistics[0].action.mean == (9.0,) * 7
    assert "is scaled by the dataset's" in caplog.text
    with pytest.raises(InputError, match=r"model.statistics is 'checkpoint'"):
        SmolVLAConfig(pretrained=str(folder), statistics="checkpoint").build(whole)


def test_cameras_go_by_name_and_what_is_new_to_the_weights_is_said(caplog: pytest.LogCaptureFixture) -> None:
    whole = smolvla(SMOLVLA).processor

    def slots(given: tuple[str, ...], **settings: Any) -> Any:
        config = SmolVLAConfig(pretrained=str(SMOLVLA), **settings)
        return config.build(replace(whole, cameras=given)).slots

    assert slots(("wrist", "top")).present == (("top", 1), ("wrist", 0)) and "camera" not in caplog.text
    assert slots(("a", "b"), cameras={"wrist": "a", "top": "b"}).present == (("top", 1), ("wrist", 0))
    assert slots(("front",)).present == (("top", 0),) and "has no camera 'front'" in caplog.text
    assert slots(("a", "top", "b", "c")).present[-1] == ("c", 3) and "has never seen 'b'" in caplog.text


# ---- what is given back ------------------------------------------------------------------------------------------


def test_a_folder_that_is_exported_is_read_back_to_the_bit(tmp_path: Path) -> None:
    policy = smolvla(SMOLVLA)

    out = export_policy(SMOLVLA, "lerobot", tmp_path / "out").folder

    assert_same(smolvla(out), policy)
    was, now = (load_file(file / "model.safetensors") for file in (SMOLVLA, out))
    assert was.keys() == now.keys() and all(was[name].equal(now[name]) for name in was)
    saved = json.loads((SMOLVLA / "names_as_lerobot_saves_them.json").read_text())["main"]["tensors"]
    assert {name: list(t.shape) for name, t in now.items()} == saved
    before, after = (json.loads((file / "config.json").read_text()) for file in (SMOLVLA, out))
    assert before.pop("pretrained_revision") is None  # which 0.4.4 does not know
    assert before == after
    steps = [json.loads((f / "policy_preprocessor.json").read_text())["steps"] for f in (SMOLVLA, out)]
    assert [step["registry_name"] for step in steps[0]] == [step["registry_name"] for step in steps[1]]
    numbers = load_file(out / NORMALIZER)
    golden = load_file(SMOLVLA / NORMALIZER)
    assert all(golden[name].equal(value) for name, value in numbers.items()) and len(numbers) == 12


def test_a_saved_policy_is_the_same_when_it_is_loaded(tmp_path: Path) -> None:
    """Its frozen part is named and not saved, unless it is saved in full; then its origin is not needed."""
    origin = tmp_path / "origin"
    shutil.copytree(SMOLVLA, origin)
    config = SmolVLAConfig(pretrained=str(origin))
    policy = config.build(smolvla(origin).processor).eval()
    with torch.no_grad():
        policy.network.state_proj.bias.add_(1)

    policy.save_pretrained(tmp_path / "named")
    policy.save_pretrained(tmp_path / "full", full=True)

    assert not any("vlm_with_expert.vlm" in name for name in load_file(tmp_path / "named" / "model.safetensors"))
    assert_same(load_policy(tmp_path / "named"), policy)
    shutil.rmtree(origin)
    assert_same(load_policy(tmp_path / "full"), policy)
    with pytest.raises(InputError, match=r"model\.pretrained"):
        load_policy(tmp_path / "named")


def test_other_frozen_weights_than_those_of_training_are_refused(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(SMOLVLA, origin)
    SmolVLAConfig(pretrained=str(origin)).build(smolvla(origin).processor).save_pretrained(tmp_path / "saved")
    rewrite(origin, lambda tensors: tensors["model.vlm_with_expert.vlm.lm_head.weight"].add_(1))

    with pytest.raises(InputError, match="was trained with other frozen backbone weights"):
        load_policy(tmp_path / "saved")


def test_the_published_base_model_has_its_tensors_and_parameters() -> None:
    """On the meta device, beside the list of all that the published file holds."""
    listed = json.loads((SMOLVLA / "checkpoint_shapes.json").read_text())
    config = load_config({"model": {"type": "smolvla"}, "data": {"action_horizon": 50}}).model
    processor = replace(smolvla(SMOLVLA).processor, cameras=("camera1", "camera2", "camera3"))
    with torch.device("meta"):
        policy = config.build(processor, read_weights=False)

    shapes = {name: list(tensor.shape) for name, tensor in policy.named_for_lerobot().items()}
    assert shapes == {name: entry["shape"] for name, entry in listed["tensors"].items()}
    assert len(shapes) == 500
    assert sum(p.numel() for p in policy.parameters()) == 450_046_176
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 99_880_992


# ---- what is refused ---------------------------------------------------------------------------------------------

Spoil = Callable[[Path], object]
LAYER = "model.vlm_with_expert.lm_expert.layers.0.mlp.up_proj.weight"


def _step(folder: Path, name: Any, **config: Any) -> None:
    file = folder / "policy_preprocessor.json"
    steps = json.loads(file.read_text())["steps"]
    change(file, steps=[*steps, {"registry_name": name, "config": config}])


def _modes(folder: Path, mode: Any) -> None:
    """Scale by something that the statistics do not have."""
    for file in folder.glob("policy_*.json"):
        content = json.loads(file.read_text())
        for step in content["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"] |= {"STATE": mode, "ACTION": mode}
        file.write_text(json.dumps(content))

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("q01", "q99"))]:
            del tensors[name]

    for file in folder.glob("policy_*.safetensors"):
        rewrite(folder, drop, file.name)


def _fewer_words(folder: Path) -> None:
    """A network of 100 words, and a tokenizer of more."""
    file = folder / "vlm" / "config.json"
    change(file, text_config=json.loads(file.read_text())["text_config"] | {"vocab_size": 100})
    rewrite(folder, lambda t: t.update({n: v[:100].clone() for n, v in t.items() if v.shape == (420, 48)}))


def _part(folder: Path, key: str) -> dict[str, Any]:
    return dict(json.loads((folder / "vlm" / "config.json").read_text())[key])


BAD: dict[str, tuple[Spoil, str]] = {
    "another type": (lambda f: change(f / "config.json", type="act"), "of the type 'act', which Atlas does not read"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "not the config of a LeRobot policy"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-40]),
        "it may be truncated",
    ),
    "a tensor missing": (lambda f: rewrite(f, lambda t: t.pop(LAYER)), f"'{LAYER[6:]}' is missing"),
    "a tensor more": (
        lambda f: rewrite(f, lambda t: t.update(other=torch.ones(1))),
        "'other' is not part of this policy",
    ),
    "another shape": (
        lambda f: rewrite(f, lambda t: t.update({LAYER: torch.ones(3, 3)})),
        f"'{LAYER[6:]}' has shape \\[3, 3\\]",
    ),
    "not finite": (lambda f: rewrite(f, lambda t: t[LAYER].fill_(float("nan"))), "not finite"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "there is no tokenizer"),
    "half a character": (
        lambda f: change(f / "tokenizer" / "tokenizer_config.json", padding_side="\ud800"),
        r"cannot be read: Padding side .* value: \\ud800",
    ),
    "a tokenizer of more words": (_fewer_words, "belongs to another model"),
    "an unknown step": (lambda f: _step(f, "rotate_images_processor"), "'rotate_images_processor' is unknown"),
    "a step whose name is none": (lambda f: _step(f, ["rotate"]), "the step '\\['rotate'\\]' is unknown"),
    "a step that Atlas lacks": (
        lambda f: _step(f, "relative_actions_processor", enabled=True),
        "'relative_actions_processor' is enabled",
    ),
    "quantiles that are not there": (lambda f: _modes(f, "QUANTILES"), "lack q01 and q99"),
    "an unknown mode": (lambda f: _modes(f, "LOG"), "normalised by 'LOG'"),
    "a mode that is none": (lambda f: _modes(f, []), r"normalised by \[\]"),
    "statistics of another width": (
        lambda f: [rewrite(f, lambda t: t.update({"action.mean": torch.ones(3)}), n.name) for n in f.glob("policy_*s")],
        "has 3 numbers, and 7 are needed",
    ),
    "other statistics on the way out": (
        lambda f: rewrite(f, lambda t: t["action.mean"].add_(1), NORMALIZER),
        "'mean' of actions differs",
    ),
    "a state file that leaves the folder": (
        lambda f: change(
            f / "policy_preprocessor.json",
            steps=[
                s | ({"state_file": "../x.safetensors"} if "state_file" in s else {})
                for s in json.loads((f / "policy_preprocessor.json").read_text())["steps"]
            ],
        ),
        "leads out of the folder",
    ),
    "more actions than the weights take": (
        lambda f: (
            change(f / "config.json", max_action_dim=6),
            rewrite(f, lambda t: t.update({n: v[:, :6].clone() for n, v in t.items() if "action_in_proj.w" in n})),
            rewrite(f, lambda t: t.update({n: v[:6].clone() for n, v in t.items() if "action_out_proj" in n})),
        ),
        "actions have 7 numbers, and the weights of .* take 6",
    ),
    "an option that Atlas lacks": (lambda f: change(f / "config.json", adapt_to_pi_aloha=True), "'adapt_to_pi_aloha'"),
    "a size that cannot be": (lambda f: change(f / "config.json", num_vlm_layers=7), "'num_vlm_layers' is 7"),
    "heads that do not share a width": (
        lambda f: change(
            f / "vlm" / "config.json", vision_config={**_part(f, "vision_config"), "num_attention_heads": 5}
        ),
        "'vlm_model_name' is .*whose 5 vision heads share 32 evenly",
    ),
    "no postprocessor": (lambda f: (f / "policy_postprocessor.json").unlink(), "policy_postprocessor.json is missing"),
    "JSON cut short": (
        lambda f: (f / "policy_preprocessor.json").write_text("{"),
        "policy_preprocessor.json cannot be read",
    ),
}


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_folder_is_refused_by_name(folder: Path, spoil: str) -> None:
    edit, message = BAD[spoil]
    edit(folder)

    with pytest.raises(InputError, match=message):
        load_policy(folder)


def test_before_training_the_same_is_refused(folder: Path) -> None:
    check(SmolVLAConfig(pretrained=str(folder)))
    rewrite(folder, lambda tensors: tensors.pop(LAYER))

    with pytest.raises(InputError, match="is missing"):
        check(SmolVLAConfig(pretrained=str(folder)))
    with pytest.raises(InputError, match="there is no folder"):
        check(SmolVLAConfig(pretrained=str(folder / "other")))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cameras": {"front": "top"}}, "model.cameras names 'front', which is not a camera of the weights"),
        ({"cameras": {"top": "front"}}, "'front' is not a camera of the data"),
        ({"cameras": {"top": "top"}}, "leaves out \\['wrist'\\]"),
        ({"tokenizer": "nowhere/at/all"}, "model.tokenizer: there is no tokenizer"),
        ({"vlm": "/nowhere"}, "model.vlm"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SmolVLAConfig(pretrained=str(SMOLVLA), **settings).build(smolvla(SMOLVLA).processor)


def test_a_tokenizer_of_transformers_5_goes_there_in_the_words_of_transformers_4(folder: Path, tmp_path: Path) -> None:
    file = "tokenizer/tokenizer_config.json"
    change(folder / file, tokenizer_class="TokenizersBackend", extra_special_tokens=["<image>"])
    words = smolvla(folder).prompt_tokenizer

    out = export_policy(folder, "lerobot", tmp_path / "out").folder

    written = json.loads((out / file).read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<image>"] and "extra_special_tokens" not in written
    again = smolvla(out).prompt_tokenizer
    assert words is not None and again is not None and again(["pick <image>"])[0].equal(words(["pick <image>"])[0])


def test_only_what_lerobot_has_goes_there(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is not empty"):
        export_policy(SMOLVLA, "lerobot", tmp_path / "full")
    with pytest.raises(InputError, match="Known: lerobot"):
        export_policy(SMOLVLA, "lerobt", tmp_path / "out")
