"""`atlas runs` and `atlas report`: list runs, compare them and tell them, using their files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas.cli.options import PLAIN, Json
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.errors import InputError
from atlas.system.paths import check_file

if TYPE_CHECKING:
    from atlas.runs.comparison import Comparison, Metric, Ranking
    from atlas.runs.paired_success import Pair, SuccessComparison
    from atlas.runs.run_directory import RunSummary

runs_app = typer.Typer(help="List and compare runs, using only their folders.", **PLAIN)

_RUNS_AS_COLUMNS = 4  # more runs, and runs with long names, become rows
_NAMES_AS_COLUMNS = 60  # characters in all
_PAIRS_SHOWN = 10  # if there are more, those of the best run
_MISSING = "-"
_ARROWS = {"lower": "↓", "higher": "↑"}


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the runs.")] = Path("outputs"),
    as_json: Json = False,
) -> None:
    """List runs: how far they are and what they have reached."""
    with stdout_kept_for_the_report(as_json):
        from atlas.runs.run_directory import find_runs, summarize

        found = find_runs(folder)
        if not found:
            raise InputError(f"{folder} holds no runs; they are in the folder that the config's output_dir names.")
        summaries, damaged = [], []
        for name, path in found.items():
            try:
                summaries.append(summarize(path, name))
            except InputError as error:
                damaged.append(str(error))
        summaries.sort(key=lambda run: run.started or 0)
    if as_json:
        print_json({"runs": [run.to_dict() for run in summaries], "damaged": damaged})
    elif summaries:
        columns = ("run", "state", "steps", "best", "final success", "val/loss", "started")
        print_table(str(folder), columns, [_line(run) for run in summaries])
    for message in damaged:
        say(f"left out: {message}", file=sys.stderr)
    if not summaries:
        raise typer.Exit(2)


def _line(run: RunSummary) -> tuple[str, ...]:
    steps = str(run.steps) if run.total_steps is None else f"{run.steps}/{run.total_steps}"
    best = success = _MISSING
    if run.best_value is not None:
        best = f"{run.best_metric} {_number(run.best_value)} at {run.best_step}"
    if run.final_success is not None:
        low, high = run.final_success.interval
        success = f"{run.final_success.rate:.0%} ({low:.0%} to {high:.0%})"
    loss = _MISSING if run.val_loss is None else _number(run.val_loss)
    started = _MISSING if run.started is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    return run.name, run.state, steps, best, success, loss, started


@runs_app.command("compare")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Folders, names under outputs/, or outcome files of evaluations."),
    ],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Such as val/pose_l2_error; may be repeated.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw curves and success: .png, .svg, .pdf.")
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="Refuse runs that have not been evaluated on the same episodes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare runs: settings, metrics, and whether their success differs."""
    with stdout_kept_for_the_report(as_json):
        from atlas.drawing.comparison_plot import check_plot_file, save_plot
        from atlas.runs.comparison import compare_runs
        from atlas.runs.run_directory import read_named

        if plot is not None:
            check_plot_file(plot)
        if len(runs) < 2:
            raise InputError("Name at least two runs to compare, such as `atlas runs compare outputs/a outputs/b`.")
        read = read_named(runs)
        comparison = compare_runs(read, metric or (), paired=paired)
        if plot is not None:
            save_plot(comparison, read, plot)
    if as_json:
        print_json(comparison.to_dict())
        return
    print_comparison(comparison)
    if plot is not None:
        say(f"The picture is in {plot}.")


# ---- a comparison in tables --------------------------------------------------------------------------------


def print_comparison(comparison: Comparison) -> None:
    names = comparison.names
    if comparison.config:
        _print_grid(
            "what differs in the configs",
            ("key", list(comparison.config)),
            names,
            lambda key, run: _setting(comparison.config[key].get(run, _MISSING)),
        )
    elif comparison.metrics and len(names) > 1:
        say("The configs do not differ.")
    if comparison.metrics:
        metrics = {_metric_label(name, metric): metric for name, metric in comparison.metrics.items()}
        with_steps = _as_columns(names)  # otherwise the table would be too wide
        _print_grid(
            f"latest value (best{', at step' if with_steps else ''}); {_ARROWS['lower']} lower is better, "
            f"{_ARROWS['higher']} higher",
            ("metric", list(metrics)),
            names,
            lambda label, run: _reached(metrics[label], run, with_steps),
        )
    if comparison.success is not None:
        _print_success(comparison.success, comparison.ranking)
    if comparison.ranking is not None and len(names) > 1:
        _print_ranking(comparison.ranking)


def _print_grid(
    title: str, rows: tuple[str, Sequence[str]], runs: Sequence[str], cell: Callable[[str, str], str]
) -> None:
    """A table with the runs as columns, or as rows if there are many."""
    corner, keys = rows
    if _as_columns(runs):
        print_table(title, (corner, *runs), [(key, *(cell(key, run) for run in runs)) for key in keys])
    else:
        narrow = [key.replace("/", "/\n").replace(".", ".\n") for key in keys]
        print_table(title, ("run", *narrow), [(run, *(cell(key, run) for key in keys)) for run in runs])


def _as_columns(runs: Sequence[str]) -> bool:
    return len(runs) <= _RUNS_AS_COLUMNS and sum(map(len, runs)) <= _NAMES_AS_COLUMNS


def _setting(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _metric_label(name: str, metric: Metric) -> str:
    return f"{name} {_ARROWS[metric.better]}" if metric.better else name


def _reached(metric: Metric, run: str, with_steps: bool) -> str:
    reached = metric.runs[run]
    if reached is None:
        return _MISSING
    if reached.best is None:
        return f"{_number(reached.latest)}{f' at {reached.latest_step}' if with_steps else ''}"
    return f"{_number(reached.latest)} ({_number(reached.best)}{f', at {reached.best_step}' if with_steps else ''})"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _print_success(success: SuccessComparison, ranking: Ranking | None) -> None:
    rows = []
    for name, found in success.evaluations.items():
        low, high = found.interval
        step = _MISSING if found.step is None else str(found.step)
        rates = f"{found.success_rate:.1%}", f"{low:.1%} to {high:.1%}"
        rows.append((name, found.purpose, step, f"{found.successes}/{found.episodes}", *rates))
    print_table("success", ("run", "evaluation", "step", "successes", "rate", "95% interval"), rows)
    pairs = success.pairs
    if len(pairs) > _PAIRS_SHOWN and ranking is not None:
        pairs = [pair for pair in pairs if ranking.runs[0][0] in (pair.first, pair.second)]
        say(f"Of {len(success.pairs)} pairs, those with {ranking.runs[0][0]} are shown; --json has all.")
    if pairs:
        p = "p" if len(success.pairs) == 1 else f"p (of {len(success.pairs)})"
        columns = ("pair", "only one succeeds", "difference (95% interval)", p)
        print_table("do they differ?", columns, [_pair(pair) for pair in pairs])
        for pair in pairs:
            say(f"{pair.first} and {pair.second}: {pair.verdict}.")
    if len(success.pairs) > 1:
        say(f"The p values are adjusted for the {len(success.pairs)} comparisons (Holm).")
    for note in success.notes:
        say(note)
    _print_seeds(success)


def _print_seeds(success: SuccessComparison) -> None:
    """Print what recipes reach over several seeds of training."""
    if not success.seeds:
        return
    rows = []
    for each in success.seeds:
        low, high = each.interval
        spread = _MISSING if each.spread is None else f"{100 * each.spread:.1f} ({100 * each.by_chance:.1f} by chance)"
        rows.append((each.name, str(len(each.runs)), f"{each.mean:.1%}", spread, f"{low:.1%} to {high:.1%}"))
    columns = ("recipe", "seeds", "mean success", "spread, points", "95% interval over seeds and episodes")
    print_table("over seeds of training", columns, rows)
    for pair in success.seed_pairs:
        first, last = (f"{100 * bound:+.1f}" for bound in pair.interval)
        verdict = "differ" if pair.differs else "no difference can be claimed"
        say(f"{pair.first} - {pair.second}: {100 * pair.difference:+.1f} points ({first} to {last}): {verdict}.")


def _pair(pair: Pair) -> tuple[str, ...]:
    low, high = (f"{100 * bound:+.1f}" for bound in pair.interval)
    telling = "other episodes" if pair.telling is None else f"{pair.telling[0]} : {pair.telling[1]}"
    difference = f"{100 * pair.difference:+.1f} points ({low} to {high})"
    return f"{pair.first} - {pair.second}", telling, difference, f"{pair.p:.2g}"


def _print_ranking(ranking: Ranking) -> None:
    values = [value for _, value in ranking.runs]
    rows = [
        (str(values.index(value) + 1), name, _MISSING if value is None else _number(value))
        for name, value in ranking.runs
    ]
    what = "final" if ranking.final else f"best, {ranking.better} is better"
    print_table("ranking", ("place", "run", f"{ranking.metric} ({what})"), rows)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Folders, or names under outputs/; several are put side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html in the run's folder; of several runs, here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: success, curves, errors, films, checks, settings. It needs no network."""
    if out is not None:
        check_file("--out", out, "report.html")
    with stdout_kept_for_the_report(as_json):
        from atlas.report import report as write

        page = write(runs, out)
    if as_json:
        print_json({"report": str(page), "bytes": page.stat().st_size})
    else:
        say(f"The report is in {page}; open it in a browser.")
