"""`atlas data view`: one episode into a file, whose kind is decided by its name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from atlas.data.episode import EpisodeDataset
from atlas.errors import InputError
from atlas.system.paths import check_file

KINDS = (".html", ".mp4", ".rrd")


def check_out(out: Path) -> None:
    """Check that a file can be written, before work begins. Raises InputError."""
    if out.suffix not in KINDS:
        raise InputError(f"--out is {out}; its name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    check_file("--out", out, "episode.html")
    if out.suffix == ".rrd" and importlib.util.find_spec("rerun") is None:
        raise InputError(
            f"--out {out}: recordings for Rerun need the package rerun-sdk, which is not installed. "
            "pip install 'atlas-vla[rerun]', or name an .html or .mp4 file."
        )


def look(dataset: EpisodeDataset, number: int, out: Path, checkpoint: str | None = None) -> None:
    """Write an episode, with what the policy of a checkpoint would do, to `out`. Raises InputError."""
    from atlas.viewer.episode_timeline import make_timeline

    check_out(out)
    timeline = make_timeline(dataset, number, checkpoint)
    if out.suffix == ".html":
        from atlas.viewer.page import write_page

        write_page(out, timeline)
    elif out.suffix == ".mp4":
        from atlas.viewer.episode_film import write_film

        write_film(out, timeline)
    else:
        from atlas.viewer.rerun_recording import write_recording

        write_recording(out, timeline)
