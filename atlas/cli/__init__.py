"""The `atlas` command. Each verb is thin, and imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from atlas import __version__
from atlas.cli.commands import data_commands as data
from atlas.cli.commands import doctor_command as doctor
from atlas.cli.commands import environment_commands as environment
from atlas.cli.commands import evaluate_command as evaluate
from atlas.cli.commands import learn_commands as learn
from atlas.cli.commands import registry_commands as registry
from atlas.cli.commands import runs_commands as runs
from atlas.cli.commands import serve_commands as serve
from atlas.cli.commands import sweep_command as sweep
from atlas.cli.commands import train_command as train
from atlas.cli.options import PLAIN, with_home
from atlas.cli.output import log_lines_shown_as_text, say
from atlas.errors import InputError
from atlas.system.process_control.threads import yield_cores

app = typer.Typer(
    help="Train and evaluate vision-language-action robot policies.",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    **PLAIN,
)
app.command()(train.train)
app.command(hidden=True)(train.rank)
app.command("eval")(evaluate.evaluate)
app.command()(serve.serve)
app.command("bench-serve")(serve.bench_serve)
app.command()(doctor.doctor)
app.command()(runs.report)
app.command("cache-rank", hidden=True)(data.cache_rank)
app.add_typer(data.data_app, name="data")
app.add_typer(environment.environment_app, name="environment")
app.add_typer(registry.model_app, name="model")  # with the verbs of model.py
app.add_typer(runs.runs_app, name="runs")
app.add_typer(learn.learn_app, name="learn")
app.add_typer(sweep.sweep_app, name="sweep")
app.add_typer(train.config_app, name="config")


def main() -> None:
    """The entry point: run a verb, and turn what it raises into a message and an exit code."""
    yield_cores()
    with log_lines_shown_as_text():
        code = _run()
    if "RANK" in os.environ:  # one of several processes; `--help` does without what that takes to import
        from atlas.launch import end_at_once, leave_exit_code

        leave_exit_code(code)
        end_at_once(code)
    sys.exit(code)


def _run() -> int:
    try:
        app([with_home(argument) for argument in sys.argv[1:]], prog_name="atlas")
    except SystemExit as stop:  # typer ends this way, including usage errors (2)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InputError as error:
        from atlas.launch import leave_error
        from atlas.system.safe_text import redact

        if not leave_error(error):
            say(redact(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        code = getattr(error, "exit_code", None)
        if code in (None, 1):
            from atlas.launch import leave_error

            if leave_error(error):  # with several ranks, the launcher reports the first error, once
                return 1
        if code is None:
            import traceback

            from atlas.system.safe_text import redact

            say(redact(traceback.format_exc()), end="", file=sys.stderr)
        elif str(error) and os.environ.get("RANK", "0") == "0":  # every rank is stopped; only one says so
            from atlas.system.safe_text import redact

            say(redact(str(error)), file=sys.stderr)
        return 1 if code is None else code
    return 0


def _version(asked: bool) -> None:
    if asked:
        print(f"atlas {__version__}")
        raise typer.Exit


@app.callback()
def _atlas(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass
