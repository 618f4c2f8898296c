"""Methods by name. The name is the file: mixfast/methods/moco.py is "moco"; a dotted name is a module elsewhere."""

import difflib
import pkgutil
from functools import cache

from mixfast.errors import ConfigError
from mixfast.methods.bases.method import Method, Step
from mixfast.outside import import_module

__all__ = ["MODIFIERS", "Method", "Step", "load", "names"]

# Settings that change any preset, by full option name. "paper_literal": the optimiser as the paper prints it; its
# learning rate is 20 times smaller than that of the published code. "moco_demo": the exact schedule of MoCo's CIFAR
# demo, of Un-Mix and of the paper's code, whose cosine counts epochs from 1, so that the last epoch has rate 0. The
# others are data sets with a suitable network and suitable sizes. "imagenet" is MoCo's published recipe (He et al.
# 2020: eight groups of 32 images, each with its own batch statistics) and only fits methods with a queue. docs/data.md
# lists the options that these settings do not decide.
MODIFIERS: dict[str, dict[str, object]] = {
    "paper_literal": {"optim.lr": 3e-3, "optim.weight_decay": 1e-4},
    "moco_demo": {"optim.cosine_origin": 1},
    "cifar100": {"data.kind": "cifar100"},
    "stl10": {"data.kind": "stl10", "data.size": 96, "model.stem": "cifar_s2", "augment.crop_scale": (0.2, 1.0)},
    "tiny_imagenet": {
        "data.kind": "folder",
        "data.size": 64,
        "model.stem": "cifar_s2",
        "augment.crop_scale": (0.2, 1.0),
    },
    "imagenet": {
        "data.kind": "folder",
        "data.size": 224,
        "augment.crop_scale": (0.2, 1.0),
        "model.depth": 50,
        "model.stem": "imagenet",
        "method.queue_size": 65536,
        "method.ema": 0.999,
        "train.batch_size": 256,
        "optim.lr": 0.03,
        "optim.weight_decay": 1e-4,
        "eval.bank": 50_000,
    },
}


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg))


def names() -> list[str]:
    """The methods of this package, in alphabetical order."""
    return list(_names())


def load(name: str) -> type[Method]:
    """The method called `name`, or the METHOD of the module whose dotted path is `name`."""
    if name.isidentifier() and name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        raise ConfigError(
            f"method: there is no {name!r}; "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + f"Known: {', '.join(names())}; or the dotted path of a module with a METHOD, such as my_lab.my_method."
        )
    path = f"{__name__}.{name}" if name.isidentifier() else name
    module = import_module(path, "method")
    method = getattr(module, "METHOD", None)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"method: {path} must define METHOD, a subclass of mixfast.methods.Method; got {method!r}.")
    return method
