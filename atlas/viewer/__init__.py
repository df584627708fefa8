"""Looking at episodes: as a page for a browser, as a film, or as a recording for Rerun."""

from atlas.viewer.frames import check_out, look

__all__ = ["check_out", "look"]
