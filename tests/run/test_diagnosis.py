"""The diagnostics of a run: what is written, and that looking changes nothing."""

import copy
from pathlib import Path

import pytest
import torch

from mixfast import methods
from mixfast.run.diagnosis import diagnose, warning
from tests.tiny_run import assert_same, open_tiny


@pytest.mark.parametrize("name", methods.names())
def test_diagnose_moves_nothing(name: str, tmp_path: Path) -> None:
    run = open_tiny(tmp_path, name)
    before = copy.deepcopy({key: value for key, value in run.state_dict().items() if key != "metrics_bytes"})
    numbers, again = diagnose(run), diagnose(run)
    after = {key: value for key, value in run.state_dict().items() if key != "metrics_bytes"}
    assert_same(before, after)
    assert numbers == again and all(torch.tensor(list(numbers.values())).isfinite())
    assert run.method.training


def test_terms_of_a_method_with_queues(tmp_path: Path) -> None:
    numbers = diagnose(open_tiny(tmp_path, "approach1"))
    terms = ("original", "mixed", "global", "local", "local_global")
    assert {key for key in numbers if key.startswith("top1_")} == {
        f"{kind}_{term}" for kind in ("top1", "top1_other") for term in terms
    }
    assert numbers["queue_age"] == 64 / 16


def test_a_collapsed_encoder_is_named(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "moco")
    assert warning(diagnose(run)) is None
    head = run.method.encoder.head
    with torch.no_grad():
        head.weight.mul_(1e-3)
        head.bias.fill_(1.0)
    note = warning(diagnose(run))
    assert note is not None and "std of z is 0.0" in note
