"""Map and threshold are chosen on validation images; oracles bound the scores; scores have the expected order."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.models import ModelConfig, build_encoder
from mixfast.scoring import protocol
from mixfast.scoring.bootstrap import resamples
from mixfast.scoring.boxes import Objects, inside
from mixfast.scoring.localisation import DELTAS, box_curves
from mixfast.scoring.maps import Network, fit_mapper

SIDE = 16


def make_objects(count: int, generator: torch.Generator, objects: int = 1, masks: bool = True) -> Objects:
    corner = torch.randint(0, 8, (count, objects, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(4, 9, (count, objects, 2), generator=generator)], 2).float()
    images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    known = inside(boxes, (SIDE, SIDE)).any(1) if masks else None
    return Objects(images, boxes, torch.arange(count) % 3, "made", known)


class Player:
    """Maps that show the boxes with noise; kind "good" with less of it."""

    def __init__(self, noise: dict[str, float], generator: torch.Generator):
        self.noise, self.generator = noise, generator
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    def __call__(self, objects: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
        kinds = tuple(self.noise) if wanted is None else tuple(wanted)
        self.asked.append((len(objects), kinds))
        clean = inside(objects.boxes, objects.size).any(1).float()
        small = F.avg_pool2d(clean[:, None], 2)[:, 0]
        return {k: small + self.noise[k] * torch.randn(small.shape, generator=self.generator) for k in kinds}


def test_the_better_kind_is_chosen_on_validation_and_alone_is_scored(rng: torch.Generator) -> None:
    player = Player({"bad": 2.0, "good": 0.2, "also": 0.2}, rng)
    validation, test = make_objects(40, rng), make_objects(30, rng)
    outcome = protocol.choose_and_score(player, validation, test)
    assert outcome.choice.kind in ("good", "also")
    assert player.asked == [(40, ("bad", "good", "also")), (30, (outcome.choice.kind,))]
    assert outcome.choice.validation["good"] > outcome.choice.validation["bad"] + 10
    assert all(len(values) == 30 for values in outcome.images.values())


def test_thresholds_are_those_that_suit_the_validation_images(rng: torch.Generator) -> None:
    """Maps whose background is at 0.3 of the object fail at thresholds up to 0.3."""
    objects = make_objects(30, rng)
    clean = inside(objects.boxes, objects.size).any(1).float()
    clear, murky = protocol.measure(clean, objects), protocol.measure(clean + 0.43 * (1 - clean), objects)
    low, high = protocol.choose({"map": clear}), protocol.choose({"map": murky})
    # maps are stretched to [0, 1] before they are cut, so both begin right above 0
    assert low.corloc == high.corloc == 1 and low.deltas == (1, 1, 1)
    blurred = F.avg_pool2d(clean[:, None], 5, 1, 2)[:, 0]
    choice = protocol.choose({"map": protocol.measure(blurred, objects)})
    curve = protocol.reaches(protocol.measure(blurred, objects).curves.largest, 0.5).mean(0)
    assert curve[choice.corloc] == curve.max() and choice.corloc == curve.argmax() > 1


def test_oracles_are_not_below_what_is_held_out(rng: torch.Generator) -> None:
    player = Player({"map": 0.5}, rng)
    outcomes = [protocol.choose_and_score(player, make_objects(20, rng), make_objects(50, rng)) for _ in range(3)]
    for outcome in outcomes:
        scores = protocol.summarise([outcome], resamples(50))
        assert scores["max_box_acc"]["mean"] >= scores["corloc"]["mean"]
        assert scores["max_box_acc_v2"]["mean"] >= scores["box_v2"]["mean"]


def test_max_box_acc_falls_with_delta_and_v2_lies_between(rng: torch.Generator) -> None:
    objects = make_objects(60, rng)
    (maps,) = Player({"map": 0.6}, rng)(objects, None).values()
    measured = protocol.measure(maps, objects)
    by_delta = [protocol.reaches(measured.curves.any, d).mean(0).max().item() for d in (0.1, *DELTAS, 0.9)]
    assert by_delta == sorted(by_delta, reverse=True) and by_delta[0] > by_delta[-1]
    choice = protocol.choose({"map": measured})
    outcome = protocol.Outcome(choice, protocol.values_per_image(measured, choice))
    v2 = protocol.summarise([outcome], resamples(60))["max_box_acc_v2"]["mean"]
    assert 100 * by_delta[3] < v2 < 100 * by_delta[1]
    assert v2 == pytest.approx(100 * sum(by_delta[1:4]) / 3, rel=1e-5)
    assert choice.validation["map"] == pytest.approx(v2, rel=1e-5)  # chosen on these very images, it is the oracle


def test_a_perfect_map_scores_a_hundred_and_a_uniform_one_the_area(rng: torch.Generator) -> None:
    objects = make_objects(25, rng)
    draws = resamples(25)

    def perfect(data: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
        return {"map": inside(data.boxes, data.size).any(1).float()}

    def uniform(data: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
        return {"map": torch.full((len(data), 4, 4), 7.0)}

    best = protocol.summarise([protocol.choose_and_score(perfect, objects, objects)], draws)
    assert {name: best[name]["mean"] for name in best if name != "tie"} == dict.fromkeys(
        ("pointing", "energy", "pxap", "corloc", "box_v2", "max_box_acc", "max_box_acc_v2"), 100
    )
    assert best["pxap"]["low"] == 100 and best["tie"]["mean"] == 0
    flat = protocol.summarise([protocol.choose_and_score(uniform, objects, objects)], draws)
    assert objects.masks is not None
    area = 100 * objects.masks.float().mean().item()
    assert flat["energy"]["mean"] == pytest.approx(area, rel=1e-5) and flat["pxap"]["mean"] == pytest.approx(area)
    assert flat["pointing"]["mean"] == 0 and flat["tie"]["mean"] == 100


def test_pxap_pools_pixels_over_images(rng: torch.Generator) -> None:
    """PxAP pools the pixels of all images; the mean of the images' own average precisions is another number."""
    objects = make_objects(6, rng)
    assert objects.masks is not None
    maps = torch.rand(6, SIDE, SIDE, generator=rng)
    maps[:, 0, 0], maps[:, -1, -1] = 0, 1  # stretching leaves them alone
    measured = protocol.measure(maps, objects)
    choice = protocol.choose({"map": measured})
    outcome = protocol.Outcome(choice, protocol.values_per_image(measured, choice))
    found = protocol.summarise([outcome], resamples(6))["pxap"]["mean"]
    order = maps.flatten().mul(1000).floor().clamp(max=999).argsort(descending=True, stable=True)
    level, right = maps.flatten().mul(1000).floor().clamp(max=999)[order], objects.masks.flatten()[order].double()
    ends = torch.cat([level.diff().nonzero().flatten(), torch.tensor([len(level) - 1])])
    hits, recall = right.cumsum(0)[ends], right.cumsum(0)[ends] / right.sum()
    expected = (hits / (ends + 1) * recall.diff(prepend=torch.zeros(1))).sum().item()
    assert found == pytest.approx(100 * expected, rel=1e-4)


def test_several_objects_and_no_masks(rng: torch.Generator) -> None:
    objects = make_objects(12, rng, objects=3, masks=False)
    scores = protocol.summarise([protocol.choose_and_score(Player({"map": 0.3}, rng), objects, objects)], resamples(12))
    assert "pxap" not in scores
    assert scores["hit_at_1"]["mean"] <= scores["hit_at_3"]["mean"] <= scores["hit_at_5"]["mean"]
    assert scores["background"]["mean"] == pytest.approx(100 - scores["energy"]["mean"], rel=1e-5)


def test_many_images_are_measured_as_each_alone(rng: torch.Generator) -> None:
    """150 images are more than are measured together."""
    objects = make_objects(150, rng, objects=2)
    (maps,) = Player({"map": 0.5}, rng)(objects, None).values()
    together = protocol.measure(maps, objects)
    alone = [protocol.measure(maps[i : i + 1], objects.take(torch.tensor([i]))) for i in range(0, 150, 7)]
    torch.testing.assert_close(together.energy[::7], torch.cat([part.energy for part in alone]))
    assert torch.equal(together.curves.any[::7], torch.cat([part.curves.any for part in alone]))
    assert together.pixels is not None
    assert torch.equal(together.pixels.on[::7], torch.cat([part.pixels.on for part in alone if part.pixels]))


def test_the_drawn_box_is_the_one_that_is_scored(rng: torch.Generator) -> None:
    objects = make_objects(20, rng)
    maps = torch.rand(20, SIDE, SIDE, generator=rng)
    curves = box_curves(maps, objects.boxes)
    choice = protocol.Choice("map", 30, (0, 0, 0), {})
    boxes = protocol.predicted(maps, choice)
    again = box_curves(inside(boxes[:, None].float(), (SIDE, SIDE))[:, 0].float(), objects.boxes)
    assert torch.equal(curves.largest[:, 30], again.largest[:, 25])


def test_networks_and_rules_play_by_the_same_protocol(rng: torch.Generator) -> None:
    encoder = build_encoder(ModelConfig(depth=8, width=8, dim=4, bn_splits=1), rng)
    network = Network(encoder, lambda images: images.float() / 255 - 0.5)
    validation, test = make_objects(10, rng), make_objects(8, rng)
    mapper = fit_mapper(network, validation.images, classifier=torch.randn(3, 32, generator=rng))
    outcome = protocol.choose_and_score(protocol.mapper_contestant(mapper), validation, test)
    assert set(outcome.choice.validation) == {"norm", "power", "eigen", "sim", "cam"}
    several = make_objects(4, rng, objects=2)  # cam needs one class per image
    assert set(protocol.mapper_contestant(mapper)(several, None)) == {"norm", "power", "eigen", "sim"}
    for rule, kinds in (
        (protocol.edge_contestant, ("edges 4", "edges 8")),
        (protocol.centre_contestant, ("centre 1.00",)),
    ):
        outcome = protocol.choose_and_score(rule, validation, test)
        assert set(kinds) <= set(outcome.choice.validation)


def test_margin_is_the_difference_of_the_means(rng: torch.Generator) -> None:
    validation, test, draws = make_objects(20, rng), make_objects(30, rng), resamples(30)
    good, bad = (protocol.choose_and_score(Player({"map": noise}, rng), validation, test) for noise in (0.2, 1.5))
    scores = [protocol.summarise([one], draws)["box_v2"]["mean"] for one in (good, bad)]
    found = protocol.margin([good], [bad], draws, "box_v2")
    assert found["mean"] == pytest.approx(scores[0] - scores[1]) and found["low"] < found["mean"] < found["high"]
