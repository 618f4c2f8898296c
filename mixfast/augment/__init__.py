"""Random views of image batches: tensor code that runs where the images are, with no host synchronisation."""

from mixfast.augment.config import PRESETS, AugmentConfig, recipe_options, second_view
from mixfast.augment.views import augment, normalise

__all__ = ["PRESETS", "AugmentConfig", "augment", "normalise", "recipe_options", "second_view"]
