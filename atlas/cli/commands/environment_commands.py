"""`atlas environment`."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas.cli.commands.serve_commands import KeyFile
from atlas.cli.options import PLAIN
from atlas.cli.output import say

environment_app = typer.Typer(help="Worlds in Python environments of their own.", **PLAIN)


@environment_app.callback()
def _group() -> None:
    """Without it, typer makes a group of one verb that verb."""


@environment_app.command("serve")
def serve(
    env: Annotated[str, typer.Option(help="The world, such as metaworld-mt10.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="P", help="0: a free one.")] = 8900,
    api_key_file: KeyFile = None,
    sessions: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Worlds at a time.")] = 32,
) -> None:
    """Serve a world to another Python environment's `--env ws://host:port`, until Ctrl-C."""
    import asyncio

    from atlas.environments.catalog import environment_spec
    from atlas.serving.access import Access, Limits, read_key
    from atlas.serving.protocols.environment_protocol import serve_worlds_until_stopped
    from atlas.system.websocket_client import import_websockets

    import_websockets()
    spec = environment_spec(env)
    access = Access(host, port, None if api_key_file is None else read_key(api_key_file))

    limits = Limits(sessions=sessions, answer_seconds=300.0)  # a scene may take a while to make

    def ready(port: int) -> None:
        say(f"{spec.name} is served at ws://{host}:{port}; Ctrl-C ends it.", flush=True)

    number = asyncio.run(serve_worlds_until_stopped(env, access, limits, ready))
    raise typer.Exit(128 + number)
