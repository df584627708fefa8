"""The configuration as users meet it: YAML, overrides, and the messages when something is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas.cli.options import with_home
from atlas.config import DEFAULT_CONFIG, Config, config_schema, dump_yaml, load_config
from atlas.errors import InputError


def test_the_commented_file_holds_every_key_of_the_code() -> None:
    """train_config.yaml and the code's own defaults are the same."""
    written = yaml.safe_load(DEFAULT_CONFIG.read_text())

    assert set(_keys(written)) == set(_keys(load_config().model_dump()))
    assert load_config({}) == load_config()


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(None, ["training.learning_rate=2e-4", "data.cameras=[agentview]", "model.vision.name=vggt"])
    (tmp_path / "config.yaml").write_text(dump_yaml(config))

    assert load_config(tmp_path / "config.yaml") == config


def test_overrides_are_yaml_and_numbers_may_have_exponents() -> None:
    config = load_config({}, ["training.learning_rate=1e-4", "wandb.tags=[a, 'b c']", "run_name=my run"])

    assert config.training.learning_rate == 1e-4
    assert config.wandb.tags == ["a", "b c"] and config.run_name == "my run"


def test_another_kind_of_part_starts_with_its_own_settings() -> None:
    config = load_config(None, ["model.vision.name=vggt", "model.vision.depth=3"])

    assert config.model.vision.name == "vggt" and config.model.vision.depth == 3


def test_a_part_without_a_name_is_the_default_kind() -> None:
    assert load_config({"model": {"vision": {"width": 8}}}).model.vision.name == "keypoints"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainig.max_steps=3", ["trainig", "Did you mean 'training'"]),
        ("training.max_step=3", ["training.max_step", "Did you mean 'max_steps'"]),
        ("model.vision.widht=3", ["widht", "Did you mean 'width'"]),
        ("model.vision={name: vggt, dept: 3}", ["model.vision.dept'", "Did you mean 'depth'"]),
        ("model.vision.name=resnet", ["model.vision", "resnet", "keypoints", "vggt"]),
        ("data.batch_size=many", ["data.batch_size", "many"]),
        ("training.learning_rate=-1", ["training.learning_rate", "greater than 0"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "finite"]),
        ("training.num_epochs=3", ["training", "max_steps", "num_epochs", "both are set"]),
        ("training.max_steps=null", ["neither is set"]),
        ("evaluation.execute=9", ["evaluation.execute", "data.action_horizon"]),
        ("distributed={mode: single, gpus: 2}", ["single", "gpus is 2"]),
        ("distributed={cpu: true, gpu_ids: [0]}", ["cpu", "gpu_ids"]),
        ("distributed={gpus: 3, gpu_ids: [0, 1]}", ["gpus is 3", "names 2"]),
        ("data.orientation=sideways", ["data.orientation", "rotated_180"]),
        ("run_name=a/b", ["run_name", "a/b"]),
        ("seed.value=3", ["seed.value=3", "no keys below"]),
        ("max_steps", ["max_steps", "key=value"]),
        ("data.path=[", ["data.path=[", "YAML"]),
    ],
)
def test_what_is_wrong_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, [override])

    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("data: [", ["not valid YAML"]), ("- a\n- b", ["must hold sections"]), ("\xff", ["config.yaml"])],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))

    with pytest.raises(InputError) as error:
        load_config(tmp_path / "config.yaml")
    assert all(word in str(error.value) for word in words)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_a_type_that_comes_too_late_is_refused() -> None:
    """It begins the model anew: what was asked for before it would be lost without a word."""
    late = ["model.fusion.dim=32", "training.max_steps=5", "model.type=pi0", "model.pretrained=somewhere"]

    with pytest.raises(InputError, match=r"'model.type=pi0' .* would undo 'model.fusion.dim=32': put it before that"):
        load_config(None, late)
    assert load_config(None, late[1:]).model.type == "pi0"
    assert load_config(None, ["model.fusion.dim=32", "model.type=modular"]).model.fusion.dim == 32


EARLIER = sorted((Path(__file__).parent / "fixtures" / "earlier_configs").glob("*.yaml"))


@pytest.mark.parametrize("file", EARLIER, ids=lambda file: file.stem)
def test_a_config_that_an_earlier_version_wrote_is_read(file: Path) -> None:
    """A run's config holds every key of its day, and its run is to be resumed."""
    assert load_config(file).run_name == "default"


def test_the_schema_knows_the_sections() -> None:
    assert set(config_schema()["properties"]) == set(Config.model_fields)


@pytest.mark.parametrize(
    "what",
    [
        "import atlas.config; atlas.config.load_config()",
        "import atlas.rollout.workers, atlas.environments.cubes",
        "import atlas.rollout.recording, atlas.environments.cubes",
    ],
    ids=["the config is read", "a world is played in a process of its own", "demonstrations are recorded there"],
)
def test_torch_is_not_needed_where(what: str) -> None:
    """It takes more than a second and 200 MB of each process."""
    code = f"import sys; {what}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _keys(values: dict[str, object], prefix: str = "") -> list[str]:
    return [
        key
        for name, value in values.items()
        for key in ([*_keys(value, f"{prefix}{name}.")] if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


SHIPPED = sorted(DEFAULT_CONFIG.parent.glob("libero_*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid_and_say_what_to_expect(path: Path) -> None:
    config = load_config(path)
    comment = "".join(line.lstrip("# ") for line in path.read_text().splitlines(True) if line.startswith("#"))

    backbone = config.model.backbone if config.model.type == "vlm" else config.model.vision
    assert config.model.type == "vlm" or backbone.name in ("vggt_pretrained", "huggingface")
    assert backbone.freeze == ("trained" not in path.stem)
    assert config.data.image_size in (224, 518) and config.data.action_horizon == 8
    assert f"atlas/configs/{path.name}" in comment
    assert re.search(r"Expected, (measured|computed)", comment)
    assert re.search(r"[\d,.]+ samples/s", comment) and re.search(r"[\d.]+ GiB", comment)


def test_the_shipped_configs_are_the_documented_ones() -> None:
    assert [path.stem for path in SHIPPED] == [
        "libero_dinov3_1gpu",
        "libero_dinov3_8gpu",
        "libero_dinov3_trained_8gpu",
        "libero_vggt_1gpu",
        "libero_vggt_518px_cached",
        "libero_vggt_8gpu",
        "libero_vggt_flow",
        "libero_vlm_expert_8gpu",
        "libero_vlm_oft_1gpu",
    ]
    eight, flow, cached = (load_config(SHIPPED[i]) for i in (5, 6, 4))
    assert eight.distributed.gpus == 8 and eight.training.precision == "bf16"
    assert flow.model.head.name == "flow_matching"
    assert cached.data.image_size == 518 and cached.data.feature_cache is not None


def test_a_flow_head_needs_a_step() -> None:
    with pytest.raises(InputError, match=r"'model\.head\.steps': .*greater than or equal to 1.*given: 0"):
        load_config({}, ["model.head={name: flow_matching, steps: 0}"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"fusion": {"layers": 0}}}, "'model.fusion.layers': input should be greater than or equal to 1"),
        ({"model": {"fusion": {"name": "queries", "layers": 0}}}, "'model.fusion.layers': input should be greater"),
        ({"model": {"head": {"stepz": 1}}}, "unknown key 'model.head.stepz'"),
        ({"model": {"head": {"name": "flow_matching", "stepz": 1}}}, "Did you mean 'steps'? Known here: dim, gripper"),
        ({"model": {"alignment": {"wieght": 1}}}, "unknown key 'model.alignment.wieght'. Did you mean 'weight'?"),
        ({"model": {"alignment": {"teacher": {"dept": 1}}}}, "'model.alignment.teacher.dept'. Did you mean 'depth'?"),
        ({"model": {"head": {"name": "flow"}}}, "'model.head'"),
    ],
)
def test_complaints_name_the_key_of_the_file(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config(values)

    assert message in str(refused.value)


def test_a_tilde_is_the_users_home_wherever_a_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not expand it after `=`, and files do not either."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text("{data: {datasets: [{path: ~/a}, {path: ~/b}], frame_cache: ~/c}, evaluation: {record_path: ~/d}}")

    arguments = [
        "config",
        "show",
        "--json",
        "--config=~/mine.yaml",
        "output_dir=~/out",
        "data.feature_cache=~",
        "seed=3",
    ]
    assert [with_home(argument) for argument in arguments[3:5]] == [f"--config={file}", f"output_dir={tmp_path}/out"]
    assert [with_home(same) for same in arguments[5:]] == arguments[5:]  # ~ alone is YAML's null
    assert with_home("data.instruction=go to a~/b") == "data.instruction=go to a~/b"

    config = load_config("~/mine.yaml", ["output_dir=~/out", "model.language={name: huggingface, pretrained: ~/w}"])
    assert config.output_dir == f"{tmp_path}/out" and config.data.frame_cache == f"{tmp_path}/c"
    assert [source.path for source in config.data.sources] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert config.evaluation.record_path == f"{tmp_path}/d" and config.model.language.pretrained == f"{tmp_path}/w"


def test_three_quarters_of_a_chunk_are_executed_unless_told_otherwise() -> None:
    found = [load_config(None, o).evaluation.execute for o in ([], ["data.action_horizon=4"], ["evaluation.execute=2"])]

    assert found == [6, 3, 2]
