"""Copies in other formats: Atlas writes what LeRobot writes, and nothing is lost on the way there and back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from atlas.cli import app
from atlas.data.convert import Conversion, convert
from atlas.data.episode import EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.lerobot.writing import writer
from atlas.data.lerobot.writing.writer_statistics import count_levels, of_images
from atlas.environments.cubes import INSTRUCTIONS
from atlas.errors import InputError
from atlas.system.locks import hold
from atlas.types import ActionSpec
from tests.conftest import MakeLibero, made_up_episode
from tests.data.lerobot_folders import FIXTURES, IMAGE, VIDEO, edit_feature, rename_feature, truncate

EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
# What LeRobot called the cameras that Atlas knows by their names in LIBERO.
CALLED = {"observation.images.wrist_image": "eye_in_hand", "observation.images.image2": "eye_in_hand"}
ADDED = {"next.done"}  # to what is in the fixtures
AS_LEROBOT = {VIDEO: "av1", IMAGE: "png"}
NUMBERS = ("instruction", "actions", "proprio", "rewards", "success", "sim_states", "init_state", "model_xml")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both of LeRobot's own datasets, read by Atlas and written again in the same way."""
    root = tmp_path_factory.mktemp("copies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLAS_CACHE_DIR", str(root / "cache"))
        for name, codec in AS_LEROBOT.items():
            convert(open_dataset(FIXTURES / name), root / name, Conversion("lerobot", codec), workers=1)
    return {name: root / name for name in AS_LEROBOT}


def in_atlas_names(text: str) -> str:
    for key, camera in CALLED.items():
        text = text.replace(key, f"observation.images.{camera}")
    return text.replace("observation.images.image", "observation.images.agentview")


def read_json(path: Path) -> Any:
    return json.loads(in_atlas_names(path.read_text()))


def assert_same(found: EpisodeDataset, expected: EpisodeDataset, images_within: float = 0.0) -> None:
    """Every number of every episode, and every pixel or nearly."""
    assert len(found) == len(expected) and found.cameras == expected.cameras
    assert found.action_spec == expected.action_spec
    for index in range(len(expected)):
        ours, theirs = found.episode(index), expected.episode(index)
        for name in NUMBERS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        frames = range(len(theirs))
        for camera in expected.cameras:
            a, b = ours.images(camera, frames).astype(float), theirs.images(camera, frames).astype(float)
            assert np.abs(a - b).mean() <= images_within


# ---- field by field, against LeRobot's own writer --------------------------------------------------------


@pytest.mark.parametrize("name", AS_LEROBOT)
def test_info_is_what_lerobot_writes(copies: dict[str, Path], name: str) -> None:
    found, expected = (read_json(root / "meta/info.json") for root in (copies[name], FIXTURES / name))
    ours, theirs = found.pop("features"), expected.pop("features")

    assert found == expected
    assert [key for key in ours if key not in ADDED] == list(theirs)
    assert ours["action"].pop("names") == list(ActionSpec().names) and theirs["action"].pop("names") is None
    assert {key: value for key, value in ours.items() if key not in ADDED} == theirs


@pytest.mark.parametrize("name", AS_LEROBOT)
@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet"])
def test_tables_have_lerobots_columns_types_and_values(copies: dict[str, Path], name: str, file: str) -> None:
    ours, theirs = pq.ParquetFile(copies[name] / file), pq.ParquetFile(FIXTURES / name / file)
    types = {in_atlas_names(field.name): field.type for field in theirs.schema_arrow}
    mine = {field.name: field.type for field in ours.schema_arrow if not any(key in field.name for key in ADDED)}

    assert mine == types and list(mine) == list(types)
    groups = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in (ours, theirs)]
    assert groups[0] == groups[1]  # one an episode, in the data
    a, b = ours.read(), theirs.read()
    for column in b.column_names:
        if "image" not in column and "stats/" not in column:
            assert a.column(in_atlas_names(column)).to_pylist() == b.column(column).to_pylist(), column


def test_data_files_say_their_features_to_the_datasets_library(copies: dict[str, Path]) -> None:
    for name, root in copies.items():
        found, expected = (pq.read_schema(r / DATA).metadata[b"huggingface"] for r in (root, FIXTURES / name))
        ours = json.loads(found)["info"]["features"]
        theirs = json.loads(in_atlas_names(expected.decode()))["info"]["features"]
        assert {key: value for key, value in ours.items() if key not in ADDED} == theirs


def test_tasks_are_found_by_their_text_as_in_pandas(copies: dict[str, Path]) -> None:
    found, expected = (
        json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"])
        for root in (copies[VIDEO], FIXTURES / VIDEO)
    )
    for key in ("index_columns", "column_indexes", "columns"):
        assert found[key] == expected[key]


def test_statistics_are_lerobots_and_quantiles_are_exact(copies: dict[str, Path]) -> None:
    found, expected = (read_json(root / "meta/stats.json") for root in (copies[IMAGE], FIXTURES / IMAGE))
    assert found.keys() - ADDED == expected.keys()
    for key, values in expected.items():
        assert list(found[key]) == list(values)
        for name, value in values.items():
            assert np.shape(found[key][name]) == np.shape(value)
            if not name.startswith("q"):
                # LeRobot puts the deviations of images together from those of its samples, which costs it some digits.
                within = 1e-4 if "image" in key and name == "std" else 1e-6
                np.testing.assert_allclose(found[key][name], value, atol=within, err_msg=f"{key}: {name}")
    actions = np.array(pq.read_table(FIXTURES / IMAGE / DATA).column("action").to_pylist())
    np.testing.assert_allclose(found["action"]["q99"], np.quantile(actions, 0.99, axis=0), atol=1e-6)


def test_quantiles_of_images_are_those_of_all_their_pixels() -> None:
    images = np.random.default_rng(0).integers(3, 200, (5, 7, 9, 3), dtype=np.uint8)

    found = of_images(count_levels(images), len(images))

    pixels = images.reshape(-1, 3) / 255
    for name, expected in (("q01", np.quantile(pixels, 0.01, 0)), ("q90", np.quantile(pixels, 0.9, 0))):
        np.testing.assert_allclose(np.ravel(found[name]), expected, atol=1e-12)
    np.testing.assert_allclose(np.ravel(found["std"]), pixels.std(0))
    assert found["count"] == [5] and np.shape(found["max"]) == (3, 1, 1)


def test_videos_are_encoded_as_lerobot_does(copies: dict[str, Path]) -> None:
    def outline(path: Path) -> Any:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            packets = [(p.pts * stream.time_base, p.is_keyframe) for p in file.demux(stream) if p.dts is not None]
            return stream.codec_context.name, stream.pix_fmt, stream.average_rate, packets

    for theirs, ours in (("image", "agentview"), ("image2", "eye_in_hand")):
        files = [
            outline(root / f"videos/observation.images.{key}/chunk-000/file-000.mp4")
            for root, key in ((copies[VIDEO], ours), (FIXTURES / VIDEO, theirs))
        ]
        assert files[0] == files[1]  # frame by frame: its time, and whether decoding can begin there


@pytest.mark.parametrize(("name", "within"), [(VIDEO, 4.0), (IMAGE, 0.0)])
def test_what_lerobot_wrote_survives(copies: dict[str, Path], name: str, within: float) -> None:
    assert_same(open_dataset(copies[name]), open_dataset(FIXTURES / name), within)


# ---- there and back --------------------------------------------------------------------------------------


def test_a_world_and_its_states_survive_both_formats(cubes_dataset: Path, tmp_path: Path, caplog: Any) -> None:
    source = open_dataset(cubes_dataset)
    convert(source, tmp_path / "lerobot", Conversion("lerobot", "png"), workers=2)
    there = open_dataset(tmp_path / "lerobot")
    convert(there, tmp_path / "hdf5", Conversion("libero-hdf5"), workers=1)
    back = open_dataset(tmp_path / "hdf5")

    for copy in (there, back):
        assert copy.environment == "cubes" and copy.fps == 20 and copy.tasks == source.tasks
        assert_same(copy, source)
    assert not caplog.records  # nothing about it has to be assumed


def test_a_video_differs_by_what_the_codec_loses(cubes_dataset: Path, tmp_path: Path) -> None:
    source = open_dataset(cubes_dataset)

    convert(source, tmp_path / "copy", Conversion("lerobot", "h264", fps=12.5), workers=1)

    copy = open_dataset(tmp_path / "copy")
    assert copy.fps == 12.5 and copy.action_spec.control_hz == 20
    assert_same(copy, source, images_within=4.0)


def test_files_and_folders_are_begun_again_when_they_are_full(make_libero: MakeLibero, tmp_path: Path) -> None:
    source = open_dataset(make_libero({"open": [5, 6, 7, 5, 4]}))
    few = writer.Sizes(files_a_chunk=2, data_mb=0.005, video_mb=0.012)
    for codec in ("png", "h264"):
        out, plan = tmp_path / codec, writer.plan(source, codec, None, few)
        parts = [writer.Part(tmp_path / f"{codec}-{i}") for i in range(len(source))]
        for i, part in enumerate(parts):
            writer.write_part(part, source.episode(i), source.cameras, codec, plan.fps)
        writer.assemble(out, plan, parts, lambda _: None)

        files = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if "chunk-001" in str(path))
        assert any(name.endswith(".parquet" if codec == "png" else ".mp4") for name in files), files
        assert_same(open_dataset(out), source, images_within=0 if codec == "png" else 60)  # of noise


def test_states_of_several_widths_are_kept(make_libero: MakeLibero, tmp_path: Path) -> None:
    import h5py

    root = make_libero({"open": [4, 5], "close": [6]})
    with h5py.File(sorted(root.glob("*.hdf5"))[1], "a") as file:
        del file["data/demo_0/states"]
        file["data/demo_0/states"] = np.arange(18.0).reshape(6, 3)
    source = open_dataset(root)

    convert(source, tmp_path / "copy", Conversion("lerobot", "png"), workers=1)

    assert_same(open_dataset(tmp_path / "copy"), source)
    assert pq.read_schema(tmp_path / "copy" / DATA).field("sim_state").type == pa.list_(pa.float64(), 5)


def test_an_episode_of_another_state_of_the_dataset_is_refused(cubes_dataset: Path, tmp_path: Path) -> None:
    convert(open_dataset(cubes_dataset), tmp_path / "copy", Conversion("lerobot", "png"), workers=1)
    kept = tmp_path / "copy/meta/atlas/episodes.parquet"
    pq.write_table(pq.read_table(kept).slice(0, 3), kept)

    with pytest.raises(InputError, match="does not know episode 3"):
        assert open_dataset(tmp_path / "copy").episode(3).init_state


def test_a_recording_becomes_a_lerobot_dataset_once_its_episodes_are_there(tmp_path: Path) -> None:
    from atlas.rollout.recording import RecordSettings, is_recorded, record

    settings, out = RecordSettings(episodes=2, seed=3, image_size=32), tmp_path / "set"
    asked = {"format": 1, "env": "cubes", "episodes": 2, "seed": 3, "image_size": 32, "to": "lerobot", "codec": "png"}
    (out / ".parts").mkdir(parents=True)  # as a recording leaves it that was stopped before it wrote its files
    (out / "recording.json").write_text(json.dumps(asked))
    episodes = [made_up_episode(np.random.default_rng(i), INSTRUCTIONS[i], 5 + i) for i in range(2)]
    for number, episode in enumerate(episodes):
        values = {key: value for key, value in vars(episode).items() if key != "images" and value is not None}
        images = {f"image/{camera}": frames for camera, frames in episode.images.items()}
        np.savez(out / f".parts/episode_{number:05d}.npz", **values, **images)

    record(settings, out, to="lerobot", codec="png", workers=1)

    found = open_dataset(out)
    assert found.format == "lerobot-v3.0" and found.environment == "cubes" and not (out / ".parts").exists()
    for episode in episodes:
        copy = found.episode(int(np.flatnonzero(found.task_of == found.tasks.index(episode.instruction))[0]))
        np.testing.assert_array_equal(copy.actions, episode.actions.astype(np.float32))
        np.testing.assert_array_equal(copy.sim_states, episode.sim_states)
        assert copy.sim_states is copy.sim_states  # read once
        np.testing.assert_array_equal(copy.images("agentview", [4, 1]), episode.images["agentview"][[4, 1]])
    assert is_recorded(settings, out, Conversion("lerobot", "png"))
    with pytest.raises(InputError, match="codec: png there, h264 asked"):
        record(settings, out, to="lerobot", codec="h264")
    with pytest.raises(InputError, match="to: lerobot there, None asked"):
        record(settings, out)


@pytest.mark.slow
def test_demonstrations_are_recorded_as_a_lerobot_dataset(cubes_dataset: Path, tmp_path: Path) -> None:
    from atlas.rollout.recording import RecordSettings, record

    record(RecordSettings(episodes=2, seed=3, image_size=32), tmp_path / "set", to="lerobot", codec="png", workers=1)

    found, same = open_dataset(tmp_path / "set"), open_dataset(cubes_dataset)
    np.testing.assert_array_equal(found.episode(0).actions, same.episode(0).actions)  # the first of the same seed


# ---- being stopped ---------------------------------------------------------------------------------------


class Watched:
    """A dataset that notes which episodes are read, and breaks at one of them."""

    def __init__(self, dataset: EpisodeDataset, breaks_at: int | None = None) -> None:
        self._dataset, self._breaks_at = dataset, breaks_at
        self.read: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def episode(self, index: int) -> Any:
        if index == self._breaks_at:
            raise KeyboardInterrupt
        self.read.append(index)
        return self._dataset.episode(index)


@pytest.mark.parametrize("to", ["lerobot", "libero-hdf5"])
def test_a_copy_is_there_when_it_is_whole_and_goes_on_where_it_was_stopped(
    make_libero: MakeLibero, tmp_path: Path, to: Any
) -> None:
    source, out = open_dataset(make_libero({"open": [4, 5], "close": [6, 3]})), tmp_path / "copy"
    asked = Conversion(to, "png" if to == "lerobot" else None)
    with pytest.raises(KeyboardInterrupt):
        convert(Watched(source, breaks_at=2), out, asked, workers=1)  # type: ignore[arg-type]
    assert not out.exists()

    work = tmp_path / ".copy.converting"
    with hold(work, "the copy"), pytest.raises(InputError, match=rf"{os.getpid()} on .* is working on the copy"):
        convert(source, out, asked)
    done = next((work / "result").glob("*.hdf5"), None) or work / "parts" / "episode_000000" / "numbers.npz"
    done.write_bytes(b"")  # a power cut has left its name

    again = Watched(source)
    assert convert(again, out, asked, workers=1)  # type: ignore[arg-type]

    assert again.read == ([0, 2, 3] if to == "lerobot" else [0, 1, 2, 3])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".copy")]
    assert not convert(source, out, asked)  # it is there already
    assert len(open_dataset(out)) == 4


def test_unfinished_work_of_another_conversion_is_not_gone_on_with(make_libero: MakeLibero, tmp_path: Path) -> None:
    source, out = open_dataset(make_libero({"open": [4, 5]})), tmp_path / "copy"
    with pytest.raises(KeyboardInterrupt):
        convert(Watched(source, breaks_at=1), out, Conversion("lerobot", "h264"), workers=1)  # type: ignore[arg-type]

    convert(source, out, Conversion("lerobot", "png"), workers=1)

    assert_same(open_dataset(out), source)


# ---- bad input -------------------------------------------------------------------------------------------


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["data", "convert", *map(str, arguments)])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_what_cannot_be_written_is_refused_before_anything_is(make_libero: MakeLibero, tmp_path: Path) -> None:
    source, odd = make_libero({"open": [4]}), make_libero({"open": [4]}, size=33, folder="odd")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    out = tmp_path / "out"

    assert "not empty" in refused(source, full, "--to", "lerobot")
    assert "expected lerobot or libero-hdf5" in refused(source, out, "--to", "rlds")
    assert "expected png or one of av1, h264, hevc" in refused(source, out, "--to", "lerobot", "--codec", "vp9")
    assert "at least 64 pixels per side" in refused(source, out, "--to", "lerobot", "--codec", "av1")
    assert "even sides" in refused(odd, out, "--to", "lerobot", "--codec", "h264")
    assert "--codec is for --to lerobot" in refused(source, out, "--to", "libero-hdf5", "--codec", "png")
    assert "There is no dataset" in refused(tmp_path / "nowhere", out, "--to", "lerobot")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos", "full", "odd"]


def test_a_recording_that_could_not_be_encoded_is_not_begun(tmp_path: Path) -> None:
    for to, codec, says in (("lerobot", None, "64 pixels"), ("libero-hdf5", "png", "--codec is for --to lerobot")):
        flags = ["--to", to, *(["--codec", codec] if codec else [])]
        command = ["data", "record", "--env", "cubes", "--episodes", "2", "--image-size", "32", *flags]
        result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
        assert isinstance(result.exception, InputError) and says in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_libero_files_take_liberos_actions_only(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / VIDEO, tmp_path / "set"))
    rename_feature(root, "observation.images.image2", "observation.images.top")  # so that its rate is what it says: 10

    assert "at 10 Hz" in refused(root, tmp_path / "out", "--to", "libero-hdf5")


def test_a_damaged_source_is_named(tmp_path: Path) -> None:
    root = Path(shutil.copytree(FIXTURES / VIDEO, tmp_path / "set"))
    edit_feature(root, "action", shape=[7])
    truncate(root / "videos/observation.images.image2/chunk-000/file-000.mp4")

    message = refused(root, tmp_path / "out", "--to", "lerobot", "--codec", "png", "--workers", "1")

    assert "image2/chunk-000/file-000.mp4" in message and not (tmp_path / "out").exists()


def test_images_within_are_files_of_png(copies: dict[str, Path]) -> None:
    import io

    value = pq.read_table(copies[IMAGE] / DATA).column("observation.images.agentview")[1].as_py()

    assert value["path"] == "frame-000001.png"
    assert Image.open(io.BytesIO(value["bytes"])).format == "PNG"
