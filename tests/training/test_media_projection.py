"""The map of the dataset: principal components, t-SNE, and what TensorBoard's projector reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atlas.config import LoggingConfig, VisDatasetConfig, WandbConfig
from atlas.errors import InputError
from atlas.tracking import Resumed, RunTracker
from atlas.training.media.projection import check_method, principal_components, tsne


def clusters() -> np.ndarray:
    """float32 [90, 16]: three clusters."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(90, 16)) * 0.1 + np.repeat(3 * rng.normal(size=(3, 16)), 30, 0)).astype(np.float32)


def test_principal_components_keep_distances_and_say_how_much_they_explain() -> None:
    features = clusters()

    components, explained = principal_components(features)

    assert components.shape == (90, 16) and explained.shape == (16,)
    centred = features - features.mean(0)
    np.testing.assert_allclose(
        np.linalg.norm(components[0] - components[80]), np.linalg.norm(centred[0] - centred[80]), rtol=1e-5
    )
    np.testing.assert_allclose(explained, components.var(0) / features.var(0).sum(), rtol=1e-4)
    assert explained[:2].sum() > 0.9 and (np.diff(explained) <= 1e-12).all()


def test_the_same_features_with_other_signs_give_the_same_map() -> None:
    features = clusters()
    turned = features * np.where(np.arange(16) % 2, -1, 1).astype(np.float32)
    np.testing.assert_allclose(principal_components(features)[0], principal_components(turned)[0], atol=1e-4)


def test_features_of_one_dimension_or_all_alike_have_a_map_too() -> None:
    one, _ = principal_components(np.arange(12, dtype=np.float32)[:, None])
    same, explained = principal_components(np.ones((12, 5), np.float32))
    assert one.shape == (12, 2) and (one[:, 1] == 0).all()
    assert np.abs(same).max() == 0 and (explained == 0).all()


def test_wide_features_are_cut_to_fifty_components() -> None:
    assert principal_components(np.random.default_rng(0).normal(size=(80, 200)).astype(np.float32))[0].shape == (80, 50)


def test_tsne_is_the_same_each_time_and_keeps_clusters_together() -> None:
    pytest.importorskip("sklearn")
    components, _ = principal_components(clusters())

    threads = torch.get_num_threads()
    points = tsne(components)

    assert points.shape == (90, 2)
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(points, tsne(components))
    centres = points.reshape(3, 30, 2).mean(1)
    spread = np.linalg.norm(points.reshape(3, 30, 2) - centres[:, None], axis=-1).max()
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > spread


def test_a_missing_package_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"atlas-vla\[vis\]"):
        check_method(VisDatasetConfig(method="tsne"))
    check_method(VisDatasetConfig(method="tsne", interval=0))
    check_method(VisDatasetConfig(method="pca"))


# ---- TensorBoard's projector -------------------------------------------------------------------------------


def tracker_in(folder: Path, resume_step: int | None = None) -> RunTracker:
    resumed = Resumed(resume_step) if resume_step is not None else None
    return RunTracker(folder, "run", WandbConfig(), LoggingConfig(), resumed=resumed)


def read_projector(folder: Path) -> list[tuple[str, np.ndarray, list[str], Path | None]]:
    """As the plugin reads them: (name, points, lines of labels, sprite) of each projection."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    log_dir = folder / "tensorboard"
    config = text_format.Parse((log_dir / "projector_config.pbtxt").read_text(), ProjectorConfig())
    return [
        (
            e.tensor_name,
            np.loadtxt(log_dir / e.tensor_path, delimiter="\t"),
            (log_dir / e.metadata_path).read_text().splitlines(),
            log_dir / e.sprite.image_path if e.HasField("sprite") else None,
        )
        for e in config.embeddings
    ]


def test_the_projector_finds_points_labels_and_thumbnails(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    thumbnails = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 6, 3), 10, np.uint8)
    rows = [("open\tit", i) for i in range(5)]
    tracker = tracker_in(tmp_path)

    tracker.log_projection("dataset/frames", points, ("task", "frame"), rows, thumbnails, step=20)
    tracker.finish()

    ((name, read, labels, sprite),) = read_projector(tmp_path)
    assert name == "dataset/frames, step 20"
    np.testing.assert_allclose(read, points, rtol=1e-4)
    assert labels == ["task\tframe", *(f"open it\t{i}" for i in range(5))]
    assert sprite is not None
    picture = np.asarray(Image.open(sprite))
    assert picture.shape == (3 * 4, 3 * 6, 3)
    assert [int(picture[4 * (i // 3), 6 * (i % 3), 0]) for i in range(5)] == [0, 10, 20, 30, 40]


def test_a_resumed_run_keeps_what_its_earlier_segment_wrote(tmp_path: Path) -> None:
    for step in (10, 20):
        tracker = tracker_in(tmp_path, resume_step=step - 10)
        tracker.log_projection("dataset/frames", np.eye(3), ("task",), [["a"], ["b"], ["c"]], step=step)
        tracker.finish()

    found = read_projector(tmp_path)

    assert [name for name, *_ in found] == ["dataset/frames, step 10", "dataset/frames, step 20"]
    assert found[0][2] == ["a", "b", "c"]  # a single column has no header


@pytest.mark.parametrize(
    ("points", "rows", "thumbnails"),
    [
        (np.zeros(3), [["a"]] * 3, None),
        (np.full((3, 2), np.nan), [["a"]] * 3, None),
        (np.zeros((3, 2)), [["a"]] * 2, None),
        (np.zeros((3, 2)), [["a"]] * 3, np.zeros((3, 4, 4), np.uint8)),
    ],
)
def test_parts_that_do_not_fit_together_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, points: np.ndarray, rows: list[list[str]], thumbnails: np.ndarray
) -> None:
    tracker = tracker_in(tmp_path)
    tracker.log_projection("dataset/frames", points, ("task",), rows, thumbnails)
    tracker.finish()
    assert "'dataset/frames' is not logged" in caplog.text
    assert not (tmp_path / "tensorboard" / "projector_config.pbtxt").exists()
