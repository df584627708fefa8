"""Lines of published policies: pictures, time, scaling, names of weights, what goes back; and SmolVLA's network."""

from broken_lines.row import of_part

PARITY = "tests/policies/test_smolvla_parity.py"
FOLDERS = "tests/policies/test_lerobot_folders.py"
TRAINING = "tests/training/test_published_training.py"
GOLDEN = f"{PARITY}::test_every_value_is_that_of_lerobot"

ROWS = of_part(
    "published",
    (
        "atlas/data/image_fit.py",
        'if self.placing == "right_bottom" else (down // 2, right // 2)',
        'if self.placing == "centre" else (down // 2, right // 2)',
        "pictures are in the middle of their border",
        GOLDEN,
    ),
    (
        "atlas/policies/published/flow_pieces.py",
        "torch.cat([angles.sin(), angles.cos()], dim=-1)",
        "torch.cat([angles.cos(), angles.sin()], dim=-1)",
        "the time's cosines come before its sines",
        GOLDEN,
    ),
    (
        "atlas/policies/published/flow_policy.py",
        "mix(actions.repeat_interleave(draws, 0), noise, time)",
        "mix(actions.repeat(draws, 1, 1), noise, time)",
        "of several noises, some are for another sample's actions",
        "tests/policies/test_flow_policies.py::test_more_noises_for_a_sample_are_the_mean_of_one_after_the_other",
    ),
    (
        "atlas/policies/chunk_guidance.py",
        "return velocity - strength * self.weights[:, None] * error",
        "return velocity + strength * self.weights[:, None] * error",
        "a chunk is driven away from the one before",
        f"{PARITY}::test_real_time_chunking",
    ),
    (
        "atlas/policies/published/weight_filling.py",
        "left = set(stored) - set(expected) - set(old) - set(unused)",
        "left: set[str] = set()",
        "tensors that no part of the policy takes are dropped without a word",
        f"{FOLDERS}::test_a_bad_folder_is_refused_by_name",
    ),
    (
        "atlas/policies/smolvla/smolvla_layers.py",
        "ROPE_BASE = 10_000.0",
        "ROPE_BASE = 100_000.0",
        "positions turn by the base in the language model's config",
        GOLDEN,
    ),
    (
        "atlas/policies/smolvla/smolvla_network.py",
        "alone = rotation(steps, self.sizes.head_dim)",
        "alone = joint",
        "actions that read the prefix alone stand behind it",
        GOLDEN,
    ),
    (
        "atlas/policies/smolvla/smolvla_policy.py",
        'return [text if text.endswith("\\n") else f"{text}\\n" for text in instructions]',
        "return list(instructions)",
        "instructions end without the newline of training",
        GOLDEN,
    ),
    (
        "atlas/training/optimizer.py",
        "return peak * ((first - 1) * (1 - step / warmup_steps) + 1)",
        "return peak * (step + 1) / warmup_steps",
        "LeRobot's warm-up starts elsewhere",
        f"{TRAINING}::test_the_learning_rate_is_lerobots",
    ),
)
