"""Reading a run's metrics back from its TensorBoard files."""

from __future__ import annotations

from pathlib import Path

from atlas.tracking.tensorboard import FOLDER


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a run: {tag: [(step, value), ...]} in the order logged; {} where nothing was logged.

    The segments of a resumed run are joined, without the steps a later segment made void. Values are float32, as
    the files hold them.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        return {}
    # 0: keep all of them; the default keeps a random sample of 10,000.
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}
