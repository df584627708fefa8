"""Several machines: which one this is, how they meet, and how they end together."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import PrefixStore
from torch.distributed.rendezvous import rendezvous

from atlas import __version__
from atlas.config import Config, DistributedConfig, dump_yaml, load_config
from atlas.errors import InputError
from atlas.launch import Nodes, plan_nodes
from atlas.launch.meeting import Meeting, NodeLost
from atlas.launch.nodes import ALONE
from atlas.launch.rank import on_first_rank, write_prepared
from atlas.runs import read_scalars
from atlas.system.files import write_text
from tests import warm
from tests.conftest import MakeLibero
from tests.launch.test_launch_ranks import is_alive, wait_until
from tests.processes import end_tree
from tests.test_vertical_slice import SMALL, run_atlas

ROOT = Path(__file__).parents[2]
BOUND = 30.0  # seconds in which all is over, wherever it began
HERE = {"master_addr": "127.0.0.1"}


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


# ---- which machine this is -------------------------------------------------------------------------------


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's tool, which knows that localhost and node[2-4] are four machines."""
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\n[ "$*" = "show hostnames localhost,node[2-4]" ] && echo localhost && echo node2\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


SLURM = {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "localhost,node[2-4]"}


def test_one_machine_is_no_matter() -> None:
    assert plan_nodes(DistributedConfig(), {}) == ALONE
    assert plan_nodes(DistributedConfig(), {"SLURM_NNODES": "1", "SLURM_NODEID": "0"}) == ALONE
    assert plan_nodes(DistributedConfig(num_nodes=1), SLURM) == ALONE


def test_flags_say_which_machine_this_is(port: int) -> None:
    asked = DistributedConfig(num_nodes=3, node_rank=1, master_addr="127.0.0.1", master_port=port)

    assert plan_nodes(asked, {}) == Nodes(3, 1, "127.0.0.1", port)


def test_slurm_says_which_machine_this_is(scontrol: None, port: int) -> None:
    assert plan_nodes(DistributedConfig(master_port=port), SLURM) == Nodes(4, 2, "localhost", port)
    by_job = {name: value for name, value in SLURM.items() if name != "SLURM_NNODES"} | {"SLURM_JOB_NUM_NODES": "3"}
    assert plan_nodes(DistributedConfig(master_port=port), by_job) == Nodes(3, 2, "localhost", port)


def test_a_step_of_slurm_may_be_smaller_than_its_job(scontrol: None, port: int) -> None:
    step = {**SLURM, "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2"}

    assert plan_nodes(DistributedConfig(master_port=port), step) == Nodes(2, 1, "localhost", port)


def test_flags_win_over_slurm(scontrol: None, port: int) -> None:
    asked = DistributedConfig(num_nodes=2, node_rank=1, master_addr="127.0.0.1", master_port=port)

    assert plan_nodes(asked, SLURM) == Nodes(2, 1, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("asked", "variables", "words"),
    [
        ({"node_rank": 1}, {}, ["--node-rank 1", "should be 0", "--num-nodes"]),
        ({"num_nodes": 2, "node_rank": 2, **HERE}, {}, ["--node-rank 2", "0 to 1", "2 machines"]),
        ({"num_nodes": 2}, {}, ["--num-nodes 2", "--master-addr"]),
        ({"master_addr": "127.0.0.1"}, {}, ["--master-addr 127.0.0.1", "--num-nodes"]),
        ({"num_nodes": 2, "master_addr": "no such host"}, {}, ["--master-addr no such host", "cannot be resolved"]),
        ({}, {**SLURM, "PATH": ""}, ["scontrol", "node[2-4]", "--master-addr"]),
        (HERE, {**SLURM, "SLURM_STEP_NUM_TASKS": "32"}, ["32 tasks on 4 machines", "--ntasks-per-node=1"]),
    ],
)
def test_what_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], variables: dict[str, str], words: list[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError) as error:
        plan_nodes(DistributedConfig(**asked), variables)
    for word in words:
        assert word in str(error.value)


# ---- how they meet ---------------------------------------------------------------------------------------


@pytest.fixture
def nodes(port: int) -> Nodes:
    """The first of two, which wait for a few seconds."""
    return Nodes(2, 0, "127.0.0.1", port, wait_minutes=0.02)


def attend(nodes: Nodes) -> int:
    with Meeting(nodes):
        return nodes.rank


def attend_all(*all_nodes: Nodes) -> list[BaseException | int | None]:
    """The result of machines that all try to meet: the error, or the number of one that has met the others."""
    with ThreadPoolExecutor(len(all_nodes)) as pool:
        futures = [pool.submit(attend, each) for each in all_nodes]
        return [future.exception() or future.result() for future in futures]


def test_machines_meet_whichever_comes_first(nodes: Nodes) -> None:
    assert attend_all(replace(nodes, rank=1), nodes) == [1, 0]


def test_a_port_that_is_taken_is_refused_on_the_first_machine(nodes: Nodes) -> None:
    refused = rf"--master-port {nodes.master_port} .*cannot be used"
    with socket.create_server(("", nodes.master_port)), pytest.raises(InputError, match=refused):
        attend(nodes)


def test_two_machines_with_one_number_are_refused(nodes: Nodes) -> None:
    three = replace(nodes, number=3)

    _, *others = attend_all(three, replace(three, rank=1), replace(three, rank=1))

    (refused,) = [error for error in others if isinstance(error, InputError)]
    assert "--node-rank 1" in str(refused) and "another machine has this number" in str(refused)


def test_a_machine_that_does_not_come_is_named_and_the_others_end(nodes: Nodes) -> None:
    three = replace(nodes, number=3)

    first, second = attend_all(three, replace(three, rank=1, wait_minutes=1))

    assert isinstance(first, NodeLost) and isinstance(second, NodeLost)
    assert "Node 2 of 3 did not come within 0.02 minutes (distributed.timeout_minutes)" in str(first)
    assert "Node 0 has ended" in str(second)


def test_a_first_machine_that_is_not_there_is_named(nodes: Nodes) -> None:
    where = rf"--master-addr 127.0.0.1, --master-port {nodes.master_port}: node 0 did not answer"
    with pytest.raises(InputError, match=where):
        attend(replace(nodes, rank=1, wait_minutes=0.01))


# ---- the first rank prepares for all ---------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[Config, Path | None]]]:
    """What the first rank of another machine makes of a text that rank 0 has left."""
    with Meeting(ALONE) as meeting:
        assert meeting._store is not None
        variables = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        for name, value in (variables | {"MASTER_PORT": str(meeting._store.port)}).items():
            monkeypatch.setenv(name, value)

        def take(text: str) -> tuple[Config, Path | None]:
            store, _, _ = next(rendezvous("env://"))
            PrefixStore("atlas", store).set("prepared", text)
            return on_first_rank(lambda: pytest.fail("prepared twice"))

        yield take


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run whose folder is there."""
    config = load_config(None, [f"output_dir={tmp_path}", "run_name=run", "seed=3"])
    write_text(tmp_path / "run" / "config.yaml", dump_yaml(config))
    return config


Take = Callable[[str], tuple[Config, Path | None]]


def test_the_others_learn_which_run_it_is(prepared: Take, config: Config, tmp_path: Path) -> None:
    assert prepared(write_prepared(config, tmp_path / "checkpoint")) == (config, tmp_path / "checkpoint")


def test_a_machine_that_does_not_see_the_run_says_so(
    prepared: Take, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.launch.rank._SHARED_SECONDS", 0.2)
    text = write_prepared(config, None)
    write_text(tmp_path / "run" / "config.yaml", "seed: 4")  # as a run of the same name on another disk

    with pytest.raises(InputError, match=rf"{tmp_path}/run is not the run's folder .* on a shared file system"):
        prepared(text)


def test_another_version_of_atlas_is_refused(prepared: Take, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_prepared(config, None)
    monkeypatch.setattr("atlas.launch.rank.__version__", "9.9")

    with pytest.raises(
        InputError, match=rf"This machine has Atlas 9\.9, .* {re.escape(__version__)}: install the same"
    ):
        prepared(text)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"[]", b"\xff", b'{"code": null, "failure": {"x": 1}}', b'{"code": "x"}']
)
def test_nonsense_in_the_store_is_a_failure_of_its_machine(nodes: Nodes, text: bytes) -> None:
    meeting = Meeting(replace(nodes, number=2))
    meeting._ask = lambda *_: [text]  # type: ignore[method-assign]

    meeting._listen()

    (failure,) = meeting.failures()
    assert failure.node == 1 and "not what Atlas's launcher reports" in failure.text


# ---- real launchers --------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A launcher that takes part as one of two machines."""

    process: warm.Started
    began: float

    def end(self, within: float = 120) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=120)
        assert time.monotonic() - self.began < within, said
        waiting = re.compile(r"^Waiting for .*\n", re.MULTILINE)  # where the machine is busy
        return self.process.returncode, waiting.sub("", said)


Start = Callable[..., Machine]


@pytest.fixture
def start_machine() -> Iterator[Start]:
    machines: list[Machine] = []

    def start(*arguments: str, **variables: str) -> Machine:
        kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")}
        environment = kept | {"TORCH_CPP_LOG_LEVEL": "ERROR"} | variables
        process = warm.start("-m", *arguments, stderr=warm.PIPE, env=environment, cwd=ROOT, children=1)
        machines.append(Machine(process, time.monotonic()))
        return machines[-1]

    yield start
    for machine in machines:
        end_tree(machine.process)


def train(rank: int, port: int, *more: str) -> list[str]:
    flags = ["--cpu", "--gpus", "1", "--num-nodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1"]
    return ["atlas.cli", "train", *flags, "--master-port", str(port), *more]


def test_two_machines_give_the_numbers_of_one_with_two_processes(
    start_machine: Start, make_libero: MakeLibero, tmp_path: Path, port: int
) -> None:
    data = make_libero({"open the drawer": [12, 9, 11], "close the drawer": [10, 10, 7]})
    job = [*SMALL, "data.batch_size=4", "training.log_interval=1", "training.val_interval=3", "evaluation.episodes=0"]
    job += ["training.max_steps=4", f"data.path={data}", f"output_dir={tmp_path}"]
    machines = [start_machine(*train(rank, port, *job, "run_name=machines")) for rank in (0, 1)]
    ends = [machine.end() for machine in machines]
    run_atlas(["train", "--cpu", "--mode", "multi", "--gpus", "2", *job, "run_name=processes"])

    assert [code for code, _ in ends] == [0, 0], ends
    assert "2 processes on cpu" in ends[0][1] and ends[1][1] == ""
    found, expected = read_scalars(tmp_path / "machines"), read_scalars(tmp_path / "processes")
    compared = [tag for tag in expected if tag.startswith(("train/", "val/"))]
    assert {"train/loss", "val/loss"} <= set(compared)
    for tag in compared:
        np.testing.assert_allclose(found[tag], expected[tag], atol=1e-6, err_msg=tag)


def test_what_the_first_machine_refuses_all_refuse(start_machine: Start, tmp_path: Path, port: int) -> None:
    where = [f"data.path={tmp_path / 'absent'}", f"output_dir={tmp_path / 'runs'}"]
    ends = [machine.end() for machine in [start_machine(*train(rank, port, *where)) for rank in (0, 1)]]

    assert [code for code, _ in ends] == [2, 2]
    assert ends[0][1] == ends[1][1] and str(tmp_path / "absent") in ends[0][1]
    assert not (tmp_path / "runs").exists()


# ---- how they end ----------------------------------------------------------------------------------------


@pytest.fixture
def start_pair(start_machine: Start, tmp_path: Path, port: int) -> Callable[[str], list[Machine]]:
    """Start one rank (of rank_probe.py) on each of two machines, whose times of grace are shortened, and wait until
    both are at work."""

    def start(roles: str) -> list[Machine]:
        pair = [
            start_machine("tests.launch.rank_probe", str(tmp_path), roles, PROBE_NODE=f"{rank}:{port}", PROBE_SHORT="1")
            for rank in (0, 1)
        ]
        ready = [tmp_path / "0" / f"ready_{rank}" for rank in (0, 1)]
        wait_until(lambda: all(file.exists() for file in ready), seconds=120)
        for machine in pair:
            machine.began = time.monotonic()
        return pair

    return start


@pytest.mark.parametrize("other", ["sleep", "reduce"])
def test_a_rank_that_fails_ends_those_on_the_other_machine(
    start_pair: Callable[[str], list[Machine]], other: str
) -> None:
    first, failing = start_pair(f"{other},raise")
    code, said = failing.end(within=BOUND)

    assert code == 1 and said.endswith("ValueError: a defect\n")
    assert first.end(within=BOUND) == (
        1,
        "Node 1 failed first: rank 1: ValueError: a defect.\nRank 0 ended with it.\n",
    )


@pytest.mark.parametrize(("killed", "word"), [(0, "its launcher has ended"), (1, "nothing was heard from it for 5 s")])
def test_a_machine_that_is_gone_ends_the_others(
    start_pair: Callable[[str], list[Machine]], tmp_path: Path, killed: int, word: str
) -> None:
    pair = start_pair("reduce,reduce")
    pair[killed].process.kill()

    code, said = pair[1 - killed].end(within=BOUND)

    assert code == 1
    assert said.startswith(f"Node {killed} failed first: {word}")
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in tmp_path.glob("0/ready_*")), seconds=10)


def test_the_warning_of_a_scheduler_stops_all_in_good_order(
    start_pair: Callable[[str], list[Machine]], tmp_path: Path
) -> None:
    pair = start_pair("save,save")
    for machine in pair:
        machine.process.send_signal(signal.SIGUSR1)

    assert [machine.end(within=60)[0] for machine in pair] == [143, 143]
    assert len(list(tmp_path.glob("0/saved_*"))) == 2
