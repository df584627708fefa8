"""Whatever wandb meets at the start - no key, no server, a dead proxy -, training starts, ends, and says what to do."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from faulty_servers import BlackHole, Closed, FullBacklog, MortalWandb, Proxy, Refusing, make_certificate
from marked_processes import end_all, new_mark, processes_of
from tracked_run import KEY
from watched_run import LOGIN, STEPS, Watched, hermetic, train_sh, watch

from atlas.runs import read_scalars
from tests.conftest import MakeLibero

pytest.importorskip("wandb")
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds wandb's process through /proc")

ALL = list(range(1, STEPS + 1))

# ---- starts that fail ------------------------------------------------------------------------------------

FAULTS = [
    "no key",
    "malformed key",
    "no such host",
    "refused",
    "black hole",
    "full backlog",
    "401",
    "503",
    "dead proxy",
    "black hole for a proxy",
]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Watched]]]:
    """All of them at once: they mostly wait."""
    folder = tmp_path_factory.mktemp("starts")
    with ExitStack() as stack:
        servers = (Closed(), BlackHole(), FullBacklog(), Refusing(401), Refusing(503))
        closed, hole, full, forbidding, unavailable = (stack.enter_context(server) for server in servers)
        nowhere = "https://atlas.invalid"  # a name that never resolves
        variables: dict[str, dict[str, str]] = {
            "no key": {"WANDB_API_KEY": "", "WANDB_BASE_URL": hole.url},
            "malformed key": {"WANDB_API_KEY": "short", "WANDB_BASE_URL": hole.url},
            "no such host": {"WANDB_BASE_URL": nowhere},
            "refused": {"WANDB_BASE_URL": closed.url},
            "black hole": {"WANDB_BASE_URL": hole.url},
            "full backlog": {"WANDB_BASE_URL": full.url},
            "401": {"WANDB_BASE_URL": forbidding.url},
            "503": {"WANDB_BASE_URL": unavailable.url},
            "dead proxy": {"WANDB_BASE_URL": nowhere, "https_proxy": closed.url},
            "black hole for a proxy": {"WANDB_BASE_URL": nowhere, "https_proxy": hole.url},
        }
        assert list(variables) == FAULTS
        with ThreadPoolExecutor(max_workers=3) as pool:
            yield {
                name: pool.submit(watch, folder / name.replace(" ", "_"), init_seconds=2, **values)  # type: ignore[arg-type]
                for name, values in variables.items()
            }
        assert forbidding.requests and unavailable.requests


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_starts_without_wandb_and_says_what_to_do(starts: dict[str, Future[Watched]], fault: str) -> None:
    watched = starts[fault].result()
    run = watched.run

    watched.assert_undisturbed()
    (warning,) = run.warnings
    assert "goes offline" in warning and "`wandb login`" in warning
    assert run.wandb_folder().name.startswith("offline-run-")
    assert f"wandb sync {run.wandb_folder()}" in run.stderr.splitlines()[-1]
    assert watched.rows() == ALL
    assert [record["exit_code"] for record in run.wandb_records("exit")] == [0]
    watched.assert_no_key()


# ---- starts that succeed ---------------------------------------------------------------------------------


def assert_arrived(server: MortalWandb, watched: Watched) -> None:
    watched.assert_undisturbed()
    assert watched.run.warnings == []
    assert [row["custom/metric"] for row in server.history if "custom/metric" in row] == ALL
    assert server.exit_codes == [0]
    assert server.logins == {f"Basic {LOGIN}"}


def test_after_wandb_login_the_key_is_read_from_netrc_and_stays_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with MortalWandb() as server:
        login = [str(Path(sys.executable).with_name("wandb")), "login", KEY]
        variables = {"WANDB_BASE_URL": server.url, "WANDB_ERROR_REPORTING": "false"}
        subprocess.run(login, env=hermetic(home) | variables, check=True, capture_output=True, timeout=60)
        server.logins.clear()
        watched = watch(tmp_path / "run", WANDB_BASE_URL=server.url, HOME=str(home), NETRC="", WANDB_API_KEY="")
        assert_arrived(server, watched)
    watched.assert_no_key()
    watched.run.home = home
    watched.assert_no_key(home / ".netrc")


def test_a_proxy_for_http_is_used(tmp_path: Path) -> None:
    """wandb goes around proxies for loopback addresses; a name that only the proxy knows shows that it was used."""
    with MortalWandb() as server, Proxy({"atlas.test": server.url}) as proxy:
        watched = watch(tmp_path / "run", WANDB_BASE_URL="http://atlas.test", http_proxy=proxy.url)
        assert set(proxy.seen) == {"POST atlas.test"}
        assert_arrived(server, watched)
    watched.assert_no_key()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_proxy_for_https_is_used_and_its_password_stays_secret(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "atlas.test")
    with MortalWandb(certificate) as server, Proxy({"atlas.test": server.url}) as proxy:
        watched = watch(
            tmp_path / "run",
            WANDB_BASE_URL="https://atlas.test",
            https_proxy=proxy.url.replace("http://", "http://me:hunter22@"),
            SSL_CERT_FILE=str(certificate),
        )
        assert set(proxy.seen) == {"CONNECT atlas.test"}
        assert_arrived(server, watched)
    watched.assert_no_key()
    assert watched.run.files_holding("hunter22") == []


# ---- through ./train.sh ----------------------------------------------------------------------------------

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # where a password would be asked for
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_without_a_key_is_not_asked_for_one(make_libero: MakeLibero, tmp_path: Path) -> None:
    """A real terminal, on which wandb would ask for the key and wait for ever."""
    mark, (ours, theirs) = new_mark(), os.openpty()
    command = [sys.executable, "-c", TAKE_TERMINAL, *train_sh(make_libero(), tmp_path / "out")]
    environment = hermetic(tmp_path / "home") | mark
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown = read_terminal(ours, seconds=120)
        code = process.wait(timeout=10)
    finally:
        end_all(mark)
        os.close(ours)

    assert code == 0, shown
    (warning,) = [line for line in shown.splitlines() if "wandb" in line and "WARNING" in line]
    assert "has no API key and goes offline" in warning and "`wandb login`" in warning
    assert "Enter your choice" not in shown and "API key:" not in shown
    (folder,) = (tmp_path / "out" / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder}" in shown
    assert len(read_scalars(tmp_path / "out" / "run")["train/loss"]) == 20


def read_terminal(terminal: int, seconds: float) -> str:
    """All that is printed until the last program of the terminal has ended."""
    shown, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody has it open any more
            return shown.decode()
    raise AssertionError(f"it did not end within {seconds:g} s:\n{shown.decode()}")


def test_two_ranks_give_one_run(make_libero: MakeLibero, tmp_path: Path) -> None:
    mark = new_mark()
    command = train_sh(make_libero(), tmp_path / "out", "--mode", "multi", "--gpus", "2")
    with MortalWandb() as server:
        environment = hermetic(tmp_path / "home") | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY} | mark
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert processes_of(mark) == {}
        finally:
            end_all(mark)

        assert done.returncode == 0, done.stderr
        assert len({run["name"] for run in server.run_variables}) == 1
        assert [row["train/step"] for row in server.history if "train/loss" in row] == list(range(1, 21))
        assert server.exit_codes == [0]
    assert len(list((tmp_path / "out" / "run" / "wandb").glob("run-*"))) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
