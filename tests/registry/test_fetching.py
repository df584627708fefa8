"""From wandb, the hub and run folders to verified directories."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from fake_wandb import FakeWandb
from faulty_servers import Closed, Refusing
from local_wandb import local_wandb

from atlas import registry
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.registry import client, download


@pytest.fixture
def reference(server: FakeWandb, checkpoint: Path) -> str:
    """A checkpoint in wandb, as version v0 and `best`."""
    return str(registry.push(checkpoint, aliases=["best"]))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_checkpoint_comes_back_as_it_was_pushed(reference: str, checkpoint: Path, run_dir: Path) -> None:
    assert reference == "wandb:somebody/atlas-vla/my-run:v0"
    folder = registry.fetch_checkpoint("wandb:somebody/atlas-vla/my-run:best")

    expected = {**files_of(checkpoint), "config.yaml": (run_dir / "config.yaml").read_bytes()}
    assert files_of(folder) == expected
    receipt = json.loads((folder.parent / "receipt.json").read_text())
    assert receipt["reference"] == reference
    assert receipt["metadata"]["run_name"] == "my run" and receipt["metadata"]["step"] == 40


def test_a_policy_loads_from_a_reference_and_is_the_same(reference: str, policy: ModularPolicy) -> None:
    loaded = load_policy("wandb:somebody/atlas-vla/my-run:latest")
    saved = policy.own_state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.own_state_dict().items())


def test_a_version_in_the_cache_needs_no_server(reference: str, server: FakeWandb) -> None:
    first = registry.resolve_policy(reference)
    asked = len(server.operations)
    assert registry.resolve_policy(reference) == first
    assert len(server.operations) == asked


def test_a_moving_alias_is_asked_for_each_time(reference: str, server: FakeWandb, checkpoint: Path) -> None:
    first = registry.fetch_checkpoint("wandb:somebody/atlas-vla/my-run:best")
    (checkpoint / "trainer" / "optimizer.pt").write_bytes(b"other moments")
    registry.push(checkpoint, aliases=["best"])
    second = registry.fetch_checkpoint("wandb:somebody/atlas-vla/my-run:best")
    assert (first / "trainer" / "optimizer.pt").read_bytes() == b"moments"
    assert (second / "trainer" / "optimizer.pt").read_bytes() == b"other moments"


def test_a_damaged_download_is_refused_and_fetched_again(
    reference: str, server: FakeWandb, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.artifacts.corrupt_files = 2
    folder = registry.fetch_checkpoint(reference)
    assert {name: data for name, data in files_of(folder).items() if name != "config.yaml"} == files_of(checkpoint)
    assert sum(" again: " in record.getMessage() for record in caplog.records) == 2


def test_a_download_that_stays_damaged_leaves_nothing_behind(reference: str, server: FakeWandb) -> None:
    server.artifacts.corrupt_files = 1000
    with pytest.raises(InputError, match="their digest is not the manifest's"):
        registry.fetch_checkpoint(reference)
    assert not any(path.is_file() for path in registry_cache().rglob("*"))
    server.artifacts.corrupt_files = 0
    assert registry.fetch_checkpoint(reference).is_dir()


def test_a_file_that_was_changed_in_the_cache_is_noticed(
    reference: str, server: FakeWandb, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = registry.fetch_checkpoint(reference)
    (folder / "trainer" / "optimizer.pt").write_bytes(b"mOments")
    again = registry.fetch_checkpoint(reference)
    assert (again / "trainer" / "optimizer.pt").read_bytes() == b"moments"
    assert any("is damaged" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def test_the_other_kind_of_digest_is_checked_as_well(reference: str, server: FakeWandb) -> None:
    server.artifacts.digest_with_xxh128(server.artifacts.find("my-run", "v0"))
    server.artifacts.corrupt_files = 1000
    with pytest.raises(InputError, match="their digest is not the manifest's"):
        registry.fetch_checkpoint(reference)
    server.artifacts.corrupt_files = 0
    assert registry.fetch_checkpoint(reference).is_dir()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../outside.txt", "leads out"),
        ("policy/../../../outside.txt", "leads out"),
        ("{tmp}/outside.txt", "absolute"),
        ("policy/./outside.txt", "roundabout"),
        ("..\\outside.txt", "backslash"),
    ],
)
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(
    reference: str, server: FakeWandb, tmp_path: Path, name: str, reason: str
) -> None:
    name = name.format(tmp=tmp_path)
    server.artifacts.rename_file(server.artifacts.find("my-run", "v0"), "trainer/optimizer.pt", name)
    with pytest.raises(InputError, match=f"v0: the list of its files: .*{reason}"):
        registry.fetch_checkpoint(reference)
    assert not any(path.is_file() for path in registry_cache().rglob("*"))
    assert not list(tmp_path.rglob("*outside.txt*"))


@pytest.mark.parametrize("size", [3, 3000])
def test_a_file_of_another_size_than_listed_is_refused(reference: str, server: FakeWandb, size: int) -> None:
    name = "trainer/optimizer.pt"  # of 7 bytes
    server.artifacts.rename_file(server.artifacts.find("my-run", "v0"), name, name, size=size)
    with pytest.raises(InputError, match=r"optimizer.pt cannot be downloaded: .*bytes"):
        registry.fetch_checkpoint(reference)
    assert not any(path.is_file() for path in registry_cache().rglob("*"))


def test_a_storage_that_does_not_answer_is_given_up(
    reference: str, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_LIST_SECONDS", 0.5)
    server.artifacts.silent_files = True
    with pytest.raises(InputError, match="does not answer"):
        registry.fetch_checkpoint(reference)
    assert not any(path.is_file() for path in registry_cache().rglob("*"))


def test_what_a_killed_download_left_is_removed_in_time(reference: str) -> None:
    place = registry.fetch_checkpoint(reference).parents[1]
    old, new = place / ".v1.1-aa.partial", place / ".v0.2-bb.partial"
    for folder in (old, new):
        (folder / "files").mkdir(parents=True)
    os.utime(old, (0, 0))
    os.utime(new, (0, 0))
    shutil.rmtree(place / "v0")
    registry.fetch_checkpoint(reference)
    assert old.exists() and not new.exists()  # each version looks after its own


def test_what_is_not_there_is_said_with_what_is(reference: str) -> None:
    with pytest.raises(InputError, match=r"has v0 \(.*best.*\)"):
        registry.resolve_policy("wandb:somebody/atlas-vla/my-run:prod")
    with pytest.raises(InputError, match="no model somebody/atlas-vla/other"):
        registry.resolve_policy("wandb:somebody/atlas-vla/other:v0")


def test_a_policy_alone_is_no_checkpoint_to_go_on_from(server: FakeWandb, checkpoint: Path) -> None:
    alone = registry.push(checkpoint / "policy", name="alone")
    assert registry.resolve_policy(str(alone)).is_dir()
    with pytest.raises(InputError, match=r"lacks trainer/state\.json"):
        registry.fetch_checkpoint(str(alone))


def test_without_a_network_a_version_works_and_an_alias_says_why_not(
    reference: str, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = registry.fetch_checkpoint(reference)
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 1)
    server.server_close()
    assert registry.fetch_checkpoint(reference) == folder
    with pytest.raises(InputError) as refused:
        registry.fetch_checkpoint("wandb:somebody/atlas-vla/my-run:best")
    assert "only the server knows which version 'best' is" in str(refused.value)
    assert "cannot be reached" in str(refused.value)
    assert f"The cache has v0: name one, such as {reference}" in str(refused.value)
    with pytest.raises(InputError, match=r"v7 is not in the cache.*cannot be reached"):
        registry.fetch_checkpoint("wandb:somebody/atlas-vla/my-run:v7")


def test_no_key_and_a_wrong_key_are_told_apart(tmp_path: Path) -> None:
    with Closed() as nobody, local_wandb(tmp_path / "a", nobody.url, key=None), pytest.raises(InputError) as refused:
        registry.resolve_policy("wandb:a/b/c:v0")
    assert "`wandb login`" in str(refused.value)
    with Refusing(401) as strict, local_wandb(tmp_path / "b", strict.url), pytest.raises(InputError) as refused:
        registry.resolve_policy("wandb:a/b/c:v0")
    assert "refuses the API key" in str(refused.value)


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'atlas-vla\[wandb\]'"):
        registry.resolve_policy("wandb:a/b/c:v0")


def test_a_policy_of_the_hub_is_found_in_its_cache(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def snapshot(name: str, **options: object) -> str:
        asked.update(name=name, **options)
        return str(checkpoint / "policy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert registry.resolve_policy("hf:owner/name") == checkpoint / "policy"
    assert asked["name"] == "owner/name" and asked["local_files_only"] is True
    with pytest.raises(InputError, match="hf:owner/name"):
        registry.resolve_policy("hf:owner")


def test_a_run_folder_gives_the_policy_of_its_best_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    pulled = registry.pull(run_dir, tmp_path / "out")
    assert pulled.path == tmp_path / "out"
    assert files_of(pulled.path) == files_of(run_dir / "checkpoints" / "best" / "policy")
    assert pulled.policy == pulled.path


def test_a_run_folder_without_checkpoints_gives_what_waits_to_be_sent(checkpoint: Path, tmp_path: Path) -> None:
    from atlas.registry.package import stage

    for step in (1, 2):
        staging = tmp_path / "offline" / "wandb" / "staged"
        stage(checkpoint, staging, "my-run", [f"step-{step}"], {"step": step}, None)
    pulled = registry.pull(tmp_path / "offline")
    assert pulled.path == staging / "0002" / "files"
    assert pulled.policy == pulled.path / "policy"


def test_nothing_is_written_over(reference: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    registry.pull(reference, tmp_path / "out")  # an empty folder is filled
    with pytest.raises(InputError, match="is not empty"):
        registry.pull(reference, tmp_path / "out")


def registry_cache() -> Path:
    from atlas.system.paths import cache_root

    return cache_root()
