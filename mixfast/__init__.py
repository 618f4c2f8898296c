"""Fast operations for self-supervised learning with mixed images, and a trainer that uses them."""

import importlib
from typing import TYPE_CHECKING, Any

from mixfast.ops import (
    augment_views,
    backends,
    draw_views,
    masked_upsample_pool,
    mix_views,
    multi_queue_infonce,
    nt_xent,
    region_weights,
    weighted_pool,
)

if TYPE_CHECKING:
    from mixfast.evaluate.calls import detect, knn, linear, localise
    from mixfast.run.callbacks import Moment
    from mixfast.run.trained import Result
    from mixfast.train.fit import fit

__version__ = "0.1.0"
_LATER = {  # imported at first use
    **dict.fromkeys(("detect", "knn", "linear", "localise"), "mixfast.evaluate.calls"),
    "Moment": "mixfast.run.callbacks",
    "Result": "mixfast.run.trained",
    "fit": "mixfast.train.fit",
}
__all__ = [
    "Moment",
    "Result",
    "__version__",
    "augment_views",
    "backends",
    "detect",
    "draw_views",
    "fit",
    "knn",
    "linear",
    "localise",
    "masked_upsample_pool",
    "mix_views",
    "multi_queue_infonce",
    "nt_xent",
    "region_weights",
    "weighted_pool",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
