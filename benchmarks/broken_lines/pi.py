"""Lines of pi0 and pi0.5: attention, norms, prompt, what is trained, what goes back."""

from broken_lines.row import of_part

NETWORK = "tests/policies/test_pi_network.py"
POLICY = "tests/policies/test_pi_policy.py"
TRAINING = "tests/policies/test_pi_training.py"
EXPORT = "tests/policies/test_pi_export.py"
GOLDEN = f"{NETWORK}::test_every_intermediate_is_the_golden_one"

ROWS = of_part(
    "pi",
    (
        "atlas/policies/pi/gemma_layers.py",
        "normed * (1 + scale) + shift",
        "normed * scale + shift",
        "an adaptive norm scales by what it learned alone",
        GOLDEN,
    ),
    (
        "atlas/policies/pi/gemma_layers.py",
        "branch if gate is None else branch * gate",
        "branch",
        "the gates of pi0.5 are left out",
        GOLDEN,
    ),
    (
        "atlas/policies/pi/gemma_layers.py",
        "all_keys = torch.cat([keys.to(own_keys.dtype), own_keys], dim=2)",
        "all_keys = torch.cat([own_keys, keys.to(own_keys.dtype)], dim=2)",
        "the expert mixes up whose keys are whose",
        GOLDEN,
    ),
    (
        "atlas/policies/pi/pi_network.py",
        "condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(waves))))",
        "condition = self.time_mlp_out(F.silu(self.time_mlp_in(waves)))",
        "the last SiLU of the time network is left out",
        GOLDEN,
    ),
    (
        "atlas/policies/pi/pi_network.py",
        "prefix_valid.long().sum(dim=1, keepdim=True) + ",
        "prefix_valid.shape[1] + ",
        "the suffix stands behind padded words instead of behind the last one",
        GOLDEN,
    ),
    (
        "atlas/policies/pi/pi_policy.py",
        "right=True) - 1",
        "right=False) - 1",
        "a state on an edge is written into the bin before",
        "tests/policies/test_pi_prompt.py::test_bins_begin_at_their_edges_and_nothing_is_clipped",
    ),
    (
        "atlas/policies/pi/trained_parts.py",
        'or (name.startswith("vision.") and name.endswith("k_proj.bias"))',
        "or False",
        "biases that change nothing drift by rounding",
        f"{TRAINING}::test_gradients_are_golden",
    ),
    (
        "atlas/policies/pi/trained_parts.py",
        "if trained or norm or not stored.is_floating_point:",
        "if trained or not stored.is_floating_point:",
        "frozen norms are rounded to bfloat16",
        f"{EXPORT}::test_what_is_frozen_in_bfloat16_is_written_in_it",
    ),
    (
        "atlas/policies/pi/pi_policy.py",
        "or self.network.words.weight.requires_grad",
        "or False",
        "a table of words that was trained goes back as it was before",
        f"{EXPORT}::test_a_table_that_was_trained_is_both",
    ),
    (
        "atlas/policies/pi/pi_loading.py",
        'complete = config.weights == "random" or trains_whole(network)',
        'complete = config.weights == "random"',
        "a policy that was trained whole cannot be loaded without the file it began with",
        f"{TRAINING}::test_a_policy_that_is_trained_whole_needs_no_other_file",
    ),
    (
        "atlas/policies/adapters.py",
        "tensor = tensor.float() + sum(",
        "tensor = tensor.float() - sum(",
        "adapters are taken away where they should be added",
        f"{EXPORT}::test_adapters_are_merged_where_that_is_asked_for",
    ),
)
