"""Options of the random augmentation that makes views of an image, and published recipes as presets."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from mixfast.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """One random view: crop, flip, colour jitter, grey, blur, solarise, normalise, in this order.

    A pair of views may differ in blur and solarise, the keys that end in "second".
    The defaults are the recipe of MoCo's CIFAR-10 demo (preset "demo"). Probabilities are per image and view.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop covers
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a crop, drawn log-uniformly
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of the crop, to the size of the view
    flip: float = 0.5  # probability of a left-right flip
    brightness: float = 0.4  # factor in [max(0, 1 - x), 1 + x]; also the two below
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # shift in [-x, x] turns, at most 0.5
    jitter: float = 0.8  # probability of the four factors above, applied in an order drawn for each image
    grey: float = 0.2  # probability of losing the colour
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in pixels of the view
    solarise: float = 0.0  # probability of inverting the pixels above one half
    blur_second: float | None = None  # blur in the second view of a pair (BYOL); none: as in the first
    solarise_second: float | None = None  # solarise in the second view; none: as in the first
    grey_first: bool = False  # grey before the jitter (MoCo v1)
    colour_first: bool = False  # jitter and grey before the crop, thus with the whole image's mean (W-MSE)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise", "blur_second", "solarise_second"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(
                    f"augment.{name} must be a probability in [0, 1]; got {value}. Use 0 to leave it out."
                )
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ConfigError(f"augment.{name} must be at least 0; got {value}. 0 leaves it out.")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"augment.hue must be in [0, 0.5] turns; got {self.hue}. 0.5 covers every hue.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(
                f"augment.crop_scale must be (low, high) with 0 < low <= high <= 1; got {self.crop_scale}. "
                "Use (1, 1) for the whole image."
            )
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < float("inf"):
                raise ConfigError(f"augment.{name} must be (low, high) with 0 < low <= high; got {(low, high)}.")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"augment.interpolation must be 'bilinear' or 'bicubic'; got {self.interpolation!r}.")


def second_view(cfg: AugmentConfig) -> AugmentConfig:
    """The recipe of the second view of a pair whose first has the recipe `cfg`."""
    return replace(
        cfg,
        blur=cfg.blur if cfg.blur_second is None else cfg.blur_second,
        solarise=cfg.solarise if cfg.solarise_second is None else cfg.solarise_second,
        blur_second=None,
        solarise_second=None,
    )


_DEMO = AugmentConfig()

# Recipes of the literature by name; the names follow the papers.
PRESETS: dict[str, AugmentConfig] = {
    "demo": _DEMO,
    "ref": replace(_DEMO, interpolation="bicubic"),
    "vicreg": replace(
        _DEMO, interpolation="bicubic", saturation=0.2, blur=1.0, blur_second=0.1, solarise=0.0, solarise_second=0.2
    ),
    "wmse": replace(_DEMO, crop_scale=(0.2, 1.0), interpolation="bicubic", grey=0.1, colour_first=True),
    "byol": replace(_DEMO, saturation=0.2, solarise_second=0.2),
    "v1": replace(_DEMO, crop_scale=(0.2, 1.0), hue=0.4, jitter=1.0, grey_first=True),
    "v2": replace(_DEMO, crop_scale=(0.2, 1.0), blur=0.5),
}


def recipe_options(name: str) -> dict[str, object]:
    """The values in which the recipe `name` differs from the defaults, by option: {"augment.blur": 0.5}."""
    values = ((field.name, getattr(PRESETS[name], field.name)) for field in fields(AugmentConfig))
    return {f"augment.{key}": value for key, value in values if value != getattr(_DEMO, key)}
