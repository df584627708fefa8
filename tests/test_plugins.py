"""Another package adds a policy type, parts of one, an environment and a dataset format, and Atlas works with them.

tests/fixtures/outside_package is such a package, as `pip` would have installed it: a folder on Python's path with the
entry points in its dist-info.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import atlas
from atlas.config import config_schema, load_config
from atlas.config.model_section import MODEL
from atlas.environments.catalog import WORLDS, environment_spec
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.parts import RegressionHeadConfig
from atlas.policies.modular.vision_encoders.vision_sections import VisionSection
from atlas.policies.summary import summarize
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.system.plugins import PluginTable
from tests import warm

PACKAGE = Path(__file__).parent / "fixtures" / "outside_package"
REFLEX = ["model.type=reflex", "model.width=8"]
NO_MAP = "logging.media.vis_dataset.interval=0"
PARTS = ["model.vision.name=dots", "model.head.name=straight", "model.fusion={dim: 16, layers: 1}"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process, and those that it starts."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """A small training on eight walks."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(8):
        said, end = [("go left", -1), ("go right", 1)][number % 2]
        start = rng.uniform(-0.5, 0.5)
        lines.append(f"{said}: " + " ".join(f"{place:.3f}" for place in np.linspace(start, end, 12)))
    (tmp_path / "demos.walks").write_text("\n".join(lines))
    return [
        f"data.path={tmp_path / 'demos.walks'}",
        f"output_dir={tmp_path / 'outputs'}",
        "run_name=run",
        "data.image_size=16",
        "data.batch_size=8",
        "data.action_horizon=4",
        "training.max_steps=4",
        "training.log_interval=2",
        "training.val_interval=4",
        "checkpoint.save_interval=2",
        "evaluation.episodes=2",
        "evaluation.final_episodes=2",
        "evaluation.video=0",
        "evaluation.workers=1",
        "distributed.cpu=true",
        *(f"logging.media.{kind}_logger.interval=0" for kind in ("episode", "gradient", "plot", "action")),
    ]


def test_a_policy_type_trains_rolls_out_saves_and_goes_on(installed: None, job: list[str]) -> None:
    result = atlas.train(None, [*job, *REFLEX])

    assert {"train/reach_loss", "train/jerk_loss", "val/reach_loss", "eval/success_rate"} <= result.metrics.keys()
    assert not any("gripper" in name or "pose_loss" in name for name in result.metrics)
    saved = yaml.safe_load((result.best_checkpoint / "policy" / "config.yaml").read_text())
    assert saved["type"] == "reflex" and saved["width"] == 8 and saved["calm"] == 0.1
    assert "type `reflex`" in (result.best_checkpoint / "policy" / "README.md").read_text()
    said = (result.run_dir / "train.log").read_text()
    assert "a policy of the type reflex has no features of images to show" in said
    policy = load_policy(result.run_dir)
    assert type(policy).__name__ == "ReflexPolicy" and policy.processor.action_spec.dim == 1
    report = evaluate_checkpoint(result.run_dir, "line", episodes=2, workers=1)
    assert {outcome.instruction for outcome in report.outcomes} == {"go left", "go right"}

    longer = atlas.train(None, [*job, *REFLEX, "training.max_steps=6"], resume="auto")

    assert (
        longer.metrics["train/step"] == 6 and longer.metrics["train/reach_loss"] != result.metrics["train/reach_loss"]
    )
    with pytest.raises(InputError, match=r"model\.width was 8 and is 16"):
        atlas.train(None, [*job, "model.type=reflex", "training.max_steps=8"], resume="auto")


def test_a_policy_type_is_spread_over_processes(installed: None, job: list[str], tmp_path: Path) -> None:
    two = ["--mode", "multi", "--gpus", "2", "distributed.strategy=fsdp"]
    less = [
        "data.batch_size=4",
        "training.max_steps=2",
        "evaluation.episodes=0",
        "logging.media.vis_dataset.interval=0",
    ]
    warm.atlas("train", *job, *REFLEX, *two, *less)

    checkpoint = tmp_path / "outputs" / "run" / "checkpoints" / "latest"
    assert sorted(path.name for path in (checkpoint / "trainer").glob("shard*"))
    assert type(load_policy(checkpoint)).__name__ == "ReflexPolicy"


def test_parts_of_a_modular_policy(installed: None, job: list[str]) -> None:
    result = atlas.train(None, [*job, *PARTS, "evaluation.episodes=0", NO_MAP])

    assert {"val/squared_loss", "val/loss"} <= result.metrics.keys() and "val/pose_loss" not in result.metrics
    assert load_policy(result.run_dir).config.vision.name == "dots"


def test_a_summary_counts_their_parts(installed: None) -> None:
    found = summarize(load_config({}, [*REFLEX, "data.action_horizon=4"]))

    assert [part["name"] for part in found["parts"]] == ["feel", "layers", "act"]
    assert found["parameters"] == found["trainable_parameters"] == 9 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 28 + 28
    assert found["flops_per_sample"] == 2 * (9 * 8 + 2 * 8 * 8 + 8 * 28)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.type=reflex", "model.wdith=8"], "unknown key 'model.wdith'. Did you mean 'width'? Known here: calm,"),
        (["model.type=reflex", "model.width=7"], "'model': width is 7; it must be even, such as 8"),
        (["model.type=reflex", "model.layers=0"], "'model.layers': input should be greater than or equal to 1"),
        (["model.vision={name: dots, size: 3}"], "unknown key 'model.vision.size'"),
        (["model.type=reflexes"], "'reflex' (given: 'reflexes')"),
    ],
)
def test_their_sections_are_checked_as_atlas_own(installed: None, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config({}, overrides)

    assert message in str(refused.value)


def test_another_type_starts_with_its_own_settings(installed: None) -> None:
    config = load_config(None, ["model.type=reflex"])  # the default file has the keys of a modular one

    assert config.model.model_dump(exclude={"processor"}) == {"type": "reflex", "width": 16, "layers": 2, "calm": 0.1}


def test_the_schema_has_them(installed: None) -> None:
    text = str(config_schema())

    assert "ReflexConfig" in text and "DotsConfig" in text and "StraightConfig" in text


def test_what_is_not_installed_is_named(job: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.type should be one of 'modular'.* \(given: 'reflex'\)"):
        load_config({}, REFLEX)
    with pytest.raises(InputError, match=r"Unknown environment 'line'.*Known: cubes"):
        environment_spec("line")
    for name in ("model.safetensors", "processor.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.yaml").write_text("{type: reflex, width: 8}")
    with pytest.raises(
        InputError, match=r"config\.yaml describes a policy of the type 'reflex', which is not known here"
    ):
        load_policy(tmp_path)


# ---- names -----------------------------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`others(name, group, line)`: another package with one entry point."""

    def install(package: str, group: str, line: str) -> None:
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_registering_holds_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.system.plugins._registered", {})
    cubes = WORLDS.find("cubes")

    atlas.register("atlas.environments", "mine", cubes)
    atlas.register("atlas.environments", "mine", cubes)

    assert environment_spec("mine").name == "cubes" and "mine" in WORLDS.names()
    with pytest.raises(InputError, match=r"'mine' is already registered in atlas.environments"):
        atlas.register("atlas.environments", "mine", WORLDS)
    with pytest.raises(InputError, match=r"no group 'atlas.enviroments'. Did you mean 'atlas.environments'\?"):
        atlas.register("atlas.enviroments", "mine", cubes)
    atlas.register("atlas.policies", "head", RegressionHeadConfig)
    with pytest.raises(InputError, match=r"'head' in atlas.policies should be a section derived from ModelConfig"):
        load_config({}, ["model.type=head"])


def test_a_name_is_taken_once(others: Any) -> None:
    others("first", "atlas.policies", "theirs = json:loads")
    assert MODEL.table.names() == [*MODEL.table.built_in, "theirs"]

    others("second", "atlas.policies", "theirs = json:dumps")
    with pytest.raises(InputError, match=r"takes the name 'theirs' in atlas.policies, which another package has"):
        MODEL.table.names()


def test_what_is_installed_and_removed_meanwhile_is_noticed(
    others: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others("first", "atlas.policies", "theirs = json:loads")
    assert "theirs" in MODEL.table.names()
    monkeypatch.setattr(pytest.MonkeyPatch, "syspath_prepend", lambda self, path: None)  # it is on the path already

    others("second", "atlas.policies", "another = json:dumps")
    assert {"theirs", "another"} <= set(MODEL.table.names())

    shutil.rmtree(tmp_path / "first-1.dist-info")
    assert "theirs" not in MODEL.table.names() and "another" in MODEL.table.names()


def test_packages_are_looked_through_once(others: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others("first", "atlas.policies", "theirs = json:loads")
    assert "theirs" in MODEL.table.names()
    monkeypatch.setattr("atlas.system.plugins.entry_points", None)

    assert "theirs" in MODEL.table.names()


def test_atlas_own_names_are_its_own(others: Any) -> None:
    others("greedy", "atlas.policies", "modular = json:loads")

    assert MODEL.table.find("modular") is not None
    with pytest.raises(InputError, match=r"greedy takes the name 'modular' in atlas.policies, which Atlas itself has"):
        MODEL.table.names()


def test_a_package_that_cannot_be_imported_is_named(others: Any) -> None:
    others("broken", "atlas.environments", "theirs = nowhere.at_all:WORLD")

    with pytest.raises(
        InputError, match=r"The package broken offers 'theirs' .*nowhere\.at_all:WORLD.*No module named"
    ):
        environment_spec("theirs")


def test_a_part_for_an_older_atlas_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Old\.build takes views, image_size; it should take one EncoderNeeds"):

        class Old(VisionSection):
            name: str = "old"

            def build(self, views: int, image_size: int) -> Any:  # type: ignore[override]
                ...


def test_a_built_in_is_imported_when_it_is_asked_for() -> None:
    table: PluginTable[Any] = PluginTable("atlas.policies", {"lazy": "json:loads", "gone": "nowhere:x"})

    assert table.find("lazy") is __import__("json").loads and table.find("other") is None
