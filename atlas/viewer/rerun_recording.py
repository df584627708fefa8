"""An episode as a recording for Rerun's viewer (https://rerun.io), which is installed separately."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atlas.system.files import atomic_path
from atlas.viewer.episode_timeline import EpisodeTimeline

_JPEG_QUALITY = 90


def write_recording(path: Path, timeline: EpisodeTimeline) -> None:
    """Write an .rrd file, atomically: pictures, curves and the paths of the hands, by frame and by time."""
    import rerun as rr

    with atomic_path(path) as partial:
        recording = rr.RecordingStream("atlas", recording_id=f"{timeline.dataset}-{timeline.number}")
        recording.save(str(partial))
        about = (
            f"# {timeline.episode.instruction}\n\n{timeline.dataset}, episode {timeline.number} of {timeline.episodes}"
        )
        if timeline.prediction is not None:
            about += f"\n\n{timeline.prediction.name}: {timeline.prediction.summary()}"
        recording.log("about", rr.TextDocument(about, media_type="text/markdown"), static=True)
        for arm, points in timeline.paths.items():
            recording.log([arm or "hand", "path"], rr.LineStrips3D([points.astype(np.float32)]), static=True)
        changes = dict(timeline.changes)
        pictures = zip(*(timeline.pictures(camera) for camera in timeline.cameras), strict=True)
        for frame, shown in enumerate(pictures):
            recording.set_time("frame", sequence=frame)
            recording.set_time("time", duration=frame / timeline.hz)
            if frame in changes:
                recording.log("instruction", rr.TextDocument(changes[frame]))
            for camera, picture in zip(timeline.cameras, shown, strict=True):
                recording.log(["cameras", camera], rr.Image(picture).compress(jpeg_quality=_JPEG_QUALITY))
            for group, curves in (("action", timeline.actions), ("proprio", timeline.proprio)):
                for number, curve in enumerate(curves):
                    recording.log([group, curve.name, "recorded"], rr.Scalars(float(curve.values[frame])))
                    if timeline.prediction is not None and group == "action":
                        said = float(timeline.prediction.chunks[frame, 0, number])
                        recording.log([group, curve.name, "predicted"], rr.Scalars(said))
            for arm, points in timeline.paths.items():
                recording.log([arm or "hand", "here"], rr.Points3D([points[frame].astype(np.float32)], radii=[0.008]))
        recording.flush()
        recording.disconnect()
