"""Options that the recipes of SimCLR and BYOL on CIFAR-10 share, named after the code that they come from."""

from mixfast.augment import recipe_options

# The CIFAR-10 benchmark of lightly, at batch 512: ordinary batch norm, a rate of 0.06 per 128 images.
LIGHTLY: dict[str, object] = {"model.bn_splits": 1, "optim.lr": 0.24}

# The code of W-MSE (Ermolov et al. 2021), from which Un-Mix's SimCLR and BYOL come. It trains for 200 epochs unless
# told otherwise, and for 1000 in its paper; the rate falls 50 and 25 epochs before the end in both.
WMSE: dict[str, object] = {
    **recipe_options("wmse"),
    "model.hidden": 1024,
    "model.dim": 64,
    "model.bn_splits": 1,
    "optim.name": "adam",
    "optim.lr": 3e-3,
    "optim.weight_decay": 1e-6,
    "optim.schedule": "step",
    "optim.steps": (-50.0, -25.0),
    "optim.step_factor": 0.2,
    "optim.warmup_steps": 500,
}
