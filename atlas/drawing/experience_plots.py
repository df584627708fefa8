"""Figures of experience: the decisions of an episode, and maps of the visited states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas.drawing.figures import PREDICTED, RECORDED, plain_figure, style_axes, to_pixels
from atlas.rollout.filming.decision_curves import DecisionCurve

_ROW = 1.5  # inches


def draw_decisions(curves: Sequence[DecisionCurve], rewards: np.ndarray, title: str) -> np.ndarray:
    """An episode's decision curves over its steps, one per row, and below them the rewards float [T] of its steps."""
    height = 0.6 + _ROW * (len(curves) + 1)
    figure = plain_figure(8.4, height, title)
    for row, curve in enumerate([*curves, None]):
        bottom = height - 0.45 - _ROW * (row + 1) + 0.35
        axes = figure.add_axes((0.09, bottom / height, 0.885, (_ROW - 0.6) / height))
        style_axes(axes)
        edges = np.arange(len(rewards) + 1)
        if curve is None:
            axes.text(0, 1.06, "reward of each step", transform=axes.transAxes, fontsize=9)
            axes.stairs(rewards, edges, color=RECORDED, fill=True, alpha=0.4)
            axes.set_xlabel("step of the episode", fontsize=9)
        else:
            at = np.array([*curve.steps, len(rewards)])
            axes.text(0, 1.06, curve.title, transform=axes.transAxes, fontsize=9, color=PREDICTED)
            axes.stairs(curve.values, at, color=PREDICTED, linewidth=2.0, baseline=None)
            if curve.beside is not None:
                axes.stairs(curve.beside, at, color=RECORDED, linewidth=1.0, baseline=None)
                place = 0.02 + 0.012 * len(curve.title)
                axes.text(place, 1.06, curve.beside_title, transform=axes.transAxes, fontsize=9, color=RECORDED)
        axes.set_xlim(0, len(rewards))
    return to_pixels(figure)


def draw_valued_map(
    points: np.ndarray, values: np.ndarray, label: str, axis_names: tuple[str, str], title: str
) -> np.ndarray:
    """Points [n, 2] coloured by their values, float [n]: dark is small. Values that are not finite are grey."""
    figure = plain_figure(8.4, 5.0, title)
    axes = figure.add_axes((0.08, 0.10, 0.72, 0.80))
    finite = np.isfinite(values)
    axes.scatter(points[~finite, 0], points[~finite, 1], s=8, color="#bbbbbb", linewidths=0)
    low, high = np.quantile(values[finite], [0.02, 0.98]) if finite.any() else (0.0, 1.0)
    drawn = axes.scatter(
        points[finite, 0], points[finite, 1], s=12, c=values[finite], cmap="viridis", vmin=low, vmax=high, linewidths=0
    )
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.83, 0.10, 0.02, 0.80)))
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    style_axes(axes)
    axes.set_xlabel(axis_names[0], fontsize=9)
    axes.set_ylabel(axis_names[1], fontsize=9)
    return to_pixels(figure)
