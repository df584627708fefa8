"""Python reads this when it starts if the folder is in PYTHONPATH. gpu_check.py uses it for trainings that must fail:
in its third step, rank 1 runs out of memory or raises in the backward pass, as GPU_CHECK_FAULT says."""

import importlib.util
import os
import sys

_STEP = 2


class _Finder:
    """Spoils the Trainer when it is imported."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != "atlas.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            execute(module)
            _spoil(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


def _spoil(trainer_class):  # type: ignore[no-untyped-def]
    import torch

    backward = trainer_class._backward

    def spoiled(self, *args):  # type: ignore[no-untyped-def]
        if self.state.step == _STEP:
            if os.environ["GPU_CHECK_FAULT"] == "memory":
                torch.empty(1 << 50, dtype=torch.uint8, device=self.accelerator.device)
            weight = next(p for p in self.policy.parameters() if p.requires_grad)
            weight.register_hook(_raise)
        return backward(self, *args)

    trainer_class._backward = spoiled


def _raise(gradient):  # type: ignore[no-untyped-def]
    raise ArithmeticError("spoiled by gpu_check")


if "GPU_CHECK_FAULT" in os.environ and os.environ.get("RANK") == "1":
    sys.meta_path.insert(0, _Finder())
