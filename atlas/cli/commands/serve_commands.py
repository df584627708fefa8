"""`atlas serve` and `atlas bench-serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas.cli.options import Json
from atlas.cli.output import print_json, print_table, say, stdout_kept_for_the_report
from atlas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from atlas.serving.server import ServerSettings

KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="The key, one line, that clients must say.")
]
Layout = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE", help="How clients call images and state: auto, lerobot, libero, droid, groot, or YAML."
    ),
]


def serve(
    checkpoint: Annotated[str, typer.Option(metavar="DIR", help="A run, a checkpoint, wandb:… or hf:….")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="P", help="0: a free one. Default: the protocol's own.")
    ] = None,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="openpi, groot, vla-eval or lerobot.")] = "openpi",
    execute: Annotated[
        int | None, typer.Option(min=1, metavar="E", help="Actions that an answer holds; default: the whole chunk.")
    ] = None,
    api_key_file: KeyFile = None,
    layout: Layout = "auto",
    env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The world, where the policy has learned from several datasets.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Clients that are answered together.")] = 32,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, metavar="T", help="The longest that a request waits for others.")
    ] = 2.0,
    sessions: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Clients at a time.")] = 100,
    message_mb: Annotated[int, typer.Option(min=1, max=1024, metavar="MB", help="The largest message.")] = 16,
    idle_seconds: Annotated[
        float, typer.Option(min=1, metavar="S", help="After which a client that asks nothing is forgotten.")
    ] = 600.0,
    allow_kill: Annotated[
        bool, typer.Option("--allow-kill", help="Let clients of GR00T's protocol end the server.")
    ] = False,
    dry_run: Annotated[
        str | None,
        typer.Option("--dry-run", metavar="DATASET", help="Instead: replay it through the server, compare actions."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a policy to robots and benchmarks, until Ctrl-C."""
    import asyncio

    from atlas.serving.access import MEBIBYTE, Access, Limits, read_key
    from atlas.serving.protocols.client_layout import read_layout
    from atlas.serving.protocols.groot_protocol import import_zmq
    from atlas.serving.protocols.lerobot_protocol import import_grpc
    from atlas.serving.server import DEFAULT_PORTS, ServerSettings, load_actor, serve_until_stopped
    from atlas.system.websocket_client import import_websockets

    if protocol not in DEFAULT_PORTS:
        known = ", ".join(DEFAULT_PORTS)
        raise InputError(f"--protocol {protocol}: known are {known}.{did_you_mean(protocol, DEFAULT_PORTS)}")
    if allow_kill and protocol != "groot":
        raise InputError(f"--allow-kill is of the protocol groot, and not of {protocol}.")
    if as_json and dry_run is None:
        raise InputError("--json is for the findings of --dry-run DATASET.")
    import_websockets()
    if protocol == "groot":
        import_zmq()
    if protocol == "lerobot":
        import_grpc()
    read_layout(layout)  # refused before anything is loaded
    settings = ServerSettings(
        protocol,
        Access(
            host,
            DEFAULT_PORTS[protocol] if port is None else port,
            None if api_key_file is None else read_key(api_key_file),
        ),
        Limits(sessions, message_mb * MEBIBYTE, idle_seconds=idle_seconds),
        layout,
        execute,
        batch,
        batch_wait_ms,
        allow_kill,
        checkpoint,
    )
    if dry_run is not None:
        _dry_run(checkpoint, settings, env, dry_run, as_json)
        return
    actor = load_actor(checkpoint, settings, env)

    def ready(port: int) -> None:
        say(f"{checkpoint} is served at {host}:{port} ({protocol}); Ctrl-C ends it.", flush=True)

    number = asyncio.run(serve_until_stopped(actor, settings, ready))
    raise typer.Exit(128 + number)


def _dry_run(checkpoint: str, settings: ServerSettings, env: str | None, path: str, as_json: bool) -> None:
    from atlas.data.formats import open_dataset
    from atlas.serving.dry_run import dry_run
    from atlas.serving.server import load_actor

    with stdout_kept_for_the_report(as_json):
        dataset = open_dataset(path)
        found = dry_run(load_actor(checkpoint, settings, env), settings, dataset)
    if as_json:
        print_json(found.to_dict())
    else:
        rows = [(name, f"{policy:.4g}", f"{mean:.4g}") for name, (policy, mean) in found.errors.items()]
        title = f"{found.frames} frames of {found.episodes} episodes of {found.dataset}, through the server"
        print_table(title, ("error", "served policy", "the recorded mean, always"), rows)
        episode, frame, error = found.worst
        say(f"furthest off: frame {frame} of episode {episode} (pose_l1_error {error:.3g})")
        say(f"answers took {found.latency_ms[0]:.1f} ms (median) and {found.latency_ms[1]:.1f} ms (99th percentile)")
    if not found.looks:
        say(
            "The served actions are no nearer to the recorded ones than their mean: do not let them move a robot. "
            "`atlas data check` and `atlas eval --diagnose` say what may be wrong with images, units and instructions.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def bench_serve(
    checkpoint: Annotated[str, typer.Option(metavar="DIR", help="A run, a checkpoint, wandb:… or hf:….")],
    clients: Annotated[str, typer.Option(metavar="N,N", help="Numbers of clients.")] = "1,8,64",
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="For each number of clients.")] = 10.0,
    image_size: Annotated[int, typer.Option(min=16, max=2048, metavar="PIXELS", help="Of the images sent.")] = 224,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Clients that are answered together.")] = 32,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, metavar="T", help="The longest that a request waits for others.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Measure how long a policy server takes and how many requests it answers, on this machine."""
    from atlas.serving.server import ServerSettings
    from atlas.serving.server_bench import bench
    from atlas.system.websocket_client import import_websockets

    try:
        numbers = [int(word) for word in clients.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= 1000 for number in numbers):
        raise InputError(f"--clients {clients} should be numbers from 1 to 1000, such as 1,8,64.")
    import_websockets()
    with stdout_kept_for_the_report(as_json):
        loads = bench(
            checkpoint, ServerSettings(batch=batch, batch_wait_ms=batch_wait_ms), numbers, seconds, image_size
        )
    if as_json:
        print_json({"checkpoint": checkpoint, "image_size": image_size, "loads": [load.to_dict() for load in loads]})
        return
    rows = [
        (
            str(load.clients),
            str(load.batch),
            f"{load.together:.1f}",
            f"{load.per_second:.0f}",
            *(f"{ms:.1f}" for ms in (load.p50_ms, load.p99_ms, load.infer_p50_ms, load.overhead_p50_ms)),
        )
        for load in loads
    ]
    columns = ("clients", "batch", "filled", "asks/s", "p50 ms", "p99 ms", "policy ms", "all else ms")
    print_table(f"{checkpoint}, images of {image_size} pixels", columns, rows)
