"""Checkpoints: complete or absent, verified, found, kept and removed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import atlas
from atlas.checkpoints import Checkpoints, find_checkpoint, find_undamaged, verify
from atlas.checkpoints.contents import RankState, load_state, random_state, set_random_state, state_of_rank
from atlas.checkpoints.run_folder import Retention
from atlas.config import load_config
from atlas.errors import InputError
from atlas.policies.base import load_policy
from atlas.prepare import load_run_config, prepare
from atlas.system.files import partial_folder
from atlas.system.locks import writing
from atlas.training.parallel.strategy import Replicated
from tests.conftest import MakeLibero
from tests.policies.test_policy import make_policy
from tests.test_vertical_slice import SMALL
from tests.training.ranks import make_accelerator
from tests.training.written import Training, forked, learn, save_on_and_on, small, step_in, write_until


def links(run_dir: Path) -> dict[str, str]:
    root = run_dir / "checkpoints"
    return {name: (root / name).resolve().name for name in ("latest", "best") if (root / name).exists()}


def hidden(run_dir: Path) -> list[str]:
    return [path.name for path in (run_dir / "checkpoints").glob(".*")]


# ---- writing and reading ---------------------------------------------------------------------------------


def resumed(checkpoint: Path, averaged: bool = False) -> tuple[Replicated, list[RankState]]:
    """A training that goes on from a checkpoint, and the states of the ranks in it."""
    config = load_config({}, [f"training.ema_decay={0.9 if averaged else 0}"])
    strategy = Replicated(make_policy(), config, make_accelerator(config))
    for weight in strategy.policy.parameters():
        weight.data.zero_()
    return strategy, strategy.load(checkpoint)


def test_a_checkpoint_gives_back_weights_sums_and_random_numbers(tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path, Retention(2)).write(Training().at(3))
    expected = torch.rand(3), np.random.rand(2), random.random()

    strategy, states = resumed(checkpoint)
    torch.manual_seed(99)  # making a policy has seeded it as it was before
    set_random_state(states[0]["random"])

    assert (strategy.policy.head.pose.bias == 3).all() and load_state(checkpoint).samples_seen == 24
    assert states[0]["sums"]["loss"].tolist() == [3.0, 2.0]
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(2), expected[1])
    assert random.random() == expected[2]


@pytest.mark.parametrize("averaged", [False, True])
def test_training_goes_on_bit_for_bit(tmp_path: Path, averaged: bool) -> None:
    training = Training(averaged)
    checkpoint = Checkpoints(tmp_path, Retention(2)).write(training.at(1))
    other, _ = resumed(checkpoint, averaged)

    for policy, optimizer in ((training.policy, training.optimizer), (other.policy, other.optimizer)):
        for _ in range(2):
            learn(policy, optimizer)

    ours, theirs = other.policy.state_dict(), training.policy.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    with other.judged() as judged:
        assert not averaged or (judged.head.pose.bias == 1).all()


def test_a_checkpoint_with_and_one_without_an_average_do_not_mix(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(2))
    plain, averaged = checkpoints.write(Training().at(1)), checkpoints.write(Training(averaged=True).at(2))

    with pytest.raises(InputError, match=r"without training\.ema_decay"):
        resumed(plain, averaged=True)
    with pytest.raises(InputError, match=r"with training\.ema_decay"):
        resumed(averaged)


def test_a_checkpoint_of_an_older_atlas_is_read(tmp_path: Path) -> None:
    """It had no manifest, and files of torch.save."""
    training = Training()
    checkpoint = Checkpoints(tmp_path, Retention(2)).write(training.at(5))
    trainer = checkpoint / "trainer"
    for file in (trainer / "manifest.json", *trainer.glob("*.safetensors")):
        file.unlink()
    torch.save(training.optimizer.state_dict(), trainer / "optimizer.pt")
    torch.save([random_state()], trainer / "random.pt")
    expected = torch.rand(3)

    verify(checkpoint)
    strategy, states = resumed(checkpoint)
    mine = state_of_rank(states, rank=0, world_size=1)
    set_random_state(mine["random"])

    assert strategy.optimizer.state_dict()["state"][0]["step"] == 1 and not mine["sums"]
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="random numbers in the checkpoint is damaged"):
        set_random_state(mine["random"] | {"python": [3, ["x"] * 625, None]})
    (trainer / "random.pt").unlink()
    with pytest.raises(InputError, match=r"random\.pt is missing"):
        verify(checkpoint)
    (trainer / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(InputError, match=r"optimizer\.pt is damaged"):
        resumed(checkpoint)


def test_sums_go_to_the_first_rank_when_the_number_of_ranks_changes() -> None:
    ranks = [{"random": {"rank": i}, "sums": {"loss": torch.tensor([i + 1.0, 10.0])}} for i in range(3)]

    same = [state_of_rank(ranks, rank, 3) for rank in range(3)]
    fewer = [state_of_rank(ranks, rank, 2) for rank in range(2)]

    assert [state["random"]["rank"] for state in same] == [0, 1, 2] and same[1]["sums"]["loss"].tolist() == [2.0, 10.0]
    assert [state["sums"]["loss"].tolist() for state in fewer] == [[6.0, 30.0], [0.0, 0.0]]
    assert all("random" not in state for state in fewer)


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(2))
    root = checkpoints.root
    for written in ("first", "instead of another"):
        with calls_to_the_disk(monkeypatch) as calls:
            checkpoints.write(Training().at(1, best_step=1))

        named = next(
            n for n, (what, _, target) in enumerate(calls) if what == "replace" and target == root / "step_00000001"
        )
        synced = {inode for what, inode, _ in calls[:named] if what == "fsync"}
        final = checkpoints.path(1)
        assert {path.stat().st_ino for path in (final, *final.rglob("*"))} <= synced, written
        renames = [n for n, (what, _, target) in enumerate(calls) if what == "replace" and not hides(target)]
        assert len(renames) >= 3, written
        for number in renames:  # each name is on the disk before the next thing is done
            assert calls[number + 1][:2] == ("fsync", root.stat().st_ino), (written, calls[number])


Call = tuple[str, int, Path]  # what, the inode, and of a rename the new name


@contextmanager
def calls_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """All fsync and rename, in order, which are done as ever."""
    calls: list[Call] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino, Path()))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append(("replace", os.lstat(source).st_ino, Path(target)))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_fsync)
        patch.setattr(os, "replace", note_replace)
        yield calls


def hides(target: Path) -> bool:
    """Whether a rename only takes something out of the way, or is of a file inside a folder that has no name yet."""
    return any(part.startswith(".") for part in target.parts[-3:])


# ---- damage ----------------------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
def test_any_damage_to_any_file_is_found_and_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    sound = Checkpoints(tmp_path / "run", Retention(2)).write(Training(averaged=True).at(1))
    verify(sound)
    names = sorted(file.relative_to(sound) for file in sound.rglob("*") if file.is_file())
    assert len(names) == 9

    for name in names:
        copy = shutil.copytree(sound, tmp_path / "copy")
        damage(copy / name)
        with pytest.raises(InputError, match=rf"{name.name}.*(damaged|missing)"):
            verify(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "processor.json"])
def test_a_policy_with_a_bit_flipped_is_not_loaded(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path / "run", Retention(2)).write(Training().at(1))
    (checkpoint / "policy" / "README.md").write_text("what this policy is good at")  # which anybody may write
    load_policy(checkpoint)

    flip_a_bit(checkpoint / "policy" / name)

    for reference in (checkpoint, checkpoint / "policy", tmp_path / "run" / "checkpoints" / "latest"):
        with pytest.raises(InputError, match=rf"policy/{name} is damaged: .*SHA-256"):
            load_policy(reference)


def test_a_manifest_that_lists_less_than_a_checkpoint_has_is_damaged(tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path, Retention(2)).write(small(1))
    manifest = checkpoint / "trainer" / "manifest.json"
    nothing = json.dumps({"files": {}, "sha256": hashlib.sha256(b"{}").hexdigest()})  # whole in itself
    for text in (nothing, '{"files": {}}', "[]", '{"files": {"policy/config.yaml": 3}}', "\xff"):
        manifest.write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"manifest\.json is damaged"):
            verify(checkpoint)


def test_files_that_somebody_adds_are_no_damage(tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path, Retention(2)).write(small(1))
    (checkpoint / "notes.txt").write_text("a good one")

    verify(checkpoint)


# ---- finding one -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_its_folder_or_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = Checkpoints(run, Retention(2)).write(small(10))

    for path in (checkpoint, run, run / "checkpoints", run / "checkpoints" / "latest"):
        assert find_checkpoint(path) == checkpoint.resolve()
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path)


def test_the_newest_counts_where_latest_leads_nowhere(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(3))
    for step in (1, 2, 3):
        checkpoints.write(small(step))
    shutil.rmtree(checkpoints.path(3))

    for path in (tmp_path, tmp_path / "checkpoints" / "latest"):
        assert find_checkpoint(path) == checkpoints.path(2).resolve()
    (tmp_path / "checkpoints" / "latest").unlink()
    assert find_undamaged(tmp_path) == checkpoints.path(2).resolve()


def test_a_damaged_latest_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(4))
    for step in (1, 2, 4, 3):  # training went back from 4 to 2
        checkpoints.write(small(step))
    cut_short(checkpoints.path(3) / "trainer" / "state.json")
    shutil.rmtree(checkpoints.path(2) / "trainer")

    assert find_undamaged(tmp_path) == checkpoints.path(1).resolve()

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for name in ("step_00000003/trainer/state.json", "step_00000002/trainer/manifest.json", "step_00000001"):
        assert name in record.getMessage()
    flip_a_bit(checkpoints.path(1) / "trainer" / "state.json")
    assert find_undamaged(tmp_path) == checkpoints.path(4).resolve()  # better than nothing
    cut_short(checkpoints.path(4) / "trainer" / "state.json")
    with pytest.raises(InputError, match=r"Every checkpoint .*step_00000003.*step_00000001.*step_00000004"):
        find_undamaged(tmp_path)


def test_the_best_and_the_latest_are_put_right_when_training_goes_on(tmp_path: Path) -> None:
    """Killed after the checkpoint had its name and before the links were changed; or gone back to an earlier one."""
    checkpoints = Checkpoints(tmp_path, Retention(5))
    checkpoints.write(small(1, best_step=1))
    checkpoints.write(small(2, best_step=2))
    for name in ("latest", "best"):
        (tmp_path / "checkpoints" / name).unlink()
        (tmp_path / "checkpoints" / name).symlink_to("step_00000001")

    checkpoints.adopt(find_checkpoint(checkpoints.path(2)))
    assert links(tmp_path) == {"latest": "step_00000002", "best": "step_00000002"}
    checkpoints.adopt(find_checkpoint(checkpoints.path(1)))
    assert links(tmp_path) == {"latest": "step_00000001", "best": "step_00000001"}


def test_a_checkpoint_from_elsewhere_is_taken_in_and_mends_a_damaged_one(tmp_path: Path) -> None:
    theirs = Checkpoints(tmp_path / "theirs", Retention(2)).write(small(4, "content"))
    run = tmp_path / "run"
    ours = Checkpoints(run, Retention(2))

    taken = ours.adopt(theirs)
    cut_short(taken / "policy" / "config.yaml")
    mended = ours.adopt(theirs)

    assert taken == mended == ours.path(4) and links(run) == {"latest": "step_00000004"} and not hidden(run)
    verify(mended)
    cut_short(theirs / "policy" / "config.yaml")
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        Checkpoints(tmp_path / "third", Retention(2)).adopt(theirs)


def test_resuming_finds_damage_before_anything_runs(
    make_libero: MakeLibero, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [*SMALL, f"data.path={make_libero()}", f"output_dir={tmp_path}", "run_name=run", "evaluation.episodes=0"]
    settings += ["training.max_steps=2", "checkpoint.save_interval=1", "distributed.cpu=true"]
    run = atlas.train(None, settings).run_dir
    newest = run / "checkpoints" / "step_00000002"
    cut_short(newest / "policy" / "model.safetensors")

    for explicit in (run, newest):
        with pytest.raises(InputError, match=r"step_00000002/policy/model\.safetensors is damaged"):
            prepare(load_run_config(None, [], explicit), explicit)
    assert links(run)["latest"] == newest.name
    checkpoint = prepare(load_run_config(None, settings, "auto"), "auto").checkpoint

    assert checkpoint is not None and checkpoint.name == "step_00000001" == links(run)["latest"]
    assert any("step_00000002/policy/model.safetensors is damaged" in r.getMessage() for r in caplog.records)
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    (run / "checkpoints" / "latest").unlink()
    nameless = [text for text in settings if not text.startswith("run_name")]
    with pytest.raises(InputError, match="Every checkpoint"):
        prepare(load_run_config(None, nameless, "auto"), "auto")


# ---- keeping ---------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(last_n=2))
    for step in (10, 20, 30, 40):
        checkpoints.write(small(step, best_step=10))
        checkpoints.prune()

    assert checkpoints.steps() == [10, 30, 40]
    assert links(tmp_path) == {"latest": "step_00000040", "best": "step_00000010"}
    assert not hidden(tmp_path)


def test_the_best_few_and_every_so_many_steps_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(1, best_n=2, every_n_steps=40, metric="val/loss"))
    losses = {10: 0.3, 20: 0.5, 30: 0.2, 40: 0.9, 50: None, 60: 0.3, 70: float("nan"), 80: 0.8, 90: None}
    for step, value in losses.items():
        checkpoints.write(small(step, metric="val/loss", value=value))
        checkpoints.prune()

    assert checkpoints.steps() == [30, 40, 60, 80, 90]  # of the equal 10 and 60 the later


def test_values_of_another_metric_say_nothing(tmp_path: Path) -> None:
    Checkpoints(tmp_path, Retention(1)).write(small(10, metric="val/loss", value=5.0))
    checkpoints = Checkpoints(tmp_path, Retention(1, metric="eval/success_rate", larger_is_better=True))
    for step, value in {20: 0.7, 30: 0.8, 40: 0.6}.items():
        checkpoints.write(small(step, metric="eval/success_rate", value=value))
        checkpoints.prune()

    assert checkpoints.steps() == [30, 40]


def test_what_lies_ahead_is_left_alone_until_training_has_passed_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(last_n=2))
    for step in (10, 20, 30):
        checkpoints.write(small(step))
    checkpoints.adopt(checkpoints.path(10))

    found = []
    for step in (15, 25, 35):
        checkpoints.write(small(step))
        checkpoints.prune()
        found.append(checkpoints.steps())

    assert found == [[10, 15, 20, 30], [20, 25, 30], [30, 35]]


@settings(max_examples=40, deadline=None)
@given(
    retention=st.builds(
        Retention,
        last_n=st.integers(1, 3),
        best_n=st.integers(1, 3),
        every_n_steps=st.none() | st.integers(1, 4),
        metric=st.just("m"),
        larger_is_better=st.booleans(),
    ),
    saves=st.lists(st.tuples(st.integers(1, 9), st.none() | st.floats(0, 1), st.booleans()), min_size=1, max_size=12),
)
def test_what_a_link_names_is_never_removed(
    tmp_path_factory: pytest.TempPathFactory, retention: Retention, saves: list[tuple[int, float | None, bool]]
) -> None:
    """Whatever is saved in whatever order: the links lead to complete checkpoints, and the rules hold."""
    run = tmp_path_factory.mktemp("run")
    checkpoints, best, values = Checkpoints(run, retention), None, {}
    for number, (step, value, is_best) in enumerate(saves):
        best = step if is_best else best
        values[step] = value
        checkpoints.write(small(step, content=str(number), best_step=best, metric="m", value=value))
        checkpoints.prune()

        root, saved = run / "checkpoints", checkpoints.steps()
        verify(root / "latest")
        assert (root / "latest" / "policy" / "config.yaml").read_text() == str(number)
        assert (root / "latest").resolve() == checkpoints.path(step).resolve()
        if best is not None:
            verify(root / "best")
            assert (root / "best").resolve() == checkpoints.path(best).resolve()
        values = {s: v for s, v in values.items() if s in saved}
        reached = [s for s in saved if s <= step]
        ranked = [s for s in reached if values[s] is not None]
        ranked.sort(key=lambda s: values[s], reverse=retention.larger_is_better)
        kept_for = {step, best, *reached[-retention.last_n :]}
        if retention.every_n_steps:
            kept_for |= {s for s in reached if s % retention.every_n_steps == 0}
        by_value = [s for s in reached if s not in kept_for]
        assert len(by_value) <= retention.best_n
        assert not by_value or all(s in ranked for s in by_value)


# ---- on other file systems -------------------------------------------------------------------------------


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(link: Path, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)


def without_folder_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("lacking", [without_links, without_folder_sync])
def test_a_file_system_that_lacks_something_holds_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    lacking(monkeypatch)
    checkpoints = Checkpoints(tmp_path, Retention(1))
    training = Training()
    for step in (1, 2, 2, 3):
        checkpoints.write(training.at(step, best_step=min(step, 2)))
        checkpoints.prune()
    root = checkpoints.root

    assert {path.name for path in root.iterdir()} == {"step_00000002", "step_00000003", "latest", "best"}
    for path in (tmp_path, root, root / "latest"):
        assert find_checkpoint(path) == checkpoints.path(3).resolve()
    assert find_checkpoint(root / "best") == checkpoints.path(2).resolve()
    assert step_in(root / "best") == step_in(tmp_path) == 2 and step_in(root / "latest") == 3
    checkpoints.adopt(checkpoints.path(2))
    assert find_checkpoint(tmp_path) == checkpoints.path(2).resolve()


@pytest.mark.parametrize("also_by_step", [True, False], ids=["a whole copy", "the links alone"])
def test_a_copy_that_followed_links_is_gone_on_with(tmp_path: Path, also_by_step: bool) -> None:
    """As `scp -r` and `cp -L` make it: `latest` and `best` are folders."""
    original = Checkpoints(tmp_path / "original", Retention(3))
    for step in (1, 2):
        original.write(small(step, str(step), best_step=1))
    run = tmp_path / "copy"
    shutil.copytree(original.root, run / "checkpoints", symlinks=False)
    checkpoints = Checkpoints(run, Retention(3))
    if not also_by_step:
        for step in (1, 2):
            shutil.rmtree(checkpoints.path(step))

    adopted = checkpoints.adopt(find_undamaged(run))

    assert adopted == checkpoints.path(2) and checkpoints.steps() == [1, 2] and not hidden(run)
    assert all((run / "checkpoints" / name).is_symlink() for name in ("latest", "best"))
    checkpoints.write(small(3, "3", best_step=1))
    assert links(run) == {"latest": "step_00000003", "best": "step_00000001"}
    for step in (1, 2, 3):
        verify(checkpoints.path(step))


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Retention(1))
    checkpoints.write(small(1))
    final = checkpoints.path(2)
    with partial_folder(final) as living, writing(living), partial_folder(final) as dead:
        checkpoints.write(small(3))

        assert living.exists() and not dead.exists()


# ---- killed ----------------------------------------------------------------------------------------------


def test_kill_9_at_a_random_moment_leaves_a_latest_that_loads(tmp_path: Path) -> None:
    """Twenty-four processes, one after another, each killed while it saves; the next one continues."""
    training, rng, first, in_the_middle = Training(averaged=True), random.Random(0), 1, 0
    latest, best = (tmp_path / "checkpoints" / name for name in ("latest", "best"))
    for _ in range(24):
        with forked(lambda first=first: save_on_and_on(training, tmp_path, first)):  # type: ignore[misc]
            deadline = time.monotonic() + 60
            while find_step(latest) < first and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.15))

        verify(latest)
        verify(best)
        assert step_in(latest) == load_state(latest).step >= first
        in_the_middle += bool(hidden(tmp_path))
        Checkpoints(tmp_path, Retention(2)).adopt(find_undamaged(tmp_path))
        first = load_state(latest).step + 1
    assert in_the_middle, "no process was killed in the middle of a save"


def find_step(latest: Path) -> int:
    return load_state(latest).step if latest.exists() else 0


@pytest.mark.parametrize("saved", [[], [1], [1, 2]])
def test_kill_9_before_each_operation_on_files_leaves_a_latest_that_loads(tmp_path: Path, saved: list[int]) -> None:
    """Step 2 is written: as the first one, after another, and instead of one that the links name."""
    before = tmp_path / "before"
    (before / "checkpoints").mkdir(parents=True)
    for step in saved:
        Checkpoints(before, Retention(1)).write(small(step, "old", best_step=step))
    ended, operations = False, 0
    while not ended:
        run = tmp_path / str(operations)
        shutil.copytree(before, run, symlinks=True)
        root, checkpoints = run / "checkpoints", Checkpoints(run, Retention(1))

        ended = write_until(run, operations, 2)

        for step in checkpoints.steps():
            verify(checkpoints.path(step))
        for name in ("latest", "best"):
            assert (root / name).exists() or not saved, name
            if (root / name).exists():
                verify(root / name)
                assert (root / name / "policy" / "config.yaml").read_text() in (["new"] if ended else ["old", "new"])
        checkpoints.write(small(3, "newer", best_step=3))
        checkpoints.prune()
        assert links(run) == {"latest": "step_00000003", "best": "step_00000003"}
        assert not hidden(run) and checkpoints.steps() == [3]
        shutil.rmtree(run)
        operations += 1
    assert operations > 30
