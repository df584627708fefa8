"""Each fault planted in good data is named by its check, and by no other; good data has no errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from atlas.checks.context import CheckContext
from atlas.checks.data_check import CHECKS, Check, check_data, open_what_can_be, run_checks
from atlas.checks.finding import CheckId, Finding
from atlas.checks.inspection import check_before_training, dataset_warnings, sentences
from atlas.checks.language import instruction_bits, is_placeholder
from atlas.checks.numbers import check_actions
from atlas.checks.stats import check_stats
from atlas.cli.commands.data_commands import data_app
from atlas.config import Config, DataConfig
from atlas.config.model_section import ProcessorConfig
from atlas.data.episode import Episode, EpisodeDataset
from atlas.data.formats import open_dataset
from atlas.data.hdf5.reader import LiberoEpisode
from atlas.data.sampling.split import split_episodes
from atlas.environments.cubes import INSTRUCTIONS, CubesEnvironment
from atlas.errors import InputError
from atlas.rollout.recording import RecordSettings, record
from atlas.types import ActionSpec
from tests.checks.planted import Changed
from tests.conftest import MakeLibero
from tests.data.hdf5_files import store_late
from tests.data.lerobot_folders import IMAGE, VIDEO, as_version_2, copy_fixture, edit_info, truncate
from tests.test_vertical_slice import run_atlas

FIXTURES = Path(__file__).parents[1] / "fixtures"
Split = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def env() -> Iterator[CubesEnvironment]:
    environment = CubesEnvironment(image_size=32)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def good(cubes_dataset: Path) -> EpisodeDataset:
    return open_dataset(cubes_dataset)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_CACHE_DIR", str(tmp_path / "cache"))


def findings_in(
    dataset: EpisodeDataset,
    env: CubesEnvironment | None = None,
    pictures: Path | None = None,
    split: Split | None = None,
    checks: Sequence[tuple[CheckId, Check]] = CHECKS,
) -> list[Finding]:
    train, val = split or split_episodes(dataset.task_of, 0.05, 0)
    return run_checks(CheckContext(dataset, list(dataset.cameras), train, val, env, pictures, 2), checks)


def error_ids(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.severity == "error"}


def said(findings: list[Finding], check: str) -> str:
    return " ".join(f"{f.message} {f.fix}" for f in findings if f.check == check and f.severity != "info")


def column(index: int | slice, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change to some of the actions' numbers."""

    def changed(actions: np.ndarray) -> np.ndarray:
        actions[:, index] = change(actions[:, index])
        return actions

    return changed


def moved(frames: int) -> Callable[[np.ndarray], np.ndarray]:
    """Actions that come this many frames too late, or too early if negative."""
    return lambda actions: actions[np.clip(np.arange(len(actions)) - frames, 0, len(actions) - 1)]


# ---- good data -------------------------------------------------------------------------------------------------


def test_a_good_recording_has_no_error_and_replays_as_it_was(
    good: EpisodeDataset, env: CubesEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[LiberoEpisode] = []
    episode = type(good).episode
    monkeypatch.setattr(type(good), "episode", lambda self, index: opened.append(episode(self, index)) or opened[-1])

    found = findings_in(good, env)

    read = [each._index for each in opened if "sim_states" in vars(each)]
    assert len(read) == len(set(read)) >= 2  # each episode's states were read once

    assert {f.severity for f in found} == {"info"}, said(found, "language")
    assert {f.check for f in found} == {
        *("view", "gripper", "lag", "scale", "language", "actions", "split", "video", "replay", "stats")
    }
    replayed = next(f for f in found if f.check == "replay")
    assert replayed.evidence["successes"] == 2 and replayed.evidence["hand_drift_mm"] < 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_recordings_of_any_seed_have_no_error(seed: int, env: CubesEnvironment, tmp_path: Path) -> None:
    record(RecordSettings(episodes=8, seed=seed, image_size=32), tmp_path / "cubes")

    found = findings_in(open_dataset(tmp_path / "cubes"), env)

    assert error_ids(found) == set(), found


@pytest.mark.parametrize("name", [IMAGE, VIDEO])
def test_what_lerobot_wrote_has_no_error(name: str) -> None:
    found = check_data(Config(data=DataConfig(path=str(FIXTURES / name))))

    assert error_ids(found) == set(), found
    assert not any(f.check in ("replay", "view") for f in found)  # no world of it is known


def test_data_without_recorded_states_is_said_not_to_be_replayed(env: CubesEnvironment) -> None:
    found = findings_in(open_dataset(FIXTURES / IMAGE), env)

    assert "replay" not in error_ids(found)
    assert {f.check: f.message for f in found if f.check in ("replay", "view")}.keys() == {"replay", "view"}
    assert "no recorded states" in next(f.message for f in found if f.check == "replay")


# ---- actions ---------------------------------------------------------------------------------------------------


POSE = slice(0, 6)
FAULTS = {
    "flipped gripper": ("gripper", column(6, lambda g: -g), "sign is flipped", "gripper negated"),
    "gripper from 0 to 1": ("gripper", column(6, lambda g: (g + 1) / 2), "within [0, 1]", "0 to 1 for open to closed"),
    "a frame late": ("lag", moved(1), "action at t + 1", "moved 1 frame towards the start"),
    "2 frames late": ("lag", moved(2), "action at t + 2", "moved 2 frames towards the start"),
    "a frame early": ("lag", moved(-1), "action at t - 1", "moved 1 frame towards the end"),
    "2 frames early": ("lag", moved(-2), "action at t - 2", "moved 2 frames towards the end"),
    "in metres": ("scale", column(POSE, lambda a: a * 0.05), "1 = 1", "pose multiplied by 20"),
    "half as much": ("scale", column(POSE, lambda a: a * 0.5), "1 = 0.1 m", "pose multiplied by 2"),
    "20 times as much": ("scale", column(POSE, lambda a: a * 20), "less far", "pose multiplied by 0.05"),
    "axes swapped": ("scale", column(slice(0, 2), lambda a: a[:, ::-1]), "dy moves x, dx moves y", ""),
    "not a number": ("actions", column(0, lambda a: a * np.nan), "not finite", ""),
    "a dimension is lost": ("actions", column(2, lambda a: a * 0), "['dz'] never change", ""),
    "a dimension is stuck": ("actions", column(4, lambda a: a * 0 + 0.3), "['ry'] never change", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_actions_are_named_by_what_the_recordings_show(fault: str, good: EpisodeDataset) -> None:
    check, change, words, _ = FAULTS[fault]

    found = findings_in(Changed(good, actions=change))

    assert error_ids(found) == {check}, found
    assert words in said(found, check)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_actions_are_named_and_explained_by_replaying(
    fault: str, good: EpisodeDataset, env: CubesEnvironment
) -> None:
    check, change, _, explained = FAULTS[fault]

    found = findings_in(Changed(good, actions=change), env)

    assert error_ids(found) == {check}, found
    assert explained in said(found, check)


def test_poses_that_are_taken_for_deltas_are_named(good: EpisodeDataset) -> None:
    def poses(_: int, episode: Episode) -> np.ndarray:
        going = np.concatenate([episode.proprio[1:, :3], episode.proprio[-1:, :3]])
        return np.hstack([going, episode.actions[:, 3:]])

    found = findings_in(Changed(good, remade=poses))

    assert error_ids(found) == {"scale"}, found
    assert "target poses" in said(found, "scale")


def test_a_single_wild_action_is_named(good: EpisodeDataset) -> None:
    def wild(number: int, episode: Episode) -> np.ndarray:
        actions = episode.actions.copy()
        actions[7, 1] = 500.0 if number == 3 else 0.0
        return actions

    found = findings_in(Changed(good, remade=wild))

    assert error_ids(found) == {"actions"} and "far from all others in ['dy']" in said(found, "actions")


def test_a_reading_of_proprio_that_leaps_for_a_frame_is_named(good: EpisodeDataset) -> None:
    def leap(proprio: np.ndarray) -> np.ndarray:
        proprio[9, 1] += 0.3
        return proprio

    only = [(name, check) for name, check in CHECKS if name == "actions"]
    leaping, smooth = (findings_in(each, checks=only) for each in (Changed(good, proprio=leap), good))

    assert "leaps for one frame and comes back" in said(leaping, "actions") and "[1]" in said(leaping, "actions")
    assert "leaps" not in said(smooth, "actions")


def test_replaying_alone_finds_a_small_error_of_scale(good: EpisodeDataset, env: CubesEnvironment) -> None:
    """By a quarter: recordings alone cannot tell."""
    changed = Changed(good, actions=column(slice(0, 6), lambda a: a * 0.8))

    without, found = findings_in(changed), findings_in(changed, env)

    assert error_ids(without) == set()
    assert error_ids(found) == {"scale"}
    explained = next(f for f in found if "explained_by" in f.evidence)
    assert explained.evidence["value"] == pytest.approx(1.25, abs=0.1)
    assert explained.evidence["then"]["successes"] == 2


def test_demonstrations_that_fail_are_named(good: EpisodeDataset, env: CubesEnvironment) -> None:
    cut = Changed(good, keep=slice(0, -8))  # before the cube is lifted

    found = findings_in(cut, env)

    assert error_ids(found) == {"replay"} and "demonstrations that fail" in said(found, "replay")


PICTURES = [(name, check) for name, check in CHECKS if name in ("video", "view")]  # the others look at none


# ---- pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("upside down", lambda images: images[:, ::-1]),
        ("mirrored", lambda images: images[:, :, ::-1]),
        ("rotated by 180 degrees", lambda images: images[:, ::-1, ::-1]),
        ("rotated by 90 degrees to the left", lambda images: images.swapaxes(1, 2)[:, ::-1]),
        ("transposed", lambda images: images.swapaxes(1, 2)),
        ("red and blue swapped", lambda images: images[..., ::-1]),
        ("a different brightness", lambda images: (images * 0.4).astype(np.uint8)),
        (
            "looks like none of the cameras",
            lambda images: np.random.default_rng(0).integers(0, 255, images.shape, "u1"),
        ),
    ],
)
def test_wrong_pictures_of_both_cameras_are_named(
    words: str,
    change: Callable[[np.ndarray], np.ndarray],
    good: EpisodeDataset,
    env: CubesEnvironment,
) -> None:
    found = findings_in(
        Changed(good, images=lambda camera, images: np.ascontiguousarray(change(images))), env, checks=PICTURES
    )

    assert error_ids(found) == {"view"}, found
    errors = [f for f in found if f.severity == "error"]
    assert [f.evidence["camera"] for f in errors] == ["agentview", "eye_in_hand"]
    assert all(words in f.message for f in errors), errors


def test_the_fix_of_turned_pictures_is_an_orientation_that_mends_them(
    cubes_dataset: Path, env: CubesEnvironment
) -> None:
    for wrong in ("mirrored", "upright", "rotated_180"):
        found = findings_in(open_dataset(cubes_dataset, orientation=wrong), env, checks=PICTURES)

        assert error_ids(found) == {"view"}
        assert all("data.orientation=upside_down" in str(f.fix) for f in found if f.severity == "error")


def test_swapped_cameras_are_named_and_shown_side_by_side(
    good: EpisodeDataset, env: CubesEnvironment, tmp_path: Path
) -> None:
    swapped = Changed(good, cameras={"agentview": "eye_in_hand", "eye_in_hand": "agentview"})

    found = findings_in(swapped, env, tmp_path, checks=PICTURES)

    assert error_ids(found) == {"view"}
    errors = [f for f in found if f.severity == "error"]
    assert "camera 'agentview' shows what 'eye_in_hand' of the world 'cubes' does" in errors[0].message
    assert len(errors) == 2
    for finding in errors:
        with Image.open(finding.evidence["picture"]) as picture:
            assert picture.width > 500 and len(set(picture.convert("RGB").tobytes())) > 50


def test_colours_that_an_encoder_has_lost_are_warned_of(good: EpisodeDataset, env: CubesEnvironment) -> None:
    def faded(camera: str, images: np.ndarray) -> np.ndarray:
        grey = images.mean(-1, keepdims=True)
        return (grey + 0.4 * (images - grey)).astype(np.uint8)

    found = findings_in(Changed(good, images=faded), env, checks=PICTURES)

    assert error_ids(found) == set()
    assert said(found, "view").count("has kept 40% of the colours") == 2


def test_pictures_that_repeat_while_the_robot_moves_are_named(good: EpisodeDataset) -> None:
    def every_second(_: str, images: np.ndarray) -> np.ndarray:
        shown = images[np.arange(len(images)) // 2 * 2].copy()
        shown[1::2, ::4, ::4] ^= 1  # as a codec that loses something
        return shown

    only = [(name, check) for name, check in CHECKS if name == "video"]
    stale, fresh = (findings_in(each, checks=only) for each in (Changed(good, images=every_second), good))

    assert [f.bugs for f in stale if f.severity == "warning"] == [("stale_frames",)] * 2
    assert [f for f in fresh if f.severity == "warning"] == []


def test_a_camera_that_shows_nothing_is_named_once(good: EpisodeDataset, env: CubesEnvironment) -> None:
    black = Changed(good, images=lambda camera, images: images * (camera == "agentview"))

    found = findings_in(black, env, checks=PICTURES)

    assert error_ids(found) == {"video"} and "'eye_in_hand' shows only one colour" in said(found, "video")


# ---- language --------------------------------------------------------------------------------------------------


def test_one_instruction_for_all_tasks_is_named(good: EpisodeDataset, env: CubesEnvironment) -> None:
    one = Changed(good, instruction=INSTRUCTIONS[0])
    nothing_known = Changed(good, instruction=INSTRUCTIONS[0], files=[])

    found, by_replay_alone = findings_in(one), findings_in(nothing_known, env)

    assert error_ids(found) == error_ids(by_replay_alone) == {"language"}
    assert "all 2 files have the same instruction" in said(found, "language")
    assert "1 of 2 episodes do another task than their instruction says" in said(by_replay_alone, "language")


def test_a_single_instruction_is_a_fault_only_where_there_are_more_tasks(good: EpisodeDataset) -> None:
    only = [(name, check) for name, check in CHECKS if name == "language"]
    one = {"instruction": INSTRUCTIONS[0], "files": []}

    of_many, of_one = (
        findings_in(Changed(good, **one, environment=world), checks=only)[0] for world in ("cubes", None)
    )

    assert of_many.severity == "warning" and "the world 'cubes' has 2 tasks" in of_many.message
    assert of_one.severity == "info" and "there is only one instruction" in of_one.message


def test_placeholders_are_named(good: EpisodeDataset) -> None:
    found = findings_in(Changed(good, instruction="No instruction"))

    assert error_ids(found) == {"language"} and "placeholder as their instruction: 'No instruction'" in said(
        found, "language"
    )


@pytest.mark.parametrize("text", ["", "  ", "No instruction.", "<task>", "TASK_3", "n/a", "None", "dummy task", "42"])
def test_words_that_stand_for_none_are_placeholders(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize("text", ["pick up the red cube", "open the drawer", "put both cans in the basket", "stack"])
def test_instructions_are_no_placeholders(text: str) -> None:
    assert not is_placeholder(text)


def test_an_instruction_that_decides_what_is_done_carries_its_bits(make_libero: MakeLibero) -> None:
    """With actions that follow the instruction, and with the same ones dealt out at random."""
    dataset = open_dataset(make_libero({"go left": [8] * 20, "go right": [8] * 20}, size=16))
    rng = np.random.default_rng(0)
    at_random = rng.integers(0, 2, len(dataset)) * 2 - 1.0

    def bits(sign: np.ndarray) -> float:
        def directed(number: int, episode: Episode) -> np.ndarray:
            return np.random.default_rng(number).normal(0, 0.2, episode.actions.shape) + sign[number]

        everything = np.arange(len(dataset))
        found = instruction_bits(
            CheckContext(Changed(dataset, remade=directed), dataset.cameras, everything, everything[:0])
        )
        assert found is not None
        return found

    assert bits(dataset.task_of * 2 - 1.0) > 0.9 and bits(at_random) < 0.5


# ---- split, video, statistics ----------------------------------------------------------------------------------


def test_an_episode_on_both_sides_is_named(good: EpisodeDataset) -> None:
    found = findings_in(good, split=(np.arange(8), np.array([1, 5])))

    assert error_ids(found) == {"split"} and "both in training and in validation: [1, 5]" in said(found, "split")


def test_episodes_that_are_nearly_another_are_named(good: EpisodeDataset) -> None:
    rng = np.random.default_rng(0)
    twice = Changed(
        good,
        order=[*range(8), 2, 5],
        actions=lambda actions: actions + rng.normal(0, 0.003, actions.shape),
        proprio=lambda proprio: proprio + rng.normal(0, 1e-4, proprio.shape),
    )

    found = findings_in(twice)

    assert error_ids(found) == {"split"}
    assert next(f for f in found if f.check == "split").evidence["pairs"] == [[2, 8], [5, 9]]


def test_another_rate_than_the_simulators_is_named(good: EpisodeDataset) -> None:
    every_second = Changed(good, keep=slice(None, None, 2))
    labelled = Changed(good, fps=10.0, action_spec=replace(ActionSpec(), control_hz=10.0))

    for slow, words in ((every_second, "10 per second"), (labelled, "10 actions per second")):
        found = findings_in(slow)

        assert error_ids(found) == {"video"}, found
        assert words in said(found, "video")


def test_a_video_dataset_with_another_rate_is_named(tmp_path: Path) -> None:
    root = copy_fixture(VIDEO, tmp_path / "set")
    edit_info(root, fps=15)

    found = check_data(Config(data=DataConfig(path=str(root))))

    assert error_ids(found) == {"video"}
    assert "10 frames per second, but the dataset 15" in said(found, "video")


def test_every_damaged_video_is_named(tmp_path: Path) -> None:
    root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
    videos = sorted(root.rglob("*.mp4"))
    for video in videos[:2]:
        truncate(video)

    found = check_data(Config(data=DataConfig(path=str(root))))

    assert error_ids(found) == {"video"}, found
    named = next(f for f in found if f.severity == "error").evidence["files"]
    assert named == [str(video.relative_to(root)) for video in videos[:2]]


def test_videos_that_lack_frames_are_named(tmp_path: Path) -> None:
    import av

    root = as_version_2(FIXTURES / VIDEO, tmp_path / "set")
    video = sorted(root.rglob("*.mp4"))[0]
    whole = video.rename(tmp_path / "whole.mp4")
    with av.open(str(whole)) as source, av.open(str(video), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in list(source.demux(source.streams.video[0]))[:-3]:
            if packet.pts is not None:
                packet.stream = stream
                target.mux(packet)

    found = check_data(Config(data=DataConfig(path=str(root))))

    assert error_ids(found) == {"video"}, found
    assert str(video) in said(found, "video") and "frames" in said(found, "video")


def test_damaged_files_are_named_and_the_rest_is_checked(make_libero: MakeLibero) -> None:
    root = make_libero({"open it": [9, 9], "close it": [9, 9], "lift it": [9, 9]})
    files = sorted(root.glob("*.hdf5"))
    truncate(files[0])
    with h5py.File(files[1], "a") as file:
        file["data/demo_0/actions"][3, 2] = np.nan

    found = check_data(Config(data=DataConfig(path=str(root))))
    dataset, _ = open_what_can_be(DataConfig(path=str(root)))

    assert error_ids(found) == {"video", "actions"}
    assert str(files[0]) in said(found, "video") and f"{files[1]}" in said(found, "actions")
    assert dataset is not None and "lift it" in dataset.tasks


def test_statistics_that_disagree_with_the_data_are_said(tmp_path: Path) -> None:
    root = copy_fixture(IMAGE, tmp_path / "set")
    path = root / "meta" / "stats.json"
    stats = json.loads(path.read_text())
    stats["observation.state"]["mean"][2] += 1.0
    path.write_text(json.dumps(stats))

    found = check_data(Config(data=DataConfig(path=str(root))))

    assert error_ids(found) == set() and "disagrees with the data: mean" in said(found, "stats")


# ---- before training -------------------------------------------------------------------------------------------


def test_rows_in_the_order_of_libero_s_own_files_are_no_fault(
    cubes_dataset: Path, env: CubesEnvironment, tmp_path: Path
) -> None:
    dataset = open_dataset(store_late(Path(shutil.copytree(cubes_dataset, tmp_path / "late"))))

    found = findings_in(dataset, env)

    assert error_ids(found) == set()
    assert any("2 of 2 episodes succeed" in finding.message for finding in found if finding.check == "replay")


@pytest.mark.parametrize(("scaling", "warnings"), [("min_max", 1), ("quantiles", 0)])
def test_far_values_matter_where_they_set_the_scale(good: EpisodeDataset, scaling: str, warnings: int) -> None:
    def wild(number: int, episode: Episode) -> np.ndarray:
        return episode.actions * np.where(np.arange(len(episode)) == 5, 1000 ** (number == 3), 1)[:, None]

    far, processor = Changed(good, remade=wild), ProcessorConfig(action_normalization=scaling)

    found = check_stats(CheckContext(far, good.cameras, np.arange(7), np.arange(7, 8), processor=processor))

    assert sum("standard deviations from its mean" in f.message for f in found) == warnings


def test_a_dimension_that_is_hardly_used_is_named_with_how_it_is_scaled(good: EpisodeDataset) -> None:
    def once(number: int, episode: Episode) -> np.ndarray:
        actions = episode.actions.copy()
        actions[:, 3] = 0.9 * ((np.arange(len(actions)) == 5) & (number == 3))
        return actions

    found = findings_in(Changed(good, remade=once), checks=[("actions", check_actions), ("stats", check_stats)])

    (finding,) = [f for f in found if f.severity != "info"]
    assert finding.message == (
        "action rx lies within [0, 0] in 98% of the frames, but reaches 0.9 in a few: it is scaled by its deviation"
    )


def test_training_refuses_what_cannot_be_trained_on_and_warns_of_the_rest(good: EpisodeDataset) -> None:
    train, val = split_episodes(good.task_of, 0.05, 0)

    assert sentences(check_before_training(good, train, val, ProcessorConfig())) == dataset_warnings(good) == []
    flipped = Changed(good, actions=column(6, lambda g: -g))
    warned = sentences(check_before_training(flipped, train, val, ProcessorConfig()))
    assert len(warned) == 1 and "sign is flipped" in warned[0]
    with pytest.raises(InputError, match=r"cannot be trained on: 8 of 8 episodes .* not finite"):
        check_before_training(Changed(good, actions=column(0, lambda a: a * np.nan)), train, val, ProcessorConfig())
    with pytest.raises(InputError, match="no dimension of action varies"):
        check_before_training(Changed(good, actions=lambda actions: actions * 0), train, val, ProcessorConfig())
    with pytest.raises(InputError, match="both in training and in validation"):
        check_before_training(good, np.arange(8), val, ProcessorConfig())


# ---- the verb --------------------------------------------------------------------------------------------------


def test_the_verb_prints_its_findings_and_says_by_its_exit_code_whether_there_is_an_error(
    cubes_dataset: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(cubes_dataset, broken)
    for path in broken.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                demo["actions"][:, 6] *= -1

    bad = run_atlas(["data", "check", str(broken), "--env", "none"], check=False)
    good = CliRunner().invoke(data_app, ["check", str(FIXTURES / IMAGE), "--json"])

    assert (bad.returncode, good.exit_code) == (1, 0)
    assert "error    gripper   the gripper's sign is flipped" in bad.stdout and "1 error, 0 warnings" in bad.stdout
    findings = json.loads(good.stdout)["findings"]
    assert all(set(f) == {"check", "severity", "message", "evidence", "fix", "bugs"} for f in findings)
    with pytest.raises(InputError, match="no dataset"):
        check_data(Config(data=DataConfig(path=str(tmp_path / "absent"))))
    with pytest.raises(InputError, match="Unknown environment 'cube'"):
        check_data(Config(data=DataConfig(path=str(cubes_dataset))), env="cube")
