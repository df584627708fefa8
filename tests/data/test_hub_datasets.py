"""Datasets of the Hugging Face hub, which here is a server on this machine that the hub's own client talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from atlas.config import DataConfig
from atlas.data.formats import open_configured, open_dataset
from atlas.errors import InputError
from tests.data.lerobot_folders import FIXTURES, VIDEO, as_version_2
from tests.data.local_hub import COMMIT, NAME, LocalHub, serving

META = ["meta/episodes/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json", "meta/tasks.parquet"]
DATA = "data/chunk-000/file-000.parquet"
FILMS = [f"videos/observation.images.{name}/chunk-000/file-000.mp4" for name in ("image", "image2")]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, as with HF_HUB_CACHE, which its client reads when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that can be reached, as with HF_ENDPOINT."""
    with serving(FIXTURES / VIDEO) as hub:
        point_to(hub.url, monkeypatch)
        yield hub


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def names(hub: LocalHub) -> list[str]:
    return sorted(name for name, _ in hub.fetched)


def test_a_dataset_is_fetched_once_and_is_there_without_a_network(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(f"hf:{NAME}")

    assert names(hub) == sorted([*META, DATA, *FILMS])
    same = open_dataset(FIXTURES / VIDEO)
    np.testing.assert_array_equal(dataset.episode(2).actions, same.episode(2).actions)
    np.testing.assert_array_equal(
        dataset.episode(2).images("eye_in_hand", [3]), same.episode(2).images("eye_in_hand", [3])
    )
    hub.fetched.clear()
    point_to("http://127.0.0.1:1", monkeypatch)  # nothing answers there
    assert open_dataset(f"hf:{NAME}").lengths.tolist() == same.lengths.tolist() and not hub.fetched


def test_only_the_files_that_are_needed_are_fetched(hub: LocalHub) -> None:
    dataset, cameras = open_configured(DataConfig(path=f"hf:{NAME}", cameras=["eye_in_hand"]))

    assert cameras == dataset.cameras == ["eye_in_hand"]
    assert names(hub) == sorted([*META, DATA, FILMS[1]])
    hub.fetched.clear()
    assert open_dataset(f"hf:{NAME}").cameras == ["agentview", "eye_in_hand"]
    assert names(hub) == [FILMS[0]]


@pytest.mark.parametrize("revision", ["main", "v3.0", COMMIT])
def test_a_revision_may_be_a_branch_a_tag_or_a_commit(hub: LocalHub, revision: str) -> None:
    assert len(open_dataset(f"hf:{NAME}@{revision}")) == 4


def test_an_older_version_is_fetched_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(as_version_2(FIXTURES / VIDEO, tmp_path / "old")) as hub:
        point_to(hub.url, monkeypatch)
        dataset = open_dataset(f"hf:{NAME}", cameras=["agentview"])

    films = [name for name in names(hub) if name.endswith(".mp4")]
    assert films == [f"videos/chunk-000/observation.images.image/episode_00000{i}.mp4" for i in range(4)]
    assert dataset.episode(3).images("agentview", [10]).shape == (1, 64, 64, 3)


def test_a_download_that_was_cut_off_goes_on(hub: LocalHub, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut_off = FILMS[0]

    assert len(open_dataset(f"hf:{NAME}")) == 4

    begins = [begin for name, begin in hub.fetched if name == FILMS[0]]
    assert len(begins) == 2 and begins[0] == 0 and begins[1] > 1000
    hub.fetched.clear()
    for name in (DATA, FILMS[1]):  # as an earlier run leaves it that was stopped before these
        link = hub_cache / f"datasets--{NAME.replace('/', '--')}" / "snapshots" / COMMIT / name
        link.resolve().unlink()
        link.unlink()
    assert len(open_dataset(f"hf:{NAME}")) == 4 and names(hub) == [DATA, FILMS[1]]


def test_what_cannot_be_had_is_said(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'hf:someone/else' .*there is no dataset of that name"):
        open_dataset("hf:someone/else")
    with pytest.raises(InputError, match=f"'hf:{NAME}@v9' .*no revision 'v9'"):
        open_dataset(f"hf:{NAME}@v9")
    with pytest.raises(InputError, match=r"'hf:libero' is not a reference .*hf:lerobot/libero"):
        open_dataset("hf:libero")
    hub.folder = FIXTURES / VIDEO / "meta" / "episodes"
    with pytest.raises(InputError, match=r"is not a LeRobot dataset: it has no meta/info\.json"):
        open_dataset(f"hf:{NAME}")
    point_to("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(InputError, match=r"'hf:someone/else' .*local cache, and the hub cannot be reached"):
        open_dataset("hf:someone/else")
