"""What other packages add by name: with entry points, or with `register`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.config import load_config
from atlas.config.model_section import MODEL
from atlas.environments.catalog import WORLDS, environment_spec
from atlas.errors import InputError
from atlas.policies.modular.parts import RegressionHeadConfig
from atlas.system.plugins import PluginTable


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
    with pytest.raises(InputError, match=r"'mine' is registered in atlas.environments already"):
        atlas.register("atlas.environments", "mine", WORLDS)
    with pytest.raises(InputError, match=r"no group 'atlas.enviroments'. Did you mean 'atlas.environments'\?"):
        atlas.register("atlas.enviroments", "mine", cubes)
    atlas.register("atlas.policies", "head", RegressionHeadConfig)
    with pytest.raises(InputError, match=r"'head' in atlas.policies should be a section derived from ModelConfig"):
        load_config({}, ["model.type=head"])


def test_a_name_is_taken_once(others: Any) -> None:
    others("first", "atlas.policies", "theirs = json:loads")
    assert MODEL.table.names() == ["modular", "theirs"]

    others("second", "atlas.policies", "theirs = json:dumps")
    with pytest.raises(InputError, match=r"takes the name 'theirs' in atlas.policies, which another package has"):
        MODEL.table.names()


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


def test_a_built_in_is_imported_when_it_is_asked_for() -> None:
    table: PluginTable[Any] = PluginTable("atlas.policies", {"lazy": "json:loads", "gone": "nowhere:x"})

    assert table.find("lazy") is __import__("json").loads and table.find("other") is None
