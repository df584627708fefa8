"""The TensorBoard sink: event files in `<run_dir>/tensorboard`, always on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.tracking import board
from atlas.tracking.media_values import mp4_to_gif
from atlas.tracking.projector import write_projection
from atlas.tracking.records import Histogram, Image, Projection, Record, RunConfig, Scalars, Sink, Table, Video

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10  # the default of two minutes makes a short run look dead


class TensorBoardSink(Sink):
    name = "tensorboard"

    def __init__(self, run_dir: Path, resume_step: int | None, from_experience: bool = False) -> None:
        """Open an event file. After resuming from step N, what an earlier segment logged beyond N is void; without a
        checkpoint to resume from, as after a run killed before its first one, all of it is.

        from_experience: see `board.layout`.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run_dir / FOLDER
        self._writer = SummaryWriter(
            log_dir=str(self._folder),
            purge_step=0 if resume_step is None else resume_step + 1,
            flush_secs=_FLUSH_SECONDS,
        )
        self._writer.add_custom_scalars(board.layout(from_experience))
        self._has_hparams = False

    def write(self, record: Record) -> None:
        match record:
            case Scalars(values, step):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
            case Image(name, pixels, step):
                self._writer.add_image(name, pixels, step, dataformats="HWC")
            case Video(name, path, step):
                self._write_video(name, path, step)
            case Histogram():
                self._write_histogram(record)
            case Table():
                self._writer.add_text(record.name, _markdown(record), record.step)
            case Projection():
                write_projection(self._folder, record)
            case RunConfig(values):
                self._write_config(values)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        if self._has_hparams:
            self._add(board.hparams_end(success=exit_code == 0))
        self._writer.close()

    def _write_config(self, values: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        # Markdown shows an indented block unchanged, whatever the text contains.
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
        settings = board.hparams(values)
        if settings:
            self._has_hparams = True
            for summary in board.hparams_summaries(settings):
                self._add(summary)

    def _add(self, summary: Any, step: int | None = None) -> None:
        self._writer._get_file_writer().add_summary(summary, step)

    def _write_video(self, name: str, path: Path, step: int) -> None:
        # SummaryWriter.add_video needs moviepy to show anything; an image summary that holds a GIF plays by itself.
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif, height, width = mp4_to_gif(path)
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._add(summary, step)

    def _write_histogram(self, record: Histogram) -> None:
        self._writer.add_histogram_raw(
            record.name,
            min=record.minimum,
            max=record.maximum,
            num=record.number,
            sum=record.total,
            sum_squares=record.total_squares,
            bucket_limits=record.edges[1:].tolist(),
            bucket_counts=record.counts.tolist(),
            global_step=record.step,
        )


def _markdown(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rows = [["" if cell is None else str(cell) for cell in row] for row in table.rows]
    return "\n".join([line(list(table.columns)), line(["---"] * len(table.columns)), *map(line, rows)])
