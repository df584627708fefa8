"""`atlas model push, pull, list, promote, prune, card`, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import FakeWandb
from faulty_servers import Closed
from local_wandb import local_wandb

from atlas.registry import client

MODEL = "somebody/atlas-vla/my-run"
Atlas = Callable[..., Any]


@pytest.fixture
def pushed(server: FakeWandb, checkpoint: Path, atlas: Atlas) -> Callable[..., Any]:
    """Pushes the checkpoint as a new version, with a change in it."""
    count = iter(range(1000))

    def push(*arguments: object) -> Any:
        (checkpoint / "trainer" / "optimizer.pt").write_text(str(next(count)))
        return atlas("model", "push", checkpoint, *arguments)

    return push


def test_push_and_pull(pushed: Callable[..., Any], atlas: Atlas, server: FakeWandb, tmp_path: Path) -> None:
    sent = pushed("--alias", "mine", "--alias", "good", "--json")
    assert sent.code == 0, sent.err
    assert sent.json == {"reference": f"wandb:{MODEL}:v0", "version": "v0"}
    assert "Uploading my-run" in sent.err
    assert server.artifacts.names("my-run") == {"v0": ["good", "latest", "mine", "step-40"]}
    assert server.run_variables[0]["jobType"] == "upload-model"

    got = atlas("model", "pull", f"{MODEL}:mine", "--out", tmp_path / "out", "--json")
    assert got.code == 0, got.err
    assert got.json["reference"] == f"wandb:{MODEL}:v0"
    assert Path(got.json["policy"]) == tmp_path / "out" / "policy"
    assert got.json["bytes"] == sum(got.json["files"].values())
    assert {"config.yaml", "trainer/state.json", "policy/model.safetensors"} <= set(got.json["files"])
    assert (tmp_path / "out" / "trainer" / "optimizer.pt").read_text() == "0"


def test_of_a_run_the_best_checkpoint_is_pushed(run_dir: Path, atlas: Atlas, server: FakeWandb) -> None:
    (run_dir / "train.log").write_text("not of the model")
    assert atlas("model", "push", run_dir).code == 0
    version = server.artifacts.find("my-run", "step-40")
    assert "policy/model.safetensors" in version.files and "train.log" not in version.files


@pytest.mark.parametrize("link", ["policy/README.md", "config.yaml", "../../config.yaml"])
def test_a_link_to_a_file_elsewhere_is_not_sent(
    checkpoint: Path, atlas: Atlas, server: FakeWandb, tmp_path: Path, link: str
) -> None:
    (tmp_path / "secret").write_text("run_name: my run\n")
    (checkpoint / link).unlink(missing_ok=True)
    (checkpoint / link).symlink_to(tmp_path / "secret")
    sent = atlas("model", "push", checkpoint)
    assert sent.code == 2
    assert f"is a link to {tmp_path / 'secret'}, outside" in sent.err
    assert not server.artifacts.versions


def test_a_config_two_folders_up_belongs_to_a_run_alone(run_dir: Path) -> None:
    from atlas.system.file_store import artifact_files

    moved = (run_dir / "checkpoints").rename(run_dir / "downloads") / "step_00000040"
    assert "policy/config.yaml" in artifact_files(moved) and "config.yaml" not in artifact_files(moved)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainer/state.json", "[" * 5000),
        ("trainer/state.json", "[]"),
        ("config.yaml", "a: &a [*a]"),
        ("config.yaml", "- 1"),
    ],
)
def test_a_damaged_file_that_says_what_the_model_is_is_named(
    checkpoint: Path, atlas: Atlas, name: str, text: str
) -> None:
    (checkpoint / name).write_text(text)
    sent = atlas("model", "push", checkpoint)
    assert sent.code == 2 and f"{checkpoint / name} " in sent.err, sent.err


def test_push_takes_a_name_a_project_and_an_entity(checkpoint: Path, atlas: Atlas, server: FakeWandb) -> None:
    policy = checkpoint / "policy"
    sent = atlas("model", "push", policy, "--name", "Grasp it!", "--project", "p", "--entity", "lab", "--json")
    assert sent.json["reference"] == "wandb:lab/p/Grasp-it:v0"
    version = server.artifacts.find("Grasp-it", "latest")
    assert "model.safetensors" in version.files
    assert version.description is not None and version.description.startswith("# Atlas policy")


def test_a_refused_upload_is_no_success(checkpoint: Path, atlas: Atlas, server: FakeWandb) -> None:
    server.artifacts.refuse_commits = 10
    sent = atlas("model", "push", checkpoint)
    assert sent.code == 2
    assert "the commit is refused" in sent.err and "Traceback" not in sent.err
    assert server.exit_codes == [1]


def test_what_training_could_not_send_is_pushed_as_it_would_have_been(
    checkpoint: Path, atlas: Atlas, server: FakeWandb, tmp_path: Path
) -> None:
    from atlas.registry.package import stage

    package = stage(checkpoint, tmp_path / "staged", "a-run", ["best", "step-40"], {"step": 40, "x": 1}, "# The card")
    assert atlas("model", "push", package.folder).code == 0
    version = server.artifacts.find("a-run", "best")
    assert (version.metadata, version.description) == ({"step": 40, "x": 1}, "# The card")
    assert "config.yaml" in version.files


def test_list_shows_models_and_versions(pushed: Callable[..., Any], atlas: Atlas, checkpoint: Path) -> None:
    pushed("--alias", "good")
    pushed()
    atlas("model", "push", checkpoint / "policy", "--name", "another")

    listed = atlas("model", "list", "--json").json
    assert (listed["entity"], listed["project"]) == ("somebody", "atlas-vla")
    names = {model["name"]: [version["version"] for version in model["versions"]] for model in listed["models"]}
    assert names == {"another": ["v0"], "my-run": ["v1", "v0"]}
    oldest = listed["models"][1]["versions"][-1]
    assert (oldest["aliases"], oldest["step"]) == (["good"], 40)

    table = atlas("model", "list", "my-run")
    assert table.code == 0 and "v1" in table.out and "another" not in table.out


def test_a_project_without_models_is_no_error(server: FakeWandb, atlas: Atlas) -> None:
    assert atlas("model", "list", "--json").json["models"] == []
    assert "no models" in atlas("model", "list").out


def test_promote_links_a_version_to_a_registry(pushed: Callable[..., Any], atlas: Atlas, server: FakeWandb) -> None:
    pushed()
    linked = atlas("model", "promote", "my-run:v0", "--to", "models/cubes", "--alias", "prod", "--json")
    assert linked.code == 0, linked.err
    assert linked.json["linked"] == "wandb:somebodys-org/wandb-registry-models/cubes:v0"
    assert server.artifacts.find("cubes", "prod") is server.artifacts.find("my-run", "v0")
    pulled = atlas("model", "pull", "wandb:wandb-registry-models/cubes:prod", "--json")
    assert pulled.code == 0 and pulled.json["policy"]


def test_prune_removes_what_nobody_wants(pushed: Callable[..., Any], atlas: Atlas, server: FakeWandb) -> None:
    for aliases in ((), ("--alias", "best"), ("--alias", "mine"), (), (), ()):
        pushed(*aliases)
    atlas("model", "promote", "my-run:v3", "--to", "models/cubes")

    asked = atlas("model", "prune", "my-run", "--keep", "1", "--dry-run", "--json")
    assert asked.json == {"model": MODEL, "removed": ["v0", "v4"], "kept": ["v1", "v2", "v3", "v5"], "dry_run": True}
    assert len(server.artifacts.names("my-run")) == 6
    assert atlas("model", "prune", MODEL, "--keep", "1").code == 0
    assert list(server.artifacts.names("my-run")) == ["v1", "v2", "v3", "v5"]


def test_a_card_is_printed_for_folders_and_for_references(
    pushed: Callable[..., Any], atlas: Atlas, checkpoint: Path
) -> None:
    here = atlas("model", "card", checkpoint / "policy")
    assert here.code == 0 and here.out.startswith("# Atlas policy")
    pushed()
    there = atlas("model", "card", f"{MODEL}:latest", "--json")
    assert there.json["card"].startswith("# Atlas policy") and "| optimizer steps | 40 |" in there.json["card"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "no-such-folder"), "entity/project/name:best"),
        (("pull", "my-run:best"), "entity/project/name:best"),
        (("pull", f"{MODEL}:v0"), "There is no"),
        (("pull", "hf:owner"), "hf:owner/name"),
        (("push", "no-such-folder"), "no such file or folder"),
        (("promote", "my-run:v0", "--to", "models"), "REGISTRY/COLLECTION"),
        (("promote", "my-run", "--to", "models/cubes"), "names no version"),
        (("promote", "my-run:v0", "--to", "models/cubes", "--alias", "v1"), "cannot be an alias"),
        (("prune", "my-run:v0"), "name the model alone"),
        (("prune", "other"), "There is no model"),
        (("list", "other"), "There is no model"),
        (("list", "a/b/c/d"), "entity/project/name"),
        (("card", "tests"), "There is no policy"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], said: str, atlas: Atlas, server: FakeWandb
) -> None:
    ended = atlas("model", *arguments)
    assert ended.code == 2 and ended.out == ""
    assert said in ended.err and "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [("list",), ("prune", MODEL), ("pull", f"{MODEL}:best"), ("push", "CHECKPOINT")])
def test_no_network_and_no_key_are_said(
    arguments: tuple[str, ...], atlas: Atlas, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 1)
    verb = ["model", *(str(checkpoint) if part == "CHECKPOINT" else part for part in arguments)]
    with Closed() as nobody:
        with local_wandb(tmp_path / "a", nobody.url):
            ended = atlas(*verb)
        assert ended.code == 2 and f"{nobody.url} cannot be reached" in ended.err, ended.err
        with local_wandb(tmp_path / "b", nobody.url, key=None):
            ended = atlas(*verb)
        assert ended.code == 2 and "`wandb login`" in ended.err, ended.err


def test_a_json_report_is_alone_on_stdout(pushed: Callable[..., Any]) -> None:
    assert isinstance(json.loads(pushed("--json").out), dict)
