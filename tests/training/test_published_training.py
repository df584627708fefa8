"""A published policy goes the way of every policy: trained, validated, tried in closed loop, saved, gone on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import atlas
from atlas.config import TrainingConfig, load_config
from atlas.errors import InputError
from atlas.policies.base import Policy, load_policy
from atlas.policies.exporting import export_policy
from atlas.policies.smolvla.smolvla_policy import SmolVLAPolicy
from atlas.policies.smolvla.smolvla_section import SmolVLAConfig
from atlas.policies.summary import summarize
from atlas.rollout.evaluation import evaluate_checkpoint
from atlas.runs import read_scalars
from atlas.train import Result
from atlas.training.optimizer import learning_rate, warmup_for
from atlas.training.parallel.block_setup import set_up_blocks
from tests import warm
from tests.policies.golden import FIXTURES, Golden

SMOLVLA = FIXTURES / "smolvla"
CONFIG = Path(atlas.__file__).parent / "configs" / "smolvla_1gpu.yaml"
JOB = [
    "model.cameras={top: agentview, wrist: eye_in_hand}",
    "model.statistics=dataset",
    "model.sampling_steps=2",
    "data.batch_size=4",
    "data.num_workers=0",
    "data.action_horizon=6",
    "data.cameras=null",
    "training.log_interval=2",
    "training.val_interval=4",
    "training.precision=fp32",
    "training.max_steps=4",
    "checkpoint.save_interval=2",
    "evaluation.episodes=1",
    "evaluation.interval=4",
    "evaluation.final_episodes=0",
    "evaluation.video=0",
    "evaluation.execute=6",
    *(f"logging.media.{kind}.interval=0" for kind in ("gradient_logger", "plot_logger", "vis_dataset")),
    "logging.media.action_logger.interval=4",
]


@pytest.fixture(scope="module")
def trained(cubes_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The folder that it began with is gone afterwards: what it needs of that, it has kept."""
    out = tmp_path_factory.mktemp("outputs")
    base = shutil.copytree(SMOLVLA, out / "base")
    where = [f"model.pretrained={base}", f"data.path={cubes_dataset}", f"output_dir={out}", "run_name=whole"]
    result = atlas.train(CONFIG, [*JOB, *where])
    shutil.rmtree(base)
    return result


def test_a_run_trains_validates_and_acts(trained: Result) -> None:
    scalars = read_scalars(trained.run_dir)

    assert {"train/loss", "train/pose_loss", "train/gripper_loss", "val/loss", "val/position_error_mm"} <= set(scalars)
    assert "eval/success_rate" in scalars
    rates = [value for _, value in scalars["train/lr"]]
    assert 0 < rates[0] <= 1e-4  # LeRobot's preset
    policy = load_policy(trained.best_checkpoint)
    assert isinstance(policy, SmolVLAPolicy)
    assert policy.slots.present == (("top", 0), ("wrist", 1)) and policy.slots.absent == ("empty_camera_0",)
    file = trained.best_checkpoint / "policy" / "model.safetensors"
    assert not any(".vlm." in name for name in load_file(file)), "the frozen part is named, not saved"


def test_only_what_lerobot_trains_has_changed(trained: Result) -> None:
    before, after = load_policy(SMOLVLA), load_policy(trained.best_checkpoint)
    assert isinstance(before, SmolVLAPolicy) and isinstance(after, SmolVLAPolicy)
    facts = json.loads((SMOLVLA / "facts.json").read_text())

    was, now = before.named_for_lerobot(), after.named_for_lerobot()
    changed = {name for name in was if not was[name].equal(now[name])}

    assert changed <= set(facts["grad_norm"]) and len(changed) == len(facts["grad_norm"])
    assert not changed & set(facts["frozen"])


def test_a_run_that_goes_on_is_the_unbroken_one(trained: Result, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained.run_dir, broken, symlinks=True)
    shutil.rmtree(broken / "checkpoints" / "step_00000004")

    atlas.train(None, ["evaluation.episodes=0"], resume=broken / "checkpoints" / "step_00000002")

    files = [
        run / "checkpoints" / "step_00000004" / "policy" / "model.safetensors" for run in (broken, trained.run_dir)
    ]
    again, whole = map(load_file, files)
    assert again.keys() == whole.keys() and all(again[name].equal(whole[name]) for name in whole)


def test_what_was_trained_goes_back_to_lerobot(trained: Result, tmp_path: Path) -> None:
    policy = load_policy(trained.best_checkpoint)
    assert isinstance(policy, SmolVLAPolicy)

    out = export_policy(trained.run_dir, "lerobot", tmp_path / "out").folder

    back = load_policy(out, cameras={"top": "agentview", "wrist": "eye_in_hand"})
    assert isinstance(back, SmolVLAPolicy)
    card = (out / "README.md").read_text()
    about = yaml.safe_load(card.split("---")[1])
    assert about["license"] == "apache-2.0" and about["library_name"] == "lerobot" and "base_model" not in about
    assert "| optimizer steps | 4 |" in card and "- cubes: 6 episodes" in card
    config = json.loads((out / "config.json").read_text())
    assert config["chunk_size"] == 6 and config["output_features"]["action"]["shape"] == [7]
    assert config["input_features"]["observation.state"]["shape"] == [8]
    golden = Golden("smolvla")
    batch = replace(golden.batch(load_policy(SMOLVLA).processor), proprio=torch.ones(3, 8), key=torch.arange(3))
    assert back.sample(batch).equal(policy.sample(batch))
    with pytest.raises(InputError, match="the policy needs the cameras"):
        evaluate_checkpoint(out, "cubes", episodes=1)


def test_a_lerobot_folder_acts_in_a_world(trained: Result, tmp_path: Path) -> None:
    out = export_policy(trained.run_dir, "lerobot", tmp_path / "out").folder
    words = ["eval", "--checkpoint", str(out), "--env", "cubes", "--episodes", "1", "--workers", "1", "--json"]

    done = warm.atlas(*words, "--camera", "top=agentview", "--camera", "wrist=eye_in_hand")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 1


def test_losses_of_padded_steps_and_gradients_are_lerobots() -> None:
    """The gradient of every trained tensor, from the golden noise and time."""
    golden = Golden("smolvla")
    policy = SmolVLAConfig(pretrained=str(SMOLVLA), statistics="checkpoint").build(load_policy(SMOLVLA).processor)

    _golden_loss(policy, golden).backward()

    norms = {f"model.{n}": float(p.grad.norm()) for n, p in policy.network.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(golden.facts["grad_norm"], rel=2e-3, abs=1e-4)


def _golden_loss(policy: SmolVLAPolicy, golden: Golden) -> torch.Tensor:
    batch, inputs = golden.batch(policy.processor), golden.inputs
    assert batch.actions is not None and batch.action_is_pad is not None
    actions = policy.action_scaler.normalize(batch.actions, batch.source)
    padded = torch.nn.functional.pad(actions, (0, 32 - actions.shape[-1]))
    t = inputs["time"][:, None, None]
    x, target = t * inputs["noise"] + (1 - t) * padded, inputs["noise"] - padded
    errors = (policy.velocity(policy.look(batch), x, inputs["time"]) - target).square()
    return policy.reduce(errors[..., : actions.shape[-1]], batch.action_is_pad).loss


def test_training_in_bfloat16_keeps_trained_weights_in_float32() -> None:
    golden = Golden("smolvla")
    config = SmolVLAConfig(pretrained=str(SMOLVLA), precision="bfloat16", statistics="checkpoint")
    policy = config.build(load_policy(SMOLVLA).processor)

    with torch.autocast("cpu", torch.bfloat16):
        loss = _golden_loss(policy, golden)
    loss.backward()

    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(
        float(golden.values["full.loss"]), rel=0.05
    )
    gradients = {p.grad.dtype for p in policy.parameters() if p.grad is not None}
    assert gradients == {torch.float32}


@pytest.mark.parametrize("everything", [False, True])
def test_recomputing_blocks_changes_no_gradient(everything: bool) -> None:
    golden = Golden("smolvla")
    processor = load_policy(SMOLVLA).processor
    config = SmolVLAConfig(
        pretrained=str(SMOLVLA), train_expert_only=not everything, freeze_vision_encoder=not everything
    )

    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        policy = config.build(processor)
        set_up_blocks(policy, recompute, compiled=False)
        policy.train()
        _golden_loss(policy, golden).backward()
        return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and all(plain[name].equal(again[name]) for name in plain)
    policy = config.build(processor)
    assert len(policy.blocks()) == (2 + 3 + 4 if everything else 4)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert plain.keys() == trained or everything


def test_the_learning_rate_is_lerobots() -> None:
    preset = load_config({"model": {"type": "smolvla"}}).training
    facts = json.loads((SMOLVLA / "facts.json").read_text())

    for steps, rates in facts["lr"].items():
        config = TrainingConfig(**{**preset.model_dump(), "max_steps": int(steps)})
        warmup = warmup_for(config, int(steps))
        mine = {step: learning_rate(int(step), int(steps), warmup, config) for step in rates}
        assert mine == pytest.approx(rates, rel=1e-9)


def test_a_preset_gives_way_to_the_config() -> None:
    preset = load_config({"model": {"type": "smolvla"}, "training": {"learning_rate": 3e-4, "max_steps": 7}}).training

    assert (preset.learning_rate, preset.max_steps, preset.ema_decay) == (3e-4, 7, 0.0)
    assert load_config({}).training.ema_decay == 0.995


def test_the_published_size_fits_into_eight_gigabytes() -> None:
    found = summarize(load_config(CONFIG), "rtx4090")

    assert (found["parameters"], found["trainable_parameters"]) == (450_046_176, 99_880_992)
    assert found["memory_gib"]["total"] == pytest.approx(2.9, abs=0.1)  # as the config says
    assert found["training_flops_per_sample"] == pytest.approx(0.52e12, rel=0.01)
    # Two pictures of 1024 patches through 12 layers of 768: matrices, then attention.
    vision = 2 * 12 * (2 * 1024 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 1024**2 * 768)
    flops = {part["name"]: part["flops"] for part in found["parts"]}
    assert flops["vision"] == pytest.approx(vision, rel=0.02) and flops["expert"] > 0 and flops["lm_head"] == 0
    assert found["training_flops_per_sample"] > found["flops_per_sample"] > sum(flops.values()) * 0.99


def test_one_and_eight_gpus_train_the_same() -> None:
    one, eight = (load_config(CONFIG.with_name(f"smolvla_{count}gpu.yaml")) for count in (1, 8))

    assert one.model == eight.model
    assert one.training.model_copy(update={"gradient_accumulation_steps": 1}) == eight.training


def test_a_policy_of_random_weights_is_saved_whole(tmp_path: Path) -> None:
    config = SmolVLAConfig(pretrained=str(SMOLVLA), weights="random")
    torch.manual_seed(1)
    policy: Policy = config.build(load_policy(SMOLVLA).processor).eval()

    policy.save_pretrained(tmp_path / "saved")

    again = load_policy(tmp_path / "saved")
    assert policy.frozen == {} and all(v.equal(again.state_dict()[k]) for k, v in policy.state_dict().items())
