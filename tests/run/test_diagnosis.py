"""The diagnostics of a run: what is written, and that looking changes nothing."""

import copy
from pathlib import Path

import pytest
import torch

from mixfast import methods
from mixfast.mix import box_mask
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
        f"{kind}_{term}" for kind in ("top1", "top1_other", "top1_fresh") for term in terms
    }
    assert numbers["queue_age"] == 64 / 16


def test_fresh_patches_show_views_that_appear_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step sees the same views and boxes, and within these the patches of views drawn anew."""
    run = open_tiny(tmp_path, "approach1", method__patch="other_view")
    real, seen = run.method.step, []
    monkeypatch.setattr(run.method, "step", lambda views, generators: seen.append(views) or real(views, generators))
    diagnose(run)
    first, second = seen
    assert {name for name, view in first.items() if not torch.equal(view, second[name])} == {"query_mixed", "key_mixed"}
    for name, donor in (("query", "key"), ("key", "query")):
        inside = box_mask(first[f"boxes_{name}_mixed"], (16, 16))[:, None]
        mixture, fresh = first[f"{name}_mixed"], second[f"{name}_mixed"]
        assert torch.equal(torch.where(inside, 0.0, mixture), torch.where(inside, 0.0, fresh))
        changed = torch.where(inside, (fresh - first[donor]).abs(), 0.0).amax(dim=(1, 2, 3))
        assert (changed > 0.01).float().mean() > 0.8


@pytest.mark.parametrize(
    ("name", "changes"),
    [("moco", {}), ("approach1", {"method__mixture": "none"}), ("approach1", {"method__mixture": "saliency"})],
    ids=str,
)
def test_without_patches_to_replace_there_is_no_such_number(name: str, changes: dict[str, str], tmp_path: Path) -> None:
    assert not [key for key in diagnose(open_tiny(tmp_path, name, **changes)) if key.startswith("top1_fresh")]


def test_a_collapsed_encoder_is_named(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "moco")
    assert warning(diagnose(run)) is None
    head = run.method.encoder.head
    with torch.no_grad():
        head.weight.mul_(1e-3)
        head.bias.fill_(1.0)
    note = warning(diagnose(run))
    assert note is not None and "std of z is 0.0" in note
