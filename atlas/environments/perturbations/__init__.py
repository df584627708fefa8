"""How episodes may differ from those of training, one module a kind; `perturbation.py` says what one is."""
