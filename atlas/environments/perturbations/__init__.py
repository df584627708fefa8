"""Ways in which episodes may differ from those of training, one module per kind; `perturbation.py` is the contract."""
