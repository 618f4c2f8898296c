"""The losses under lightly's and solo-learn's names: the formulas written out in plain PyTorch, and the library itself
where it is installed; all in float64."""

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mixfast.adapters import MemoryBank, NTXentLoss, mocov2plus_loss_func, simclr_loss_func

N, D, K = 6, 5, 20
BACKENDS = ["auto", "reference"]  # the reference's backward pass reads the queue


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def rows(rng: torch.Generator, count: int, grad: bool = True) -> Tensor:
    return torch.randn(count, D, generator=rng, dtype=torch.float64).requires_grad_(grad)


def against_queue(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's equation 1 by cross entropy; queue [D, K]."""
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def within_batch(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1, anchor by anchor; z [2N, D] unit rows."""
    count, losses = len(z) // 2, []
    for i in range(2 * count):
        others = [j for j in range(2 * count) if j != i]
        terms = (z[others] @ z[i] / temperature).exp()
        losses.append(-(terms[others.index((i + count) % (2 * count))] / terms.sum()).log())
    return torch.stack(losses).mean()


class Ring:
    """lightly's memory bank as lists: what does not fit before the end is dropped, and the start comes next."""

    def __init__(self, bank: Tensor):
        self.keys, self.place = list(bank.clone()), 0

    def push(self, keys: Tensor) -> None:
        for key in keys:
            if self.place < len(self.keys):
                self.keys[self.place] = key
            self.place += 1
        if self.place >= len(self.keys):
            self.place = 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bank_and_its_loss_over_several_steps(
    rng: torch.Generator, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXFAST_BACKEND", backend)
    loss = NTXentLoss(0.2, memory_bank_size=(K, D)).double()
    assert loss.memory_bank is not None
    ring = Ring(loss.memory_bank.bank)
    for count in (6, 8, 6, 5, 20, 3, 30, 6):  # exactly full at the third; dropped keys; more keys than rows
        out0, out1 = rows(rng, count), rows(rng, count)
        unit0, unit1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        expected = against_queue(unit0, unit1, torch.stack(ring.keys, dim=1), 0.2)
        actual = loss(out0, out1)
        close(actual, expected)
        close(torch.autograd.grad(actual, [out0, out1]), torch.autograd.grad(expected, [out0, out1]))
        ring.push(unit1.detach())
        close(loss.memory_bank.bank, torch.stack(ring.keys))
        assert loss.memory_bank.bank_ptr.tolist() == [ring.place]


def test_the_bank_stays_where_no_gradient_is_wanted(rng: torch.Generator) -> None:
    loss = NTXentLoss(memory_bank_size=(K, D)).double()
    before = loss.state_dict()["memory_bank.bank"].clone()
    loss(rows(rng, N, grad=False), rows(rng, N))
    with torch.no_grad():
        loss(rows(rng, N), rows(rng, N))
    assert torch.equal(loss.state_dict()["memory_bank.bank"], before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_bank_goes_where_the_rows_are(rng: torch.Generator) -> None:
    here = NTXentLoss(memory_bank_size=(K, D))
    there = copy.deepcopy(here)
    for _ in range(5):
        views = rows(rng, N).float(), rows(rng, N).float()
        torch.testing.assert_close(there(*(view.cuda() for view in views)).cpu(), here(*views), rtol=1e-3, atol=1e-3)
    assert there.memory_bank is not None and there.memory_bank.bank.is_cuda and there.memory_bank.bank_ptr.is_cuda


def test_the_bank_is_saved(rng: torch.Generator) -> None:
    first, second = (NTXentLoss(memory_bank_size=(K, D)).double() for _ in range(2))
    first(rows(rng, N), rows(rng, N))
    assert set(first.state_dict()) == {"memory_bank.bank", "memory_bank.bank_ptr"}
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        views = rows(rng, N), rows(rng, N)
        assert torch.equal(first(*views), second(*views))
    assert NTXentLoss().state_dict() == {}


def test_without_a_bank(rng: torch.Generator) -> None:
    out0, out1 = rows(rng, N), rows(rng, N)
    expected = within_batch(F.normalize(torch.cat([out0, out1]), dim=1), 0.3)
    for size in (0, [0]):
        actual = NTXentLoss(0.3, size)(out0, out1)
        close(actual, expected)
        close(torch.autograd.grad(actual, [out0, out1]), torch.autograd.grad(expected, [out0, out1], retain_graph=True))


@pytest.mark.parametrize("size", [0, (K, D)], ids=str)
def test_equals_lightly(rng: torch.Generator, size: Any) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed: pip install mixfast[bench]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs_class = importlib.import_module("lightly.loss").NTXentLoss
    made: list[nn.Module] = []
    for kind in (NTXentLoss, theirs_class):
        torch.manual_seed(3)
        made.append(kind(0.2, size).double())
    ours, theirs = made
    for count in (6, 8, 6, 5, 3, 30, 6):
        views = rows(rng, count), rows(rng, count)
        losses = ours(*views), theirs(*views)
        close(*losses)
        close(*(torch.autograd.grad(loss, views) for loss in losses))
    if size:
        close(ours.memory_bank.bank, theirs.memory_bank.bank)


@pytest.mark.parametrize("transposed", [False, True])
def test_solo_learns_moco(rng: torch.Generator, transposed: bool) -> None:
    query, key, queue = (F.normalize(rows(rng, count), dim=1) for count in (N, N, K))
    queue = queue.detach().T if transposed else queue.detach().T.contiguous()
    expected, actual = (loss(query, key, queue, 0.2) for loss in (against_queue, mocov2plus_loss_func))
    close(actual, expected)
    close(torch.autograd.grad(actual, [query, key]), torch.autograd.grad(expected, [query, key]))


def test_solo_learns_simclr(rng: torch.Generator) -> None:
    z, images = rows(rng, 2 * N), torch.tensor([7, 3, 9, 0, 4, 2])
    unit, same = F.normalize(z, dim=1), images.repeat(2)[:, None] == images.repeat(2)
    similar = (unit @ unit.T / 0.2).exp()
    positive = (similar * (same & ~torch.eye(2 * N, dtype=torch.bool))).sum(dim=1)
    expected = -(positive / (positive + (similar * ~same).sum(dim=1))).log().mean()  # by masks, as it is written there
    actual = simclr_loss_func(z, images.repeat(2), 0.2)
    close(actual, expected)
    close(torch.autograd.grad(actual, z), torch.autograd.grad(expected, z))


class Sizes(TorchDispatchMode):
    """Notes the operators whose outputs hold at least `least` numbers."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.found = least, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.least:
            self.found.add(func.name())
        return out


@pytest.mark.parametrize("case", ["lightly", "solo-learn", "solo-learn transposed"])
def test_the_queue_is_not_copied(rng: torch.Generator, case: str) -> None:
    size = 4096
    views = rows(rng, N), rows(rng, N)
    queue = torch.randn(size, D, generator=rng, dtype=torch.float64)
    loss: Callable[..., Tensor] = NTXentLoss(memory_bank_size=(size, D)).double()
    if case != "lightly":
        given = queue.T if case.endswith("transposed") else queue.T.contiguous()

        def loss(*views: Tensor) -> Tensor:
            return mocov2plus_loss_func(*views, given)

    with Sizes(size * D) as sizes:
        torch.autograd.grad(loss(*views), views)
    views_of_it = {"aten::t", "aten::transpose.int", "aten::permute", "aten::detach", "aten::alias"}
    assert sizes.found <= views_of_it | {"aten::index_copy_"}  # the bank, in place


def test_a_bank_as_solo_learns_queue(rng: torch.Generator) -> None:
    bank = MemoryBank(K, D).double()
    bank.push_(F.normalize(rows(rng, N), dim=1))
    query, key = (F.normalize(rows(rng, N), dim=1) for _ in range(2))
    close(mocov2plus_loss_func(query, key, bank.negatives), against_queue(query, key, bank.bank.T, 0.1))
    assert bank.negatives.shape == (D, K) and bank.negatives.data_ptr() == bank.bank.data_ptr()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"temperature": 0.0}, ValueError, r"temperature must be at least 1e-8; got 0\.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be at least 1e-8; got nan"),
        ({"memory_bank_size": 4096}, ValueError, r"must be \(K, D\), both positive, or 0 for no bank; got 4096"),
        ({"memory_bank_size": (4096, 0)}, ValueError, r"both positive, or 0 for no bank; got \(4096, 0\)"),
        ({"memory_bank_size": (4, 4, 4)}, ValueError, r"got \(4, 4, 4\)"),
        ({"gather_distributed": True}, NotImplementedError, "In one process False is the same"),
    ],
)
def test_bad_arguments_of_lightlys_loss(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NTXentLoss(**arguments)


@pytest.mark.parametrize(
    "images, message",
    [
        ([0, 1, 2, 0, 1], r"z must be \[2N, D\] and indexes \[2N\]; got \[6, 5\] and \[5\]"),
        ([0, 1, 2, 0, 2, 1], "must be those of two views"),
        ([0, 1, 0, 0, 1, 0], "must be those of two views"),  # labels, or an image that is there twice
        ([0, 0, 0, 0, 0, 0], "must be those of two views"),
    ],
)
def test_other_indexes_than_those_of_two_views_are_refused(
    rng: torch.Generator, images: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simclr_loss_func(rows(rng, 6), torch.tensor(images))


def test_several_processes_are_refused(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match=r"there are 2 processes\. Keep solo-learn's function"):
        simclr_loss_func(rows(rng, 4), torch.tensor([0, 1, 0, 1]))
