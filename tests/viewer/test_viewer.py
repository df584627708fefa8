"""The viewer shows what is in an episode, and a real browser displays it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from atlas.cli import app
from atlas.data.formats import open_dataset
from atlas.errors import InputError
from atlas.types import ActionSpec
from atlas.viewer import check_out, look
from atlas.viewer.page import shown_size
from atlas.viewer.prediction import compare
from tests.conftest import MakeLibero
from tests.data.lerobot_folders import FIXTURES, VIDEO, rename_feature

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BROWSER_SECONDS = 60
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def coloured(make_libero: MakeLibero) -> Path:
    """An episode whose world camera is red in frame 0, green in frame 1 and blue afterwards."""
    import h5py

    root = make_libero({'stack </script> "blocks" & go @DATA@ @SCRIPT@': [7]})
    with h5py.File(next(root.glob("*.hdf5")), "a") as file:
        images = file["data/demo_0/obs/agentview_rgb"]
        images[:] = 0
        images[0, ..., 0] = images[1, ..., 1] = images[2:, ..., 2] = 220
    return root


def data_of(page: Path) -> dict[str, Any]:
    """What the page shows."""
    found = re.search(r'<script type="application/json" id="episode">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def pixels(webp: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(webp))).convert("RGB"))


# ---- the page --------------------------------------------------------------------------------------------


def test_a_page_holds_all_of_an_episode_and_refers_to_nothing_else(coloured: Path, tmp_path: Path) -> None:
    page = tmp_path / "episode.html"
    result = CliRunner().invoke(app, ["data", "view", str(coloured), "--out", str(page)])
    assert result.exit_code == 0, result.output

    shown, episode = data_of(page), open_dataset(coloured).episode(0)
    title = "stack &lt;/script&gt; &quot;blocks&quot; &amp; go @DATA@ @SCRIPT@ · episode 0"  # marks of the page itself
    assert f"<title>{title}</title>" in page.read_text()
    assert shown["instruction"] == episode.instruction and shown["length"] == 7 and shown["hz"] == 20
    dx, *_, gripper = (np.array(curve["values"]) for curve in shown["groups"][0]["curves"])
    np.testing.assert_allclose(dx, 50 * episode.actions[:, 0], atol=1e-3)  # millimetres
    np.testing.assert_array_equal(gripper, episode.actions[:, 6] > 0)
    for i, curve in enumerate(shown["groups"][1]["curves"]):
        np.testing.assert_allclose(curve["values"], episode.proprio[:, i], atol=1e-3)
    np.testing.assert_allclose(shown["path"]["arms"][0]["points"], episode.proprio[:, :3], atol=1e-3)
    world = shown["cameras"][0]
    assert world["name"] == "agentview" and len(world["frames"]) == 7
    for frame, channel in ((0, 0), (1, 1), (5, 2)):
        assert pixels(world["frames"][frame]).mean((0, 1)).argmax() == channel
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!#)[^"]+"|url\((?!#)|https?://(?!www\.w3\.org)|@import', text)


def test_a_label_of_another_rate_does_not_change_how_fast_it_happened(tmp_path: Path) -> None:
    look(open_dataset(FIXTURES / VIDEO), 1, tmp_path / "page.html")

    shown = data_of(tmp_path / "page.html")
    assert shown["hz"] == 20 and ["labelled 10 fps", ""] in shown["chips"]


def test_of_an_unknown_robot_the_path_is_what_the_actions_command(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / VIDEO, tmp_path / "set"))
    rename_feature(root, "observation.images.image2", "observation.images.top")

    look(open_dataset(root), 0, tmp_path / "page.html")

    shown, episode = data_of(tmp_path / "page.html"), open_dataset(root).episode(0)
    assert "command" in shown["path"]["title"]
    np.testing.assert_allclose(shown["path"]["arms"][0]["points"][3], 0.05 * episode.actions[:3, :3].sum(0), atol=1e-4)
    assert [curve["name"] for curve in shown["groups"][1]["curves"]] == [f"state {i}" for i in range(8)]


def test_many_or_large_pictures_are_shown_smaller() -> None:
    assert shown_size(128, 128, 600) == (128, 128)
    assert shown_size(480, 640, 100) == (384, 512)  # a page is no cinema
    height, width = shown_size(720, 1280, 6000)
    assert width / height == pytest.approx(1280 / 720, rel=0.02) and 6000 * height * width <= 100e6


@in_a_browser
def test_a_browser_shows_the_frame_that_is_asked_for(coloured: Path, tmp_path: Path) -> None:
    page, shot = tmp_path / "episode.html", tmp_path / "shot.png"
    look(open_dataset(coloured), 0, page)

    said = browse(page, 1, f"--screenshot={shot}", "--window-size=1400,900")
    dom = browse(page, 5, "--dump-dom")

    assert not re.search(r"CONSOLE|Uncaught", said + dom)
    assert 'data-frame="5"' in dom and 'data-shown="5"' in dom  # all pictures of the frame are drawn
    actions = open_dataset(coloured).episode(0).actions
    shown = [float(value) for value in re.findall(r'<div class="value">([-\d.]+)</div>', dom)]
    assert shown[0] == pytest.approx(50 * actions[5, 0], rel=0.01, abs=0.01)
    assert 'stack &lt;/script&gt; "blocks" &amp; go' in dom
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)[100:300, 60:300]  # of the first camera
    green = (picture[..., 1] > 180) & (picture[..., 0] < 60)
    assert green.mean() > 0.8, "frame 1 is green"


def browse(page: Path, frame: int, *flags: str) -> str:
    """What a browser that opens the page prints."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [*command, *flags, f"file://{page}#{frame}"], capture_output=True, text=True, timeout=BROWSER_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# ---- a policy beside it ----------------------------------------------------------------------------------


def test_errors_of_a_prediction_are_in_millimetres_and_degrees() -> None:
    actions = np.zeros((2, 7), np.float32)
    actions[:, 6] = 1
    chunks = np.repeat(actions[:, None], 3, axis=1)
    chunks[0, 0, :3] = [0.06, 0.08, 0]  # 5 mm away
    chunks[1, 0, 3] = 0.5  # a quarter of a radian
    chunks[1, 0, 6] = -1

    found = compare("runs/a/best", chunks, actions, ActionSpec())

    np.testing.assert_allclose(found.errors["position_error_mm"], [5, 0], atol=1e-5)
    np.testing.assert_allclose(found.errors["rotation_error_deg"], [0, np.rad2deg(0.25)], atol=1e-5)
    assert found.errors["gripper_accuracy"].tolist() == [1, 0]
    assert found.summary() == "off by 2.50 mm and 7.16° on average, gripper right at 50%"


def test_a_page_shows_what_a_policy_would_do(make_libero: MakeLibero, tmp_path: Path) -> None:
    dataset = open_dataset(make_libero({"open": [5], "close": [6]}))
    checkpoint = saved_policy(dataset, tmp_path / "policy")

    look(dataset, 1, tmp_path / "page.html", checkpoint)

    from atlas.policies.base import load_policy
    from atlas.types import Observation

    policy, episode = load_policy(checkpoint), dataset.episode(1)
    images = {camera: episode.images(camera, [2])[0] for camera in dataset.cameras}
    batch = policy.processor.batch([Observation(images, episode.proprio[2], episode.instruction)])
    expected = policy.sample(batch)[0].numpy()
    shown = data_of(tmp_path / "page.html")
    chunks = np.array(shown["chunks"])  # [T, H, A]
    assert chunks.shape == (len(episode), 3, 7)
    np.testing.assert_allclose(chunks[2, :, :3], 50 * expected[:, :3], atol=0.02)
    np.testing.assert_allclose(shown["groups"][0]["curves"][0]["predicted"], chunks[:, 0, 0], atol=0.01)
    off = np.linalg.norm(chunks[:, 0, :3] - 50 * episode.actions[:, :3], axis=1)
    np.testing.assert_allclose(shown["error"], off, atol=0.05)


def saved_policy(dataset: Any, folder: Path, cameras: tuple[str, ...] = ("agentview", "eye_in_hand")) -> str:
    """A small policy that has learnt nothing."""
    import torch

    from atlas.config import Config
    from atlas.data.sampling.chunks import ChunkDataset
    from atlas.policies.modular.policy import ModularPolicy
    from atlas.policies.processor import PolicyProcessor

    torch.manual_seed(0)
    config = Config().model
    chunks = ChunkDataset(dataset, np.arange(len(dataset)), list(cameras), 32, 3)
    processor = PolicyProcessor(
        cameras, 32, 32, 3, dataset.proprio_dim, dataset.action_spec, chunks.statistics(), config.processor
    )
    ModularPolicy(config, processor).save_pretrained(folder)
    return str(folder)


def test_a_policy_for_other_cameras_is_refused(make_libero: MakeLibero, tmp_path: Path) -> None:
    checkpoint = saved_policy(open_dataset(make_libero()), tmp_path / "policy")

    with pytest.raises(InputError, match=r"trained with the cameras .*; .* lacks \['eye_in_hand'\]"):
        look(open_dataset(FIXTURES / VIDEO, cameras=["agentview"]), 0, tmp_path / "page.html", checkpoint)


# ---- films and recordings --------------------------------------------------------------------------------


def test_a_film_has_a_frame_of_each_and_a_cursor_that_moves(coloured: Path, tmp_path: Path) -> None:
    look(open_dataset(coloured), 0, tmp_path / "film.mp4")

    with av.open(str(tmp_path / "film.mp4")) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate or 0) == 20 and stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(stream)]
    assert len(frames) == 7 and frames[0].shape[1] == 1280
    for frame, channel in ((0, 0), (1, 1), (6, 2)):
        assert frames[frame][200:300, 300:500].mean((0, 1)).argmax() == channel  # the world camera
    cursors = [int(frame[542:545, 112:562].mean(axis=(0, 2)).argmax()) for frame in frames]  # between two curves
    assert cursors == sorted(cursors) and cursors[-1] - cursors[0] > 400


def test_a_recording_for_rerun_is_written_or_refused(coloured: Path, tmp_path: Path) -> None:
    out = tmp_path / "episode.rrd"
    try:
        import rerun  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"pip install 'atlas-vla\[rerun\]'"):
            look(open_dataset(coloured), 0, out)
        assert not out.exists()
        return
    look(open_dataset(coloured), 0, out)
    assert out.read_bytes()[:3] == b"RRF"


def test_what_cannot_be_shown_is_refused(coloured: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.html, \.mp4 or \.rrd"):
        check_out(tmp_path / "episode.gif")
    with pytest.raises(InputError, match="has the episodes 0 to 0"):
        look(open_dataset(coloured), 1, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
