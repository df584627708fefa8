"""SmolVLA (Shukor et al., 2025): a small vision-language model whose layers an action expert reads."""
