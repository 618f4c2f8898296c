"""Several processes train what one trains: in float64 to the last digits, and themselves alike to the bit."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mixfast import methods, world
from mixfast.world import World
from tests.tiny_run import assert_same
from tests.worlds import (
    Case,
    chosen_precision,
    compared,
    continued,
    evaluated,
    exchanges,
    failing_job,
    largest_difference,
    together,
    touched,
    trained,
)

pytestmark = pytest.mark.slow

SAME = 1e-12  # sums in another order, after three steps
SYNCED = {"model__bn_splits": 1}
CASES: dict[str, Case] = {
    "aligned_mixture": ("aligned_mixture", {"method__p_mix": 0.5, "train__batch_size": 32, "train__accumulate": 2}),
    "densecl": ("densecl", {"train__accumulate": 2}),
    "moco": ("moco", {"method__symmetric": (), "train__accumulate": 2}),
    "moco_cutmix": ("moco_cutmix", {"method__mixture": "saliency", **SYNCED}),
    "moco_unmix": ("moco_unmix", {"method__box_per_sample": (), "method__symmetric": ()}),
    "approach1": ("approach1", {"method__box_per_sample": (), "method__region_layer": 2}),
    "demo": ("approach1", {"train__batch_size": 32, "model__stem": "cifar_s2", **SYNCED}),
    "approach2": ("approach2", {"method__mixture": "saliency", "method__reverse_regions": "literal"}),
    "approach2_reference": ("approach2_reference", {"optim__name": "lars"}),
    "one_branch": ("one_branch", {"method__partner": "batch_reverse", "augment__blur": 0.5}),
    "one_pass": ("one_pass", {"method__p_mix": 1.0}),
    "regioncl": ("regioncl", {}),
    "simclr": ("simclr", {"model__head": "mlp_bn2", "method__joint_head": (), **SYNCED}),
    "simclr_unmix": (
        "simclr_unmix",
        {"method__mask_reverse_negative": (), "method__box_per_sample": (), "train__accumulate": 2},
    ),
    "byol": ("byol", {"model__head": "mlp_bn", "optim__name": "adam", **SYNCED}),
    "byol_unmix": ("byol_unmix", {"model__head": "mlp_bn", "method__alpha": 0.5}),
}
MINE = ("approach1", "approach2")  # the cases of which a checkpoint is continued


class Pair(NamedTuple):
    one: dict[str, Any]  # by case
    two: list[dict[str, Any]]  # of each process
    one_after_two: dict[str, Any]  # continued by one process after the first step of two
    evaluated: dict[str, Any]  # by one


def by_two(cases: dict[str, Case], one: Path, out: Path) -> dict[str, Any]:
    """In a process of two: all cases, checkpoints of two and of one continued, and a queue that is not the others'."""
    found: dict[str, Any] = trained(cases, out)
    found["two after two"] = {name: continued(cases[name], out / name, out / name / "first.pt") for name in MINE}
    found["two after one"] = {name: continued(cases[name], out / name, one / name / "first.pt") for name in MINE}
    found["compared"] = compared()
    found["exchanges"] = exchanges(cases["moco"], out / "exchanges")
    found["touched"] = touched(cases["approach1"], out / "touched")
    found["evaluated"], found["failing job"] = evaluated(out / "evaluated"), failing_job()
    found["precision"] = chosen_precision()
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("worlds")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = trained(CASES, folder / "one")
    two = together(by_two, 2, folder / "two", CASES, folder / "one")
    after = {name: continued(CASES[name], folder / "after", folder / "two" / name / "first.pt") for name in MINE}
    scored = evaluated(folder / "evaluated")
    torch.set_num_threads(threads)
    return Pair(one, two, after, scored)


def test_every_method_is_there() -> None:
    assert sorted({method for method, _ in CASES.values()}) == methods.names()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(case: str, pair: Pair) -> None:
    difference, name = largest_difference(pair.one[case], pair.two[0][case])
    assert difference < SAME, name
    assert_same(pair.two[1][case], pair.two[0][case])


@pytest.mark.parametrize("case", MINE)
def test_a_checkpoint_knows_no_number_of_processes(case: str, pair: Pair) -> None:
    whole = pair.two[0][case]
    rest = {"values": whole["values"][1:], "state": whole["state"]}
    assert_same(pair.two[0]["two after two"][case], rest)
    for found in (pair.two[0]["two after one"][case], pair.one_after_two[case]):
        difference, name = largest_difference(found, rest)
        assert difference < SAME, name


def test_four_processes_train_what_one_trains(pair: Pair, tmp_path: Path) -> None:
    cases = {"approach2": CASES["approach2"]}
    found = together(trained, 4, tmp_path / "four", cases)
    difference, name = largest_difference(pair.one["approach2"], found[0]["approach2"])
    assert difference < SAME, name
    for other in found[1:]:
        assert_same(other, found[0])


def test_evaluations_are_those_of_one_process_to_the_bit(pair: Pair) -> None:
    for found in pair.two:
        assert_same(found["evaluated"], pair.evaluated)


def test_the_first_process_measures_for_all(pair: Pair) -> None:
    first, second = (found["precision"] for found in pair.two)
    assert first == second and first[0] == "bf16" and re.search("auto: the encoder takes .* for 8 images", first[1])


def test_gradients_are_sent_during_the_backward_pass(pair: Pair) -> None:
    """With two backward passes in a step, after the second one."""
    for found in pair.two:
        *buckets, _, (_, weights) = found["exchanges"]
        assert sum(sent for _, sent in buckets) == weights
        assert len(buckets) > 4 and sum(during for during, _ in buckets) >= len(buckets) - 1


def test_a_failing_job_ends_all(pair: Pair) -> None:
    first, second = (found["failing job"] for found in pair.two)
    assert first == "Elsewhere: another process has ended with exit code 2" and second == "ConfigError: job 3"


def test_processes_that_differ_are_told(pair: Pair) -> None:
    first, second = (found["touched"] for found in pair.two)
    assert first.startswith("PlatformError: method.queues.whole differs: ") and "process 1 of 2. At step 0" in first
    assert second.startswith("Elsewhere")
    first, second = (found["compared"] for found in pair.two)
    assert first == "ConfigError: torch differs: 0 in process 0, 1 in process 1 of 2. Start all alike."
    assert second.startswith("Elsewhere")


@pytest.mark.parametrize(("size", "splits", "batch"), [(2, 8, 32), (4, 8, 16), (3, 1, 18), (2, 4, 8)])
def test_rows_are_whole_groups_with_their_mirror_images(size: int, splits: int, batch: int) -> None:
    owner = {}
    for rank in range(size):
        here = World(rank, size)
        here.arrange(splits)
        rows = here.rows(batch).tolist()
        assert len(rows) == batch // size and rows == sorted(rows)
        assert [batch - 1 - row for row in rows[::-1]] == rows  # reversed here, the batch is reversed
        owner |= dict.fromkeys(rows, rank)
    assert sorted(owner) == list(range(batch))
    if splits > 1:
        for group in range(splits):
            assert len({owner[row] for row in range(group, batch, splits)}) == 1


def test_one_process_is_the_identity() -> None:
    here, values = world.current(), torch.arange(6.0)
    assert here.own(values) is values and here.ordered(values) is values and here.gather_for_loss(values) is values
    assert here.largest(3, 1) == [3, 1] and here.first(lambda: 7) == 7 and here.batch_rows(8, 2) is None
    assert not torch.distributed.is_initialized()
