"""wandb in this process against a fake server, with a separate home and nothing of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_wandb import FakeWandb

KEY = "0123456789abcdef0123456789abcdefdeadbeef"  # has a real key's form, but is nobody's


@contextmanager
def local_wandb(home: Path, base_url: str | None = None, key: str | None = KEY) -> Iterator[None]:
    """Point wandb at `base_url`, with the key, and everything it keeps on disk at `home`; undone at the end."""
    import wandb

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "WANDB_ERROR_REPORTING": "false"}
    os.environ |= {"XDG_CACHE_HOME": str(home / "caches"), "XDG_CONFIG_HOME": str(home / "settings")}
    os.environ["ATLAS_CACHE_DIR"] = str(home / "caches" / "atlas")
    for part in ("DIR", "CACHE_DIR", "DATA_DIR", "CONFIG_DIR"):
        folder = home / f"wandb-{part.lower()}"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"WANDB_{part}"] = str(folder)
    if base_url is not None:
        os.environ["WANDB_BASE_URL"] = base_url
    if key is not None:
        os.environ["WANDB_API_KEY"] = key
    wandb.teardown()  # what an earlier test has set up knows another server
    try:
        yield
    finally:
        if wandb.run is not None:
            wandb.run.finish()
        wandb.teardown()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def fake_wandb_here(home: Path) -> Iterator[FakeWandb]:
    """A fake server that wandb in this process talks to."""
    with FakeWandb() as server, local_wandb(home, server.url):
        yield server


def start_run(folder: Path, **given: Any) -> Any:
    """A silent run in `folder`, online unless stated otherwise."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, init_timeout=30, finish_timeout=3)
    return wandb.init(project="atlas-vla", dir=str(folder), settings=settings, **given)
