"""The wandb sink against real runs: offline, without a key, without a server, with a small server, and dying."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from fake_wandb import FakeWandb
from tracked_run import KEY, run_script

from atlas.config import LoggingConfig, ModelManagementConfig, WandbConfig, load_config
from atlas.errors import InputError
from atlas.prepare import prepare
from atlas.registry.wandb_variables import check_variables, effective_mode, with_variables
from atlas.runs import read_scalars
from atlas.tracking import RunTracker
from atlas.tracking.sinks.wandb import RunIdentity, WandbSink, choose_identity
from tests.conftest import MakeLibero

pytest.importorskip("wandb")

EVERYTHING = """
tracker = make(tags=["a"], group="g", system_stats=False, mode="online")
tracker.log_config({"data": {"path": Path("x"), "size": np.int64(3)}})
for step in (20, 40):
    tracker.step = step
    tracker.log({"train/loss": 1 / step, "custom/metric": step, "train/nan": float("nan")})
tracker.log({"val/loss": 0.5})
tracker.log({"actor/reward": 1.0, "actor/total_steps": 100})
tracker.log_image("eval/image", np.zeros((8, 9, 3), np.uint8))
tracker.log_video("eval/video", np.zeros((6, 15, 17, 3), np.uint8), fps=10)
tracker.log_histogram("train/values", [1.0, float("nan"), 2.0])
tracker.log_table("eval/table", ["a", "b"], [[1, "x"], ["y", 2.0]])
(run_dir / "policy").mkdir()
(run_dir / "policy" / "weights").write_bytes(b"123")
tracker.log_model(run_dir / "policy", "a model", ["best/one"], {"loss": 0.5})
(run_dir / "policy" / "weights").unlink()
print(tracker.wandb_id)
tracker.finish(3)
print(sorted(name for name in os.environ if name.startswith("WANDB_DATA")))
"""


def test_an_offline_run_holds_everything(tmp_path: Path) -> None:
    run = run_script(tmp_path, EVERYTHING, WANDB_MODE="offline")  # and wandb.mode is online: the variable wins

    assert (run.code, run.warnings) == (0, []), run.stderr
    assert f"wandb sync {run.wandb_folder()}" in run.stderr
    wandb_id, leaked = run.stdout.split()
    assert run.wandb_folder().name.endswith(wandb_id)
    assert leaked == "[]"

    (record, *_) = run.wandb_records("run")
    assert (record["project"], record["display_name"], record["run_id"]) == ("atlas-vla", "a-run", wandb_id)
    assert (record["tags"], record["run_group"]) == (["a"], "g")
    config: dict[str, object] = {}
    for update in run.wandb_records("config"):
        config |= update["update"]
    assert config["data"] == {"path": "x", "size": 3}

    rows = [row["item"] for row in run.wandb_records("history")]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["train/step"] for row in rows] == [20] + [40] * (len(rows) - 1)
    assert [row["custom/metric"] for row in rows[:2]] == [20, 40]
    logged = {name for row in rows for name in row}
    assert {"val/loss", "actor/reward", "train/nan"} <= logged
    for media in ("eval/image", "eval/video", "train/values", "eval/table"):
        assert any(name.startswith(media) for name in logged), media

    axes = {m.get("glob_name") or m.get("name"): m.get("step_metric") for m in run.wandb_records("metric")}
    assert all(axes[f"{section}/*"] == "train/step" for section in ("train", "val", "eval", "perf", "timer"))
    assert axes["actor/*"] == "actor/total_steps"
    assert axes["custom/metric"] == "train/step"

    models = [artifact for artifact in run.wandb_records("artifact") if artifact["type"] == "model"]
    assert [(model["name"], set(model["aliases"])) for model in models] == [("a-model", {"best-one", "latest"})]
    assert [path.read_bytes() for path in (run.run_dir / "wandb" / "staged").rglob("weights")] == [b"123"]

    assert run.wandb_records("stats") == []  # system_stats: false
    assert [record["exit_code"] for record in run.wandb_records("exit")] == [3]
    assert read_scalars(run.run_dir)["custom/metric"] == [(20, 20.0), (40, 40.0)]


def test_without_a_key_it_goes_offline_and_says_how_to_log_in(tmp_path: Path) -> None:
    run = run_script(tmp_path, "tracker = make()\ntracker.log({'train/loss': 1.0}, step=1)\ntracker.finish()")
    assert run.code == 0
    assert len(run.warnings) == 1 and "`wandb login`" in run.warnings[0], run.stderr
    assert [row["item"]["train/loss"] for row in run.wandb_records("history")] == [1]


def test_without_a_network_it_starts_at_once_goes_offline_and_keeps_the_key_to_itself(tmp_path: Path) -> None:
    script = """
    from tests.tracking.waiting import Waited
    assert wandb_sink.INIT_TIMEOUT_SECONDS + 5 < 30  # the wait in earnest; shorter here, to save time
    wandb_sink.INIT_TIMEOUT_SECONDS = 1.5
    start = Waited()
    tracker = make(wandb_id="kept1234")
    tracker.log_config({"secret": os.environ["WANDB_API_KEY"], "url": "s3://me:hunter22@host/x"})
    tracker.log({"train/loss": 1.0}, step=1)
    print(start.seconds)
    import logging
    logging.getLogger("atlas").info("the key is %s", os.environ["WANDB_API_KEY"])
    tracker.finish()
    """
    run = run_script(tmp_path, script, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert run.code == 0
    assert float(run.stdout) < 1  # nothing waits for the server
    assert len(run.warnings) == 1 and "goes offline" in run.warnings[0], run.stderr
    assert run.wandb_folder().name.startswith("offline-run-") and run.wandb_folder().name.endswith("kept1234")
    assert [row["item"]["train/loss"] for row in run.wandb_records("history")] == [1]
    assert run.files_holding(KEY) == [] and KEY not in run.stderr
    assert run.files_holding("hunter22") == []
    assert "the key is ***" in (run.run_dir / "train.log").read_text()


def test_an_online_run_reaches_the_server_and_hears_its_stop_button(tmp_path: Path) -> None:
    script = """
    tracker = make()
    tracker.step = 7
    tracker.log({"train/loss": 0.5})
    (run_dir / "policy").mkdir()
    (run_dir / "policy" / "weights").write_bytes(b"123")
    tracker.log_model(run_dir / "policy", "kept")
    end = time.monotonic() + 40
    while not tracker.stop_requested and time.monotonic() < end:
        time.sleep(0.1)
        tracker.log({"train/loss": 0.25}, step=8)
    print(tracker.stop_requested)
    tracker.finish()
    """
    with FakeWandb() as server:
        server.stop = True
        run = run_script(tmp_path, script, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        assert run.code == 0 and run.stdout.strip() == "True", run.stderr
        assert run.warnings == [] and [version.name for version in server.artifacts.versions] == ["kept"]
        assert run.stderr.count(f"wandb: {server.url}/somebody/atlas-vla/runs/") == 2  # at the start and at the end
        losses = [(row["train/step"], row["train/loss"]) for row in server.history if "train/loss" in row]
        assert losses[:2] == [(7, 0.5), (8, 0.25)]
        assert server.exit_codes == [0]
    assert run.files_holding(KEY) == []


def test_a_frozen_wandb_holds_up_neither_training_nor_the_exit(tmp_path: Path) -> None:
    script = """
    import logging, signal
    from atlas.registry.client import service_processes
    from tests.tracking.waiting import Waited
    logging.getLogger("atlas.tracking.sinks.console").setLevel(logging.WARNING)
    tracker = make(exit_timeout=5.0, mode="offline")
    while not service_processes() or not list((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        time.sleep(0.05)
    os.kill(service_processes()[0], signal.SIGSTOP)
    logging_it = Waited()
    for step in range(2000):
        tracker.log({"train/loss": 1.0, "train/x": 2.0}, step=step)
    print(logging_it.seconds)
    finishing = Waited()
    tracker.finish()
    print(finishing.seconds)
    """
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds wandb's process through /proc")
    run = run_script(tmp_path, script)
    logging_seconds, finish_seconds = map(float, run.stdout.split())
    assert run.code == 0
    assert logging_seconds < 1 and finish_seconds < 8
    assert "is abandoned" in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert len(read_scalars(run.run_dir)["train/loss"]) == 2000  # TensorBoard does not wait


def test_a_run_that_is_already_active_is_used_and_left_open(tmp_path: Path) -> None:
    script = """
    import wandb
    mine = wandb.init(mode="offline", project="mine", dir=run_dir, settings=wandb.Settings(silent=True))
    tracker = make(wandb_id="other123")
    assert tracker.wandb_id == mine.id
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish()
    assert wandb.run is mine
    mine.log({"after": 1})
    mine.finish()
    """
    run = run_script(tmp_path, script, WANDB_MODE="offline", WANDB_ERROR_REPORTING="false")
    assert (run.code, run.warnings) == (0, []), run.stderr
    rows = [row["item"] for row in run.wandb_records("history")]
    assert rows[0]["train/loss"] == 1 and rows[1]["after"] == 1


def test_the_id_of_a_sweeps_agent_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = SimpleNamespace(run=None)
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    identity = choose_identity(wandb, WandbConfig(), tmp_path, "checkpoints")  # type: ignore[arg-type]
    assert (identity.run_id, identity.given) == ("agents", True)
    monkeypatch.delenv("WANDB_SWEEP_ID")
    identity = choose_identity(wandb, WandbConfig(), tmp_path, "checkpoints")  # type: ignore[arg-type]
    assert (identity.run_id, identity.given) == ("checkpoints", False)


def test_resume_auto_finds_the_run_that_did_not_end_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    wandb = SimpleNamespace(run=None)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "wandb-resume.json").write_text(json.dumps({"run_id": "crashed1"}))
    assert choose_identity(wandb, WandbConfig(resume="auto"), tmp_path, None).run_id == "crashed1"  # type: ignore[arg-type]
    assert choose_identity(wandb, WandbConfig(), tmp_path, None).run_id != "crashed1"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "expected"), [(None, "offline"), ("online", "online"), ("dryrun", "offline"), ("DISABLED", "disabled")]
)
def test_the_mode_variable_wins(monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: str) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert effective_mode(WandbConfig(mode="offline")) == expected


def test_a_wrong_mode_is_refused_with_the_nearest_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    check_variables(WandbConfig(enabled=False))  # nobody speaks to wandb
    with pytest.raises(InputError, match=r"WANDB_MODE is 'onlin', expected .*disabled\. Did you mean 'online'"):
        check_variables(WandbConfig(enabled=True))


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "first try",
    "WANDB_TAGS": "cubes, small,",
    "WANDB_RUN_GROUP": "seeds",
    "WANDB_NOTES": "a note",
}


def test_the_variables_say_what_the_config_does_not() -> None:
    found = with_variables(load_config().wandb, VARIABLES)

    assert (found.project, found.entity, found.name) == ("theirs", "team", "first try")
    assert (found.tags, found.group, found.notes) == (["cubes", "small"], "seeds", "a note")
    assert with_variables(found, VARIABLES | {"WANDB_PROJECT": "another"}) == found
    assert with_variables(load_config().wandb, {}).project == "atlas-vla"


@pytest.mark.parametrize("source", ["file", "override"])
def test_config_and_flags_go_before_the_variables(tmp_path: Path, source: str) -> None:
    own = {"project": "atlas-vla", "entity": "me", "name": "n", "tags": ["mine"], "group": "g", "notes": "my own"}
    (tmp_path / "my.yaml").write_text(json.dumps({"wandb": own}))
    given = [f"wandb.{key}={json.dumps(value)}" for key, value in own.items()]
    config = load_config(tmp_path / "my.yaml") if source == "file" else load_config(None, given)

    assert with_variables(config.wandb, VARIABLES) == config.wandb


def test_a_run_takes_what_the_variables_say_from_its_preparation_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_libero: MakeLibero
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    overrides = [f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=run", "distributed.cpu=true"]

    config = prepare(load_config(None, [*overrides, "evaluation.episodes=0"])).config

    assert load_config(tmp_path / "run" / "config.yaml") == config
    assert (config.wandb.project, config.wandb.entity, config.wandb.tags) == ("theirs", "team", ["cubes", "small"])


@pytest.mark.parametrize(
    ("variable", "node", "folder"),
    [(None, 0, "run"), ("else", 0, "else"), (None, 1, "run"), ("else", 1, "else/node_1")],
)
def test_wandbs_files_are_where_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, node: int, folder: str
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / variable) if variable else "")
    wandb = MagicMock(run=None)
    make = WandbSink(
        wandb,
        WandbConfig(),
        ModelManagementConfig(),
        tmp_path / "run",
        "run",
        RunIdentity("id", given=False),
        "online",
        1.0,
        lambda: None,
        node=node,
    )

    make.open()

    assert wandb.init.call_args.kwargs["dir"] == str(tmp_path / folder)
    assert (tmp_path / folder / "wandb").is_dir()


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = RunTracker(tmp_path, "run", WandbConfig(enabled=True), LoggingConfig())
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish()
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("atlas") and r.levelname == "WARNING"]
    assert len(warnings) == 1 and "pip install 'atlas-vla[wandb]'" in warnings[0]
    assert read_scalars(tmp_path)["train/loss"] == [(1, 1.0)]


def test_disabled_means_that_wandb_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = RunTracker(tmp_path, "run", WandbConfig(enabled=True), LoggingConfig())
    tracker.finish()
    assert tracker.wandb_id is None and not (tmp_path / "wandb").exists()
