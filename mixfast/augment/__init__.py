"""Random views of image batches: the recipes, and the two operations that follow them where the images are."""

from mixfast.augment.config import PRESETS, AugmentConfig, recipe_options, second_view
from mixfast.augment.views import Augment, Views, augment, normalise

__all__ = ["PRESETS", "Augment", "AugmentConfig", "Views", "augment", "normalise", "recipe_options", "second_view"]
