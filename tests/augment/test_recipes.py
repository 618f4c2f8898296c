"""Recipes of the literature: their options, and pairs whose views differ."""

from pathlib import Path

import pytest
import torch

from mixfast.augment import PRESETS, AugmentConfig, normalise, recipe_options, second_view
from mixfast.config.presets import modifiers_by_name
from mixfast.errors import ConfigError
from tests.tiny_run import open_tiny

PLAIN = {
    "augment__crop_scale": (1, 1), "augment__crop_ratio": (1, 1), "augment__flip": 0, "augment__jitter": 0,
    "augment__grey": 0,
}  # fmt: skip


def test_second_views_differ_where_the_recipe_says() -> None:
    same = AugmentConfig(blur=0.5, solarise=0.25)
    assert second_view(same) == same
    byol = second_view(AugmentConfig(blur=1.0, solarise=0.0, blur_second=0.1, solarise_second=0.2))
    assert byol == AugmentConfig(blur=0.1, solarise=0.2)
    assert (PRESETS["byol"].solarise, second_view(PRESETS["byol"]).solarise) == (0.0, 0.2)


def test_options_of_a_recipe_are_its_differences_from_the_default() -> None:
    assert recipe_options("demo") == {}
    assert recipe_options("v2") == {"augment.crop_scale": (0.2, 1.0), "augment.blur": 0.5}
    assert recipe_options("byol") == {"augment.saturation": 0.2, "augment.solarise_second": 0.2}
    assert recipe_options("vicreg") == {  # as published: every first view is blurred, one in ten second ones
        "augment.interpolation": "bicubic",
        "augment.saturation": 0.2,
        "augment.blur": 1.0,
        "augment.blur_second": 0.1,
        "augment.solarise_second": 0.2,
    }
    known = modifiers_by_name()
    assert known["augment_wmse"] == recipe_options("wmse") and "augment_demo" not in known


@pytest.mark.parametrize("key", ["blur_second", "solarise_second"])
def test_bad_probabilities_of_a_second_view_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"augment.{key} must be a probability in \[0, 1\]; got 1.5"):
        AugmentConfig(**{key: 1.5})


@pytest.mark.parametrize("method", ["moco", "byol_unmix"])
def test_the_second_view_of_a_run_has_its_own_recipe(method: str, tmp_path: Path) -> None:
    """With every random step off, the second view differs by its certain solarisation alone, in every batch."""
    run = open_tiny(tmp_path, method, **PLAIN, augment__solarise_second=1)
    for start in (0, 16):
        images = run.batches.images[start : start + 16]
        views = run.views(images)
        first, second = (views[name] for name in (("query", "key") if method == "moco" else ("first", "second")))
        inverted = torch.where(images >= 128, 255 - images, images)
        for view, wanted in ((first, images), (second, inverted)):
            expected = normalise(wanted, run.splits.mean, run.splits.std)
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
