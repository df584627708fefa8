"""`video`: every frame has images, at the right times, in files that can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from atlas.checks.context import CheckContext
from atlas.checks.finding import Finding
from atlas.data.lerobot.dataset import LeRobotDataset
from atlas.data.lerobot.whole import fault
from atlas.data.video import FRAME_TOLERANCE
from atlas.errors import InputError, first_line

_CLOCK = 0.02  # relative difference up to which two rates are the same
_DECODED_EPISODES = 12
_MOST_VIDEOS = 400  # whose frames are counted
_NEIGHBOURS = 16  # frames of each episode, one after the other
_MOVES, _FEWEST_MOVES = 2e-3, 20  # of proprio, from one frame to the next; of these frames
_REPEATS = 0.04  # of the change that nine in ten pictures do not exceed
_STALE = 0.1  # of them
_ONE_COLOUR = 1.0  # standard deviation of the pixels of a picture that shows nothing
_SHOWN = 3
_FETCH = "Download or copy these files again, or train with data.skip_damaged=true, which leaves their episodes out."


def check_video(context: CheckContext) -> Iterator[Finding]:
    yield from _rate(context)
    damaged: set[Path] = set()
    if isinstance(context.dataset, LeRobotDataset):
        yield from _files(context.dataset, damaged)
        if not damaged:
            yield from _sizes(context.dataset, damaged)
        yield from _timestamps(context.dataset)
    yield from _pictures(context, damaged)


def _rate(context: CheckContext) -> Iterator[Finding]:
    """Compare the dataset's stated rate with the simulator's clock and the world that it will be evaluated in."""
    stated, spec = context.dataset.fps, context.dataset.action_spec
    step = context.seconds_a_frame
    if step is not None and abs(step * spec.control_hz - 1) > _CLOCK:
        yield Finding(
            "video",
            "error",
            f"the dataset states {spec.control_hz:g} actions per second, but by the simulator's clock a frame takes "
            f"{step:.4g} s: {1 / step:.4g} per second",
            "Record and train at one rate: frames may have been left out, or the rate (fps) may be wrong.",
            {"control_hz": spec.control_hz, "fps": stated, "hz_by_clock": round(1 / step, 4)},
            bugs=("control_rate",),
        )
    elif context.environment is not None and spec.control_hz != context.environment.spec.action_spec.control_hz:
        world, hz = context.environment.spec.name, context.environment.spec.action_spec.control_hz
        yield Finding(
            "video",
            "error",
            f"the dataset states {spec.control_hz:g} actions per second, but the world '{world}' takes {hz:g}",
            "If each row is one step of that world, set control_hz of data.features.action_spec.",
            {"control_hz": spec.control_hz, "environment_hz": hz},
            bugs=("control_rate",),
        )


def _files(dataset: LeRobotDataset, damaged: set[Path]) -> Iterator[Finding]:
    """Check every file's structure, and count the frames of the videos without decoding them."""
    faults: dict[str, str] = {}
    for name in _files_of(dataset):
        if (why := fault(dataset.path / name)) is not None:
            faults[name] = why
    damaged.update(dataset.path / name for name in faults)
    if faults:
        named = ", ".join(f"{name} {why}" for name, why in list(faults.items())[:_SHOWN])
        yield Finding(
            "video",
            "error",
            f"{len(faults)} of the files cannot be read: {named}",
            _FETCH,
            {"files": list(faults)},
        )
    for camera in dataset.cameras:
        wrong = []
        spans = _spans_of(dataset, camera)
        for path in list(spans)[:: max(1, len(spans) // _MOST_VIDEOS)]:
            if path not in damaged:
                why = _frames_fault(path, spans[path], dataset.fps)
                if why is not None:
                    damaged.add(path)
                    wrong.append((path, why))
        if wrong:
            path, why = wrong[0]
            yield Finding(
                "video",
                "error",
                f"{len(wrong)} videos of '{camera}' do not have the frames that they should: {path} {why}",
                "Make the videos again at the dataset's rate, or train with data.skip_damaged=true.",
                {"files": [str(p) for p, _ in wrong], "why": why},
            )


def _sizes(dataset: LeRobotDataset, damaged: set[Path]) -> Iterator[Finding]:
    """Images that do not have the size stated in the dataset, which training refuses."""
    try:
        dataset.check_sizes()
    except InputError as error:
        fix = "Bring all images to one size, or train with data.skip_damaged=true, which leaves the others out."
        yield Finding("video", "error", str(error), fix, {"size": str(error)})
        damaged.add(dataset.path)  # so that it is not reported again


def _files_of(dataset: LeRobotDataset) -> list[str]:
    return list(dict.fromkeys(dataset._source.all_files()))


def _spans_of(dataset: LeRobotDataset, camera: str) -> dict[Path, list[tuple[float, int]]]:
    """Return for each video of a camera where its episodes begin, in seconds, and how many frames they have."""
    places = dataset._source.videos.get(dataset._features.cameras[camera].key)
    spans: dict[Path, list[tuple[float, int]]] = {}
    if places is not None:
        for file, start, length in zip(places.file, places.start, dataset._source.length, strict=True):
            spans.setdefault(dataset.path / places.files[file], []).append((float(start), int(length)))
    return spans


def _frames_fault(path: Path, spans: list[tuple[float, int]], fps: float) -> str | None:
    """Name the fault of a video whose episodes begin at these times, in seconds, with these numbers of frames."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            times = [float(p.pts * stream.time_base) for p in container.demux(stream) if p.pts is not None and p.size]
    except (OSError, av.FFmpegError, IndexError) as error:
        return f"cannot be read ({first_line(error)})"
    there = np.sort(np.array(times))
    if len(there) > 1:
        rate = 1 / float(np.median(np.diff(there)))
        if abs(rate / fps - 1) > _CLOCK:
            return f"has {rate:.4g} frames per second, but the dataset {fps:g}"
    wanted = np.concatenate([start + np.arange(length) / fps for start, length in sorted(spans)])
    off = _distances(wanted, there)
    missing = int((off > 0.5 / fps).sum())
    if missing and len(wanted) != len(there):
        return f"lacks {missing} of {len(wanted)} frames"
    if len(wanted) == len(there):  # then each frame is the right one, however far its time is
        off = np.abs(wanted - there)
    if (off > FRAME_TOLERANCE / fps).any():
        return f"has frames that are shifted by up to {off.max() * 1000:.1f} ms against where its episodes should begin"
    extra = len(there) - len(wanted)
    return f"has {extra} more frames than its episodes" if extra > 0 else None


def _distances(wanted: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Seconds from each of the wanted times to the frame nearest to it."""
    if not len(there):
        return np.full(len(wanted), np.inf)
    after = np.clip(np.searchsorted(there, wanted), 0, len(there) - 1)
    return np.minimum(np.abs(there[np.maximum(after - 1, 0)] - wanted), np.abs(there[after] - wanted))


def _timestamps(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Compare the rows' times with the rate: frame k of an episode is at k / fps."""
    stamps = dataset.columns.timestamp
    wrong = []
    for index in range(len(dataset)):
        times = stamps[dataset.rows(index)].astype(np.float64)
        if len(times) > 1 and np.abs(np.diff(times) * dataset.fps - 1).max() > _CLOCK + np.spacing(times[-1]):
            wrong.append(index)
    if wrong:
        times = stamps[dataset.rows(wrong[0])].astype(np.float64)
        rate = 1 / float(np.median(np.diff(times)))
        yield Finding(
            "video",
            "error",
            f"the timestamps of {len(wrong)} of {len(dataset)} episodes are not those of {dataset.fps:g} frames per "
            f"second; in episode {wrong[0]} they imply {rate:.4g}, or have gaps",
            "Correct fps in meta/info.json, or convert the dataset again.",
            {"episodes": wrong[:100], "fps": dataset.fps, "fps_by_timestamps": round(rate, 4)},
        )


def _pictures(context: CheckContext, damaged: set[Path]) -> Iterator[Finding]:
    """Decode a few pictures of some episodes: is that possible, do they show something, and does it change?"""
    unreadable: list[str] = []
    flat: dict[str, list[int]] = {}
    frozen: dict[str, list[int]] = {}
    looked = context.sample(_DECODED_EPISODES)
    for index in looked:
        episode = context.dataset.episode(index)
        frames = sorted({0, len(episode) // 2, len(episode) - 1})
        for camera in context.cameras:
            try:
                images = episode.images(camera, frames)
            except InputError as error:
                if not any(str(path) in str(error) for path in damaged):
                    unreadable.append(str(error))
                continue
            if max(float(image.std()) for image in images) < _ONE_COLOUR:
                flat.setdefault(camera, []).append(index)
            elif len(frames) > 2 and (images[0] == images).all():
                frozen.setdefault(camera, []).append(index)
    if unreadable:
        yield Finding("video", "error", unreadable[0], _FETCH, {"messages": unreadable[:20], "count": len(unreadable)})
    for camera, episodes in flat.items():
        yield Finding(
            "video",
            "error",
            f"camera '{camera}' shows only one colour in {len(episodes)} of {len(looked)} episodes",
            "Check whether its images were recorded; leave the camera out with data.cameras.",
            {"camera": camera, "episodes": episodes},
        )
    for camera, episodes in frozen.items():
        yield Finding(
            "video",
            "warning",
            f"camera '{camera}' shows the same picture all the time in {len(episodes)} of {len(looked)} episodes",
            "Check whether its images were recorded at each step.",
            {"camera": camera, "episodes": episodes},
            bugs=("stale_frames",),
        )
    if not (unreadable or damaged):
        yield from _stale(context, looked)
    if not (unreadable or flat or damaged):
        yield Finding(
            "video",
            "info",
            f"pictures of {len(looked)} episodes and {len(context.cameras)} cameras can be read",
            None,
            {"episodes": len(looked), "fps": context.dataset.fps},
        )


def _stale(context: CheckContext, looked: Sequence[int]) -> Iterator[Finding]:
    """Pictures that are the one before once more, though the robot has moved, in some frames of each episode.

    The larger half of the motions counts: a video codec drops those that small pictures hardly show. A codec that loses
    something makes a repeated picture differ a little, so a picture repeats where it changes far less than most do.
    """
    for camera in context.cameras:
        steps, changes = list[np.ndarray](), list[np.ndarray]()
        for index in looked:
            episode = context.dataset.episode(index)
            first = max(0, (len(episode) - _NEIGHBOURS) // 3)
            frames = list(range(first, min(len(episode), first + _NEIGHBOURS)))
            images, proprio = episode.images(camera, frames), episode.proprio[frames].astype(np.float64)
            steps.append(np.abs(np.diff(proprio, axis=0)).max(1))
            changes.append(np.abs(np.diff(images.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)))
        step, change = np.concatenate(steps), np.concatenate(changes)
        moving = step > _MOVES
        if moving.sum() < _FEWEST_MOVES:
            continue
        moving &= step >= np.median(step[moving])
        repeats = change <= _REPEATS * np.quantile(change, 0.9)
        moved, same = int(moving.sum()), int((moving & repeats).sum())
        evidence = {"camera": camera, "frames": moved, "the_same": same}
        if same > _STALE * moved:
            yield Finding(
                "video",
                "warning",
                f"camera '{camera}' shows the same picture as before in {same / moved:.0%} of the frames in which the "
                "robot has moved most",
                "Record a new image at each step, or leave out the frames between: look at the camera's rate.",
                evidence,
                bugs=("stale_frames",),
            )
        else:
            message = f"camera '{camera}' shows a new picture whenever the robot moves"
            yield Finding("video", "info", message, None, evidence, bugs=("stale_frames",))
