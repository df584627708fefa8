"""A change of structure changes no number: twenty steps of small jobs give today what they gave before.

tests/same_numbers.json holds, for each job, the SHA-256 of its weights and the metrics of its last step, and the keys
that commands print with --json. `python -m tests.test_same_numbers FILE` writes such a file. Bits depend on how a
processor rounds, so the weights' hashes are only compared where the metrics are those of the file to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import atlas
from tests import warm
from tests.conftest import MakeOnce, write_made_up_libero

FILE = Path(__file__).with_name("same_numbers.json")
LEROBOT = Path(__file__).parent / "fixtures" / "lerobot_v30_image"
WEIGHTS = Path(__file__).parent / "fixtures" / "vggt_parity" / "weights.safetensors"
SMALL = [
    "model.vision={name: keypoints, width: 8, keypoints: 8}",
    "model.fusion={dim: 32, layers: 1}",
    "model.language={dim: 16}",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "training.max_steps=20",
    "training.learning_rate=2e-3",
    "training.log_interval=5",
    "training.val_interval=10",
    "training.ema_decay=0.9",
    "checkpoint.save_interval=10",
    "evaluation.episodes=0",
    "distributed.cpu=true",
]
VGGT = (
    f"model.vision={{name: vggt_pretrained, pretrained: {WEIGHTS}, precision: fp32, embed_dim: 48, depth: 4, "
    "num_heads: 3, img_size: 56, patch_embed_depth: 2, patch_embed_num_heads: 3}"
)
TWO = ["--mode", "multi", "--gpus", "2", "data.batch_size=4"]

Job = Callable[[Path, Path], Path]  # (folder of the datasets, folder of the run) -> the checkpoint


def in_this_process(*more: str) -> Job:
    def train(data: Path, folder: Path) -> Path:
        settings = [*SMALL, f"data.path={data / 'one'}", f"output_dir={folder}", "run_name=run", *more]
        return atlas.train(None, settings).run_dir / "checkpoints" / "latest"

    return train


def in_two_processes(*more: str) -> Job:
    def train(data: Path, folder: Path) -> Path:
        settings = [*SMALL, f"data.path={data / 'one'}", f"output_dir={folder}", "run_name=run", *TWO, *more]
        done = warm.atlas("train", *settings)
        assert done.returncode == 0, done.stderr
        return folder / "run" / "checkpoints" / "latest"

    return train


def resumed(data: Path, folder: Path) -> Path:
    latest = in_this_process()(data, folder)
    shutil.rmtree(latest.resolve())
    latest.unlink()
    settings = [*SMALL, f"data.path={data / 'one'}", f"output_dir={folder}", "run_name=run"]
    atlas.train(None, settings, resume=latest.parent / "step_00000010")
    return latest


def with_cached_features(data: Path, folder: Path) -> Path:
    plain = [f"data.augment.{name}=0" for name in ("brightness", "contrast", "saturation")]
    settings = [*SMALL, VGGT, "data.image_size=56", f"data.path={data / 'one'}"]
    done = warm.atlas("data", "cache-features", "--cpu", "--out", str(folder / "cache"), *plain, *settings)
    assert done.returncode == 0, done.stderr
    cached = f"data.feature_cache={folder / 'cache'}"
    return in_this_process(VGGT, "data.image_size=56", cached, *plain)(data, folder)


def of_a_mixture(data: Path, folder: Path) -> Path:
    paths = f"data.datasets=[{{path: {data / 'one'}}}, {{path: {data / 'other'}, weight: 2.0}}]"
    settings = [*SMALL, paths, f"output_dir={folder}", "run_name=run"]
    return atlas.train(None, settings).run_dir / "checkpoints" / "latest"


JOBS: dict[str, Job] = {
    "one process": in_this_process(),
    "two processes": in_two_processes(),
    "resumed": resumed,
    "flow head": in_this_process("model.head={name: flow_matching, dim: 32, layers: 1}"),
    "frozen VGGT": in_this_process(VGGT, "data.image_size=56"),
    "feature cache": with_cached_features,
    "FSDP": in_two_processes("distributed.strategy=fsdp"),
    "mixture": of_a_mixture,
}


def write_data(folder: Path) -> None:
    write_made_up_libero(folder / "one", {"open the drawer": [12, 9, 11], "close the drawer": [10, 10, 7]})
    write_made_up_libero(folder / "other", {"close the drawer": [8, 8], "stack the cups": [30, 40, 35]})


@pytest.fixture(scope="module")
def data(make_once: MakeOnce) -> Path:
    return make_once("same_numbers_data", write_data)


def numbers_of(job: str, data: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    checkpoint = JOBS[job](data, folder)
    digest = hashlib.sha256()
    for file in (checkpoint / "policy" / "model.safetensors", *sorted((checkpoint / "trainer").glob("weights*"))):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    metrics = json.loads((folder / "run" / "results.json").read_text())["metrics"]
    kept = {name: value for name, value in metrics.items() if name.startswith(("train/", "val/", "model/", "best"))}
    return {"weights": digest.hexdigest(), "metrics": kept}


def keys_of(value: Any) -> Any:
    """The names in a JSON value, without their values; for a list, those of its first item."""
    if isinstance(value, dict):
        return {key: keys_of(item) for key, item in sorted(value.items())}
    return [keys_of(value[0])] if isinstance(value, list) and value else type(value).__name__


def small_run(cubes: Path, folder: Path) -> Path:
    settings = [*SMALL, f"data.path={cubes}", f"output_dir={folder}", "training.max_steps=2", "run_name=run"]
    run = atlas.train(None, settings).run_dir
    shutil.copytree(run, folder / "run_copy", symlinks=True)
    return run


# What each command is given: a small run, demonstrations of the cubes, and other data.
COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "data inspect": lambda run, cubes, data: ["data", "inspect", str(data / "one")],
    "data inspect, LeRobot": lambda run, cubes, data: ["data", "inspect", str(LEROBOT)],
    "data check": lambda run, cubes, data: ["data", "check", str(cubes)],
    "eval": lambda run, cubes, data: ["eval", "--env", "cubes", "--checkpoint", str(run), "--episodes", "1"],
    "eval open loop": lambda run, cubes, data: ["eval", "--env", "cubes", "--open-loop", str(cubes), "--episodes", "1"],
    "model summary": lambda run, cubes, data: ["model", "summary", *SMALL],
    "model card": lambda run, cubes, data: ["model", "card", str(run)],
    "runs list": lambda run, cubes, data: ["runs", "list", str(run.parent)],
    "runs compare": lambda run, cubes, data: ["runs", "compare", str(run), str(run.parent / "run_copy")],
    "config show": lambda run, cubes, data: ["config", "show"],
}


def printed_keys(words: list[str]) -> dict[str, Any]:
    """Of what a command prints."""
    done = warm.atlas(*words, "--json")
    assert done.stdout.startswith("{"), done.stderr
    keys: dict[str, Any] = keys_of(json.loads(done.stdout))
    return keys


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FILE.read_text())
    return read


QUICK = ("resumed",)  # the others are as good at telling, and take a minute together


@pytest.mark.parametrize("job", [pytest.param(job, marks=() if job in QUICK else pytest.mark.slow) for job in JOBS])
def test_twenty_steps_give_the_weights_and_metrics_of_before(
    job: str, before: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    wanted = before["jobs"][job]

    found = numbers_of(job, data, tmp_path)

    assert found["metrics"] == pytest.approx(wanted["metrics"], rel=1e-4, abs=1e-6)
    if found["metrics"] == wanted["metrics"]:
        assert found["weights"] == wanted["weights"]


@pytest.fixture(scope="module")
def run(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(cubes_dataset, tmp_path_factory.mktemp("printed"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_the_keys_of_before(
    name: str, before: dict[str, Any], run: Path, cubes_dataset: Path, data: Path
) -> None:
    assert printed_keys(COMMANDS[name](run, cubes_dataset, data)) == before["keys"][name]


def main(file: Path) -> None:
    import tempfile

    from atlas.rollout.recording import RecordSettings, record

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_data(root / "data")
        record(RecordSettings(episodes=8, seed=3, image_size=32), root / "cubes")
        jobs = {job: numbers_of(job, root / "data", root / str(n)) for n, job in enumerate(JOBS)}
        run = small_run(root / "cubes", root / "printed")
        keys = {name: printed_keys(words(run, root / "cubes", root / "data")) for name, words in COMMANDS.items()}
        file.write_text(json.dumps({"jobs": jobs, "keys": keys}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
