"""valid_len of multi_queue_infonce: the first keys of a queue alone, by slicing it, and whatever lies beyond them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast
from mixfast.ops.infonce import _operators
from tests.backends import each_backend
from tests.ops.compare import SLACK, assert_no_worse
from tests.ops.infonce import (
    DTYPES,
    draw,
    gradients,
    multi_queue_infonce,
    place,
    row_losses,
    skip_if_refused,
    truth,
    weights_for,
)

# Rows, queues, keys, D, temperatures; several chunks of keys in all backends, and a queue that no term reads.
CASE = ([5, 40, 1, 33], [1, 0, 1, 2], [1100, 300, 40, 9], 24, [0.1, 0.07, 0.5, 0.2])
LENGTHS = {
    "one": [1, 1, 1, 1],
    "within-a-tile": [77, 130, 3, 0],
    "a-chunk-and-one": [513, 129, 32, 9],
    "all": [1100, 300, 40, 9],
}


def sliced(inputs: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    return {**inputs, "queues": [queue[: max(n, 1)] for queue, n in zip(inputs["queues"], lengths, strict=True)]}


def filling(inputs: dict[str, Any], lengths: list[int], beyond: float = math.nan) -> dict[str, Any]:
    """Queues of which only the first keys are there."""
    queues = [queue.clone() for queue in inputs["queues"]]
    for queue, n in zip(queues, lengths, strict=True):
        queue[n:] = beyond
    return {**inputs, "queues": queues, "valid_len": torch.tensor(lengths)}


def check_equals_the_sliced_queue(backend: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(CASE, dtype, rng)
    weights, lengths = weights_for(inputs, rng), LENGTHS[name]
    exact = {key: [each.double() for each in inputs[key]] for key in ("queries", "positives", "queues")}
    expected = gradients(sliced({**inputs, **exact}, lengths), weights, truth)
    theirs = gradients(sliced(inputs, lengths), weights, row_losses("reference"))
    ours = gradients(filling(inputs, lengths), weights, row_losses(backend))
    logits = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / min(inputs["temperature"])
    for key, value in expected.items():
        output = torch.promote_types(dtype, torch.float32) if key == "loss" else dtype
        slack = SLACK[output] + logits / (value.abs().max().item() if key == "loss" else 1)
        assert_no_worse(ours[key], theirs[key], value, slack, key)


def check_without_negatives(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Of the first queue none counts, which two of four terms read: their losses and gradients are zeros."""
    inputs = draw(([5, 40, 3, 33], [0, 1, 0, 1], [300, 200], 24, [0.1, 0.2, 0.5, 0.2]), dtype, rng)
    weights = weights_for(inputs, rng)
    results = gradients(filling(inputs, [0, 200]), weights, row_losses(backend))
    others = gradients(inputs, weights, row_losses(backend))
    empty = torch.cat([torch.full((n,), t in (0, 2)) for t, n in enumerate((5, 40, 3, 33))])
    for key, value in results.items():
        rows = torch.tensor([True, False, True, False]) if key == "d_temperature" else empty
        assert (value[rows] == 0).all(), key
        assert torch.equal(value[~rows], others[key][~rows]), key


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_equals_the_sliced_queue(backend: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused(backend, dtype)
    check_equals_the_sliced_queue(backend, name, dtype, rng)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_negatives_are_no_loss(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused(backend, dtype)
    check_without_negatives(backend, dtype, rng)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(backend: str, reduction: str, rng: torch.Generator) -> None:
    inputs, lengths = draw(CASE, torch.float32, rng), [0, 130, 3, 0]
    losses = multi_queue_infonce(**filling(inputs, lengths), reduction=reduction, backend=backend)
    rows = row_losses(backend)(filling(inputs, lengths))
    expected = torch.stack([row.mean() if reduction == "mean" else row.sum() for row in rows])
    torch.testing.assert_close(losses, expected, rtol=2e-6, atol=1e-6)
    assert losses[1] == 0 and losses[0] > 0


@each_backend("multi_queue_infonce")
def test_all_keys_are_the_same_bits_as_none_given(backend: str, rng: torch.Generator) -> None:
    inputs = draw(CASE, torch.float32, rng)
    weights = weights_for(inputs, rng)
    plain = gradients(inputs, weights, row_losses(backend))
    for key, value in gradients(filling(inputs, LENGTHS["all"]), weights, row_losses(backend)).items():
        assert torch.equal(value, plain[key]), key


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("list", [1, 2], TypeError, r"valid_len must be None or an int64 tensor \[2\]; got list"),
    ("float", torch.ones(2), TypeError, r"valid_len must be int64; got torch.float32\. Call \.long\(\)"),
    ("int32", torch.ones(2, dtype=torch.int32), TypeError, r"valid_len must be int64; got torch.int32"),
    ("0d", torch.tensor(2), ValueError, r"valid_len must be \[Q\] = \[2\], one number per queue; got \[\]"),
    ("long", torch.tensor([1, 2, 3]), ValueError, r"valid_len must be \[Q\] = \[2\].* got \[3\]"),
    ("device", torch.ones(2, dtype=torch.int64, device="meta"), ValueError, r"valid_len must be on the device of"),
]
VALUES = [
    ([-1, 6], r"valid_len\[0\] must be in \[0, 5\], as queues\[0\] has 5 keys; got -1"),
    ([5, 7], r"valid_len\[1\] must be in \[0, 6\], as queues\[1\] has 6 keys; got 7"),
]


def call(valid_len: Any, backend: str = "auto") -> Any:
    rows, queues = [torch.ones(3, 4), torch.ones(2, 4)], [torch.ones(5, 4), torch.ones(6, 4)]
    return mixfast.multi_queue_infonce(rows, rows, queues, [0, 1], valid_len=valid_len, backend=backend)


@pytest.mark.parametrize(("valid_len", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused(valid_len: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="multi_queue_infonce: " + message):
        call(valid_len)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("values", "message"), VALUES, ids=["negative", "large"])
def test_values_are_checked_on_the_cpu(backend: str, values: list[int], message: str) -> None:
    with pytest.raises(ValueError, match="multi_queue_infonce: " + message):
        call(torch.tensor(values), backend)


@each_backend("multi_queue_infonce", but=("cpu", "reference"))
def test_values_are_clamped_on_a_gpu(backend: str, rng: torch.Generator) -> None:
    check_clamped(backend, rng)


def check_clamped(backend: str, rng: torch.Generator) -> None:
    inputs = draw(([5, 4], [0, 1], [300, 200], 24, [0.1, 0.2]), torch.float32, rng)
    bad, good = torch.tensor([-(2**40), 2**40]), torch.tensor([0, 200])
    results = [multi_queue_infonce(**inputs, valid_len=lengths, backend=backend) for lengths in (bad, good)]
    assert torch.equal(*results)


@each_backend("multi_queue_infonce", but=("reference",))
def test_opcheck(backend: str, rng: torch.Generator) -> None:
    inputs = place(backend, draw(([4, 1], [1, 0], [9, 5], 8, [0.1, 0.2]), torch.float32, rng).values())
    queries, positives, queues, index, temperatures = inputs
    valid_len = place(backend, torch.tensor([3, 0]))
    arguments = (queries, None, temperatures, "mean", positives, queues, index, valid_len, True, backend)
    torch.library.opcheck(_operators.forward, arguments)
    torch.library.opcheck(_operators.check_values, (valid_len, None, [9, 5]))


@each_backend("multi_queue_infonce")
def test_compile_whole_graph_whatever_the_values(backend: str, rng: torch.Generator) -> None:
    inputs = draw(([4, 2], [1, 0], [9, 50], 8, [0.1, 0.2]), torch.float32, rng)
    queries, positives, queues, index, temperatures = place(backend, inputs.values())

    def losses(queries: list[Tensor], valid_len: Tensor) -> Tensor:
        return mixfast.multi_queue_infonce(
            queries, positives, queues, index, temperature=temperatures, valid_len=valid_len, backend=backend
        )

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    leaves = [query.requires_grad_() for query in queries]
    for step, lengths in enumerate(([0, 1], [9, 33], [4, 50])):
        valid_len = place(backend, torch.tensor(lengths))
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            ours = compiled(leaves, valid_len)
        theirs = losses(leaves, valid_len)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(each.sum(), leaves) for each in (ours, theirs)))
