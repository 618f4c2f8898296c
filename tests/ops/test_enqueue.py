"""enqueue_: every backend against plain loops; what it is to torch; what it refuses."""

from typing import Any

import pytest
import torch

import mixfast
from mixfast.losses import unit
from mixfast.ops.enqueue import _operators
from tests.backends import device_of, each_backend, skip_if_refused
from tests.ops.enqueueing import CASES, DTYPES, check, draw, enqueue

ones, zeros = torch.ones, torch.zeros


@each_backend("enqueue")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(backend: str, name: str, normalize: bool, rng: torch.Generator) -> None:
    given = draw(CASES[name], torch.float32, torch.float32, rng)
    for listed in (False, True):
        check(enqueue(given, normalize, backend, listed=listed), given, normalize)


@each_backend("enqueue")
@pytest.mark.parametrize("queue_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(backend: str, dtype: torch.dtype, queue_dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused("enqueue", backend, dtype, queue_dtype)
    given = draw(CASES["different-queues"], dtype, queue_dtype, rng)
    for normalize in (True, False):
        check(enqueue(given, normalize, backend, listed=False), given, normalize)


@each_backend("enqueue")
def test_rows_are_normalised_as_by_unit(backend: str, rng: torch.Generator) -> None:
    """Short rows too: below a length of 1e-12 they stay short, and zero stays zero."""
    rows = torch.randn(5, 24, generator=rng) * torch.tensor([1.0, 1e-10, 1e-14, 0.0, 1e10])[:, None]
    given = {"queues": [zeros(5, 24)], "keys": [rows], "pointers": torch.tensor([0])}
    queues, _ = enqueue(given, True, backend, listed=False)
    torch.testing.assert_close(queues[0], unit(rows), rtol=3e-7, atol=0)


@each_backend("enqueue")
def test_many_pushes(backend: str, rng: torch.Generator) -> None:
    """The ring after 40 pushes of other sizes than divide it; keys and queues that other tensors share."""
    device, ring, place = device_of(backend), [-1.0] * 11, 0
    memory = torch.full((13, 2), -1.0, device=device)
    queue, pointer = memory[1:12], torch.zeros((), dtype=torch.int64, device=device)
    for step in range(40):
        count = 1 + step % 5
        keys = torch.arange(count, device=device)[:, None] + torch.full((1, 4), 10.0 * step, device=device)
        mixfast.enqueue_([queue], [keys[:, ::2]], [pointer], normalize=False, backend=backend)
        for i in range(count):
            ring[(place + i) % 11] = 10.0 * step + i
        place = (place + count) % 11
    assert pointer.item() == place
    assert queue.tolist() == [[value] * 2 for value in ring]
    assert memory[0].tolist() == memory[12].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("threads", [1, 3])
def test_large_queues_on_several_threads(threads: int, rng: torch.Generator) -> None:
    given = draw(([3000, 500], [2048, 500], [2500, 3], 64), torch.float32, torch.float16, rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = [enqueue(given, True, name, listed=False) for name in ("cpu", "reference")]
    finally:
        torch.set_num_threads(before)
    assert results[0][1] == results[1][1]
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


@each_backend("enqueue", but=("reference",))
@pytest.mark.parametrize("listed", [False, True])
def test_opcheck(backend: str, listed: bool, rng: torch.Generator) -> None:
    device = device_of(backend)
    queues, keys = [zeros(7, 5, device=device), zeros(4, 5, device=device)], [ones(4, 5, device=device)] * 2
    pointers = [torch.tensor(p, device=device) for p in ((5, 3) if listed else ([5, 3],))]
    torch.library.opcheck(_operators.enqueue, (queues, keys, pointers, True, backend))


@each_backend("enqueue")
def test_compile_whole_graph(backend: str, rng: torch.Generator) -> None:
    """Reads and writes of a queue keep their order in a compiled graph, and its caller sees them."""
    device = device_of(backend)

    def step(queue: torch.Tensor, pointer: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = queue.sum()
        mixfast.enqueue_([queue], [keys * 2], [pointer], normalize=False, backend=backend)
        return before, queue.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    queue, pointer = zeros(5, 2, device=device), torch.tensor(4, device=device)
    for total in (12.0, 24.0):
        before, after = compiled(queue, pointer, ones(3, 2, device=device))
        assert (before.item(), after.item(), queue.sum().item()) == (total - 12, min(total, 20), min(total, 20))
    assert pointer.item() == 0


@each_backend("enqueue")
def test_autograd_notices_that_a_queue_has_changed(backend: str) -> None:
    queue = ones(4, 2, device=device_of(backend))
    query = ones(2, device=queue.device).requires_grad_()
    score = (queue @ query).sum()
    key = ones(1, 2, device=queue.device).requires_grad_()
    mixfast.enqueue_([queue], [key], torch.zeros(1, dtype=torch.int64, device=queue.device), backend=backend)
    assert not queue.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.backward()


@each_backend("enqueue", but=("reference",))
def test_vmap_is_refused(backend: str) -> None:
    device = device_of(backend)
    pointer = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(NotImplementedError, match=r"enqueue_: vmap is not supported\. Pass .* as further queues"):
        torch.func.vmap(lambda queue, keys: mixfast.enqueue_([queue], [keys], pointer, backend=backend))(
            zeros(2, 3, 4, device=device), ones(2, 1, 4, device=device)
        )


def good() -> dict[str, Any]:
    return {"queues": [zeros(3, 4), zeros(2, 4)], "keys": [ones(3, 4), ones(1, 4)], "pointers": torch.tensor([0, 1])}


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "queues-tensor",
        {"queues": zeros(2, 3, 4)},
        TypeError,
        r"queues must be a sequence .* got Tensor\. Pass \[queue\]",
    ),
    ("queues-none", {"queues": []}, ValueError, r"queues must hold at least one queue"),
    ("queue-number", {"queues": [1, 2]}, TypeError, r"queues\[0\] must be a tensor; got int"),
    ("queue-int", {"queues": [zeros(3, 4).long()] * 2}, TypeError, r"queues\[0\] must be float16, .* got torch.int64"),
    ("queue-1d", {"queues": [zeros(3, 4), zeros(4)]}, ValueError, r"queues\[1\] must be a dense matrix .* \[4\]"),
    (
        "queue-empty",
        {"queues": [zeros(0, 4), zeros(2, 4)]},
        ValueError,
        r"queues\[0\] needs at least one row .*\[0, 4\]",
    ),
    ("queue-dims", {"queues": [zeros(3, 4), zeros(2, 5)]}, ValueError, r"share D = 4; got queues\[1\] \[2, 5\]"),
    ("queue-dtypes", {"queues": [zeros(3, 4), zeros(2, 4).half()]}, TypeError, r"all queues must share one dtype"),
    (
        "queue-devices",
        {"queues": [zeros(3, 4), zeros(2, 4, device="meta")]},
        ValueError,
        r"queues must be on one device",
    ),
    ("queue-strides", {"queues": [zeros(4, 3).T, zeros(2, 4)]}, ValueError, r"queues\[0\] must be contiguous"),
    (
        "queue-grad",
        {"queues": [zeros(3, 4).requires_grad_(), zeros(2, 4)]},
        ValueError,
        r"queues\[0\] is written .*detach",
    ),
    ("keys-tensor", {"keys": ones(2, 3, 4)}, TypeError, r"keys must be a sequence of tensors .* Pass \[keys\]"),
    ("keys-few", {"keys": [ones(3, 4)]}, ValueError, r"keys must hold one tensor for each of the 2 queues; got 1"),
    ("keys-dim", {"keys": [ones(3, 4), ones(1, 3)]}, ValueError, r"keys\[1\] must be \[B, D\] with D = 4 .*\[1, 3\]"),
    (
        "keys-rows",
        {"keys": [ones(3, 4), ones(3, 4)]},
        ValueError,
        r"keys\[1\] has 3 rows, more than the 2 of queues\[1\]",
    ),
    ("keys-dtypes", {"keys": [ones(3, 4), ones(1, 4).half()]}, TypeError, r"all keys must share one dtype"),
    (
        "keys-device",
        {"keys": [ones(3, 4, device="meta")] * 2},
        ValueError,
        r"keys\[0\] must be on the device of queues",
    ),
    ("pointers-short", {"pointers": torch.tensor([0])}, ValueError, r"pointers must be \[Q\] = \[2\] or .* got \[1\]"),
    ("pointers-number", {"pointers": 0}, TypeError, r"pointers must be an int64 tensor \[Q\] .* got int"),
    ("pointers-few", {"pointers": [torch.tensor(0)]}, ValueError, r"pointers must hold one tensor .* 2 queues; got 1"),
    (
        "pointers-1d",
        {"pointers": [torch.tensor([0])] * 2},
        ValueError,
        r"pointers\[0\] must be a tensor \[\]; got \[1\]",
    ),
    ("pointers-float", {"pointers": zeros(2)}, TypeError, r"pointers must be int64; got torch.float32"),
    ("pointers-device", {"pointers": zeros(2, device="meta").long()}, ValueError, r"pointers must be on the device"),
    ("backend", {"backend": "gpu"}, ValueError, r"backend must be auto, .*reference; got 'gpu'"),
]


@pytest.mark.parametrize(("change", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    mixfast.enqueue_(**good())
    with pytest.raises(error, match=r"enqueue_?: .*" + message):
        mixfast.enqueue_(**{**good(), **change})
