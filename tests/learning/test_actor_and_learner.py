"""Actor and learner apart: what they say to each other, and what happens when one of them dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atlas
from atlas.config import Config
from atlas.errors import InputError
from atlas.learning import online_run
from atlas.learning.actors import actor_group, actor_processes
from atlas.learning.actors.actor_role import act
from atlas.learning.actors.learner_link import ActorEnd, LearnerEnd, LearnerGone
from atlas.learning.actors.learner_role import learn_from_actors
from atlas.learning.actors.messages import (
    PROTOCOL,
    Address,
    Experience,
    Hello,
    Taken,
    Welcome,
    WrongKey,
    from_frames,
    to_frames,
)
from atlas.learning.sac_learner import Piece
from atlas.runs import read_scalars
from tests.learning.test_sac import PENDULUM, TINY, small

pytest.importorskip("zmq", reason="actors talk through pyzmq: pip install 'atlas-vla[serve]'")
SHORT = ["learning.sac.steps=200", "learning.sac.random_steps=50", "learning.sac.training_starts=50"]
SHORT += ["learning.sac.eval_interval=150", "learning.sac.save_interval=100", "learning.sac.push_interval=20"]
SHORT += ["learning.sac.steps_per_message=20"]
SEEN, THEN = {"proprio": np.ones(3, np.float32)}, {"proprio": np.ones((2, 3))}
PIECE = Piece(SEEN, np.ones((2, 1)), np.ones(2), THEN, 2, terminated=False, over=True)
HERE = Address("127.0.0.1", 0)


def test_messages_arrive_as_they_were_sent_and_only_with_the_key() -> None:
    sent = Experience(3, 7, 1, PIECE)

    found = from_frames(to_frames(sent, "a key"), "a key")

    assert isinstance(found, Experience) and (found.actor, found.number, found.episodes) == (3, 7, 1)
    np.testing.assert_array_equal(found.piece.seen_then["proprio"], PIECE.seen_then["proprio"])
    for key in (None, "another key"):
        with pytest.raises(WrongKey):
            from_frames(to_frames(sent, key), "a key")
    changed = to_frames(sent, "a key")
    with pytest.raises(WrongKey):
        from_frames([changed[0].replace(b"\x07", b"\x08", 1), changed[1]], "a key")


def test_what_is_no_message_is_refused() -> None:
    frame, signature = to_frames(Taken(1, 1, 1, 1, False), None)
    for broken in ([frame], [b"no msgpack", b""], [b"\x80", b""], [frame.replace(b"Taken", b"Token"), signature]):
        with pytest.raises(InputError):
            from_frames(broken, None)
    with pytest.raises(InputError, match="steps of a message Taken is a str"):
        from_frames(to_frames(Taken(1, 1, "1", 1, False), None), None)  # type: ignore[arg-type]


def test_addresses() -> None:
    assert (
        str(Address.read("", "--listen")) == "127.0.0.1:5488" and str(Address.read("host", "--listen")) == "host:5488"
    )
    assert Address.read("[::1]:99", "--listen") == Address("::1", 99)
    with pytest.raises(InputError, match=r"--learner 'host:port' is no address; expected HOST:PORT"):
        Address.read("host:port", "--learner")


def test_a_learner_and_actors_learn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One actor is there before the learner has played what it plays at first, the other comes later."""
    config, played, there = small(tmp_path, *SHORT), list[int](), Address("127.0.0.1", free_port())
    threads: list[threading.Thread] = []
    welcomed, hello, play_here = threading.Event(), ActorEnd.hello, online_run.play_here

    def greeted(self: ActorEnd) -> Welcome:
        found = hello(self)
        welcomed.set()
        return found

    def patiently(*given: Any, **named: Any) -> Any:
        wait_for(lambda: named["each"]() or welcomed.is_set(), 30)
        return play_here(*given, **named)

    monkeypatch.setattr(ActorEnd, "hello", greeted)
    monkeypatch.setattr(online_run, "play_here", patiently)

    def play() -> None:
        played.append(act(config, PENDULUM, there, "a key"))

    def start(port: int = 0) -> None:
        threads.append(threading.Thread(target=play))
        threads[-1].start()

    start()
    result = learn_from_actors(config, PENDULUM, there, "a key", on_listening=start)
    for thread in threads:
        thread.join()

    assert 200 <= result.steps < 220 and sum(played) >= result.steps and result.updates >= 130
    boards = [read_scalars(config.run_dir / part) for part in ("learner", "actor", "actor-1")]
    assert "sac/critic_loss" in boards[0] and all("actor/episode_reward" in board for board in boards[1:])


def test_who_does_not_belong_to_the_learner_is_told_why() -> None:
    learner = LearnerEnd(HERE, "a key", "Pendulum")
    there = Address("127.0.0.1", learner.port)

    def answer() -> None:
        until = time.monotonic() + 20
        while not done.is_set() and time.monotonic() < until:
            learner.receive(0.1)

    done = threading.Event()
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for key, about, words in (
            ("other", "Pendulum", "its key is another one"),
            (None, "Pendulum", "its key is another one"),
            ("a key", "Hopper", "learns Pendulum, and the actor plays Hopper"),
        ):
            end = ActorEnd(there, key, about, timeout=5)
            with pytest.raises(InputError, match=words):
                end.hello()
            end.close()
        end = ActorEnd(there, "a key", "Pendulum", timeout=0.01)
        with pytest.raises(LearnerGone):  # what answers here knows whom to refuse, and nothing else
            end.hello()
        end.send(Hello("0.0", PROTOCOL, "Pendulum", -1, "me"))
        with pytest.raises(InputError, match=rf"runs Atlas {atlas.__version__}, and the actor 0.0"):
            end.receive(20)
        end.close()
        with pytest.raises(InputError, match=r"the port is in use.*--listen 127\.0\.0\.1:"):
            LearnerEnd(there, None, "Pendulum")
    finally:
        done.set()
        thread.join()
        learner.close()
    with pytest.raises(InputError, match="no key: whoever reaches it"):
        LearnerEnd(Address("0.0.0.0", 0), None, "Pendulum")


def test_without_a_learner_an_actor_ends(caplog: pytest.LogCaptureFixture) -> None:
    end = ActorEnd(Address("127.0.0.1", free_port()), None, "Pendulum", timeout=0.2)
    with pytest.raises(LearnerGone, match=r"No learner answers .* Start it first: .*--role learner") as gone:
        end.hello()
    end.close()
    assert gone.value.exit_code == 1 and caplog.text.count("Waiting for the learner") == 1


def test_an_actor_whose_input_is_wrong_ends_the_run_as_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_group, "EVERY", 0.0)
    monkeypatch.setattr(actor_processes, "module_command", lambda _: [sys.executable, "-c", "raise SystemExit(2)"])
    with (
        actor_processes.ActorProcesses(Config(), PENDULUM, 1, None) as processes,
        pytest.raises(InputError, match="An actor's input is wrong"),
    ):
        processes.start(4000)
        while True:
            processes.look()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.slow
def test_an_actor_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The actors of `--actors 1` are processes of their own."""
    config, killed = small(tmp_path, *SHORT, "learning.sac.steps=2000"), list[int]()
    look_after = actor_processes.ActorProcesses._look_after

    def kill_once(self: actor_processes.ActorProcesses) -> None:
        if not killed and read_scalars(config.run_dir / "actor"):
            killed.append(self._processes[0].pid)
            os.kill(killed[0], signal.SIGKILL)
            self._processes[0].wait()
        look_after(self)

    monkeypatch.setattr(actor_processes.ActorProcesses, "_look_after", kill_once)
    monkeypatch.setattr(actor_group, "EVERY", 0.1)
    with caplog.at_level(logging.WARNING):
        result = actor_processes.learn_with_actors(config, PENDULUM, 1)

    assert killed and result.steps >= 2000 and result.updates > 0
    assert "An actor's process ended with exit code -9; another one is started" in caplog.text
    assert "actor/episode_reward" in read_scalars(config.run_dir / "actor-1")
    with pytest.raises(ProcessLookupError):
        os.kill(killed[0], 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_either_may_be_killed_and_started_again(tmp_path: Path) -> None:
    port = free_port()
    longer = ["learning.sac.steps=600", "learning.sac.save_interval=100", "learning.sac.training_starts=200"]
    longer += ["learning.sac.random_steps=100", "learning.sac.eval_interval=600", "learning.sac.connect_timeout=300"]
    command = [sys.executable, "-m", "atlas.cli", "learn", "sac", "--env", PENDULUM, *TINY, *longer]
    command += [f"output_dir={tmp_path}", "run_name=run"]
    learner_command = [*command, "--role", "learner", "--listen", f"127.0.0.1:{port}", "--json"]
    actor_command = [*command, "--role", "actor", "--learner", f"127.0.0.1:{port}"]
    started: list[subprocess.Popen[str]] = []

    def start(arguments: list[str]) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        return started[-1]

    def saved(steps: int) -> Callable[[], bool]:
        places = tmp_path / "run" / "checkpoints"
        return lambda: any(int(place.name[5:]) >= steps for place in places.glob("step_*"))

    try:
        learner, actor = start(learner_command), start(actor_command)
        wait_for(saved(100))
        learner.send_signal(signal.SIGKILL)
        learner.wait()
        learner = start(learner_command)
        wait_for(saved(300))
        actor.send_signal(signal.SIGKILL)
        actor.wait()
        actor = start(actor_command)
        out, _ = learner.communicate(timeout=600)
        assert learner.returncode == 0 and actor.wait(60) == 0
    finally:
        for process in started:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
    found = json.loads(out)
    assert found["env_steps"] >= 600
    # Nothing is lost: what the learner has is what the first actor sent until it died, and what the second did.
    facts = json.loads(max((tmp_path / "run" / "checkpoints").glob("step_*/trainer/facts.json")).read_text())
    assert facts["steps"] == found["env_steps"] and set(facts["arrived"]) == {"0", "1"}
    assert facts["decisions"] == facts["steps"]


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)
