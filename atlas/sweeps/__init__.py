"""Sweeps over config keys: a grid on this machine, or wandb's agents with the same file.

From Python, `wandb.agent` calls your own function, which logs to the run that wandb has begun:

    import atlas, wandb

    def trial():
        values = wandb.init().config  # the agent's choice
        atlas.train(overrides=["wandb.enabled=true", *(f"{key}={value}" for key, value in values.items())])

    wandb.agent("ENTITY/PROJECT/SWEEP", trial, count=10)
"""
