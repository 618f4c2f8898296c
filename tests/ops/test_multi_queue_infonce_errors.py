"""Bad input to multi_queue_infonce: each is refused with a message that names the argument and what was expected."""

from typing import Any

import pytest
import torch

from mixfast.ops.infonce import multi_queue_infonce


def good() -> dict[str, Any]:
    return {
        "queries": [torch.ones(3, 4), torch.ones(2, 4)],
        "positives": [torch.ones(3, 4), torch.ones(2, 4)],
        "queues": [torch.ones(5, 4), torch.ones(6, 4)],
        "queue_index": [0, 1],
    }


ones = torch.ones
half = torch.float16
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("queries-2d", {"queries": ones(3, 4)}, ValueError, r"queries must be T tensors .* tensor \[3, 4\].*\[queries\]"),
    ("queries-none", {"queries": None}, TypeError, r"queries must be T tensors \[N, D\] or .*; got NoneType"),
    ("queries-generator", {"queries": iter([])}, TypeError, r"queries must be T tensors .*; got list_iterator"),
    ("queries-empty", {"queries": []}, ValueError, r"queries must hold at least one term; got none"),
    ("queries-no-terms", {"queries": ones(0, 3, 4)}, ValueError, r"queries must hold at least one term"),
    ("queries-number", {"queries": [1.0, 2.0]}, TypeError, r"queries\[0\] must be a tensor; got float"),
    ("queries-1d", {"queries": [ones(3, 4), ones(4)]}, ValueError, r"queries\[1\] must be \[N, D\]; got 1-D \[4\]"),
    ("queries-first-1d", {"queries": [ones(4), ones(4)]}, ValueError, r"queries\[0\] must be \[N, D\]; got 1-D \[4\]"),
    ("queries-3d", {"queries": [ones(3, 4, 1)] * 2}, ValueError, r"queries\[0\] must be \[N, D\]; got 3-D"),
    (
        "queries-int",
        {"queries": [ones(3, 4).long()] * 2},
        TypeError,
        r"queries\[0\] must be float16, .* got torch.int64",
    ),
    ("queries-complex", {"queries": ones(2, 3, 4, dtype=torch.complex64)}, TypeError, r"queries must be float16"),
    ("queries-sparse", {"queries": [ones(3, 4).to_sparse()] * 2}, TypeError, r"queries\[0\] must be dense.*to_dense"),
    (
        "queries-dims",
        {"queries": [ones(3, 4), ones(2, 5)]},
        ValueError,
        r"all queries must share D = 4; got .* \[2, 5\]",
    ),
    ("queries-dtypes", {"queries": [ones(3, 4), ones(2, 4).half()]}, TypeError, r"all queries must share one dtype"),
    (
        "queries-devices",
        {"queries": [ones(3, 4), ones(2, 4, device="meta")]},
        ValueError,
        r"queries must be on one dev",
    ),
    ("no-rows", {"queries": [ones(0, 4), ones(2, 4)]}, ValueError, r"at least one row .* got rows \[0, 2\], D = 4"),
    ("no-dimension", {"queries": [ones(3, 0), ones(2, 0)]}, ValueError, r"one dimension; got rows \[3, 2\], D = 0"),
    ("positives-2d", {"positives": ones(3, 4)}, ValueError, r"positives must be T tensors .*pass \[positives\]"),
    ("positives-none", {"positives": None}, TypeError, r"positives must be T tensors .* got NoneType"),
    ("positives-number", {"positives": [ones(3, 4), 2]}, TypeError, r"positives\[1\] must be a tensor; got int"),
    (
        "positives-few",
        {"positives": [ones(3, 4)]},
        ValueError,
        r"positives must hold as many terms as queries, 2; got 1",
    ),
    (
        "positives-rows",
        {"positives": [ones(3, 4), ones(3, 4)]},
        ValueError,
        r"positives\[1\] must be .*\[2, 4\].*\[3, 4\]",
    ),
    (
        "positives-dim",
        {"positives": [ones(3, 5), ones(2, 4)]},
        ValueError,
        r"positives\[0\] must be \[N, D\] = \[3, 4\]",
    ),
    ("positives-stacked", {"positives": ones(2, 2, 4)}, ValueError, r"positives\[0\] must be .*\[3, 4\].*got \[2, 4\]"),
    (
        "positives-dtype",
        {"positives": [ones(3, 4).half()] * 2},
        TypeError,
        r"positives\[0\] must have the dtype of quer",
    ),
    ("positives-int", {"positives": [ones(3, 4).int()] * 2}, TypeError, r"positives\[0\] must be float16, bfloat16"),
    (
        "positives-device",
        {"positives": [ones(3, 4, device="meta")] * 2},
        ValueError,
        r"positives\[0\] must be on the dev",
    ),
    (
        "queues-tensor",
        {"queues": ones(5, 4)},
        TypeError,
        r"queues must be a sequence .*tensor \[5, 4\]\. Pass \[queue\]",
    ),
    ("queues-none", {"queues": None}, TypeError, r"queues must be a sequence of tensors \[K, D\]; got NoneType"),
    ("queues-empty", {"queues": []}, ValueError, r"queues must hold at least one queue; got none"),
    ("queue-number", {"queues": [1, 2]}, TypeError, r"queues\[0\] must be a tensor; got int"),
    (
        "queue-1d",
        {"queues": [ones(4), ones(6, 4)]},
        ValueError,
        r"queues\[0\] must be \[K, D\] with D = 4 .* got \[4\]",
    ),
    (
        "queue-dim",
        {"queues": [ones(5, 4), ones(4, 6)]},
        ValueError,
        r"queues\[1\] must be \[K, D\] with D = 4 .*\[4, 6\]",
    ),
    (
        "queue-empty",
        {"queues": [ones(0, 4), ones(6, 4)]},
        ValueError,
        r"queues\[0\] is empty: \[K, D\] = \[0, 4\]\. Fill",
    ),
    ("queue-int", {"queues": [ones(5, 4).int(), ones(6, 4)]}, TypeError, r"queues\[0\] must be float16"),
    ("queue-dtypes", {"queues": [ones(5, 4), ones(6, 4).half()]}, TypeError, r"all queues must share one dtype"),
    ("queue-double", {"queues": [ones(5, 4).double()] * 2}, TypeError, r"float64 goes with float64 only"),
    ("queue-device", {"queues": [ones(5, 4, device="meta")] * 2}, ValueError, r"queues\[0\] must be on the device of"),
    (
        "queue-grad",
        {"queues": [ones(5, 4, requires_grad=True)] * 2},
        ValueError,
        r"queues\[0\] receives no gradient.*detach",
    ),
    ("index-none", {"queue_index": None}, TypeError, r"queue_index must be a sequence of 2 integers; got NoneType"),
    ("index-tensor", {"queue_index": torch.tensor([0, 1])}, TypeError, r"queue_index must be .* Call \.tolist\(\)"),
    ("index-short", {"queue_index": [0]}, ValueError, r"queue_index must name one queue per term, 2; got 1"),
    ("index-float", {"queue_index": [0, 1.0]}, TypeError, r"queue_index\[1\] must be an integer; got 1\.0"),
    ("index-bool", {"queue_index": [True, False]}, TypeError, r"queue_index\[0\] must be an integer; got True"),
    ("index-large", {"queue_index": [0, 2]}, ValueError, r"queue_index\[1\] must be in \[0, 2\), .* got 2"),
    ("index-negative", {"queue_index": [-1, 0]}, ValueError, r"queue_index\[0\] must be in \[0, 2\), .* got -1"),
    ("temperature-zero", {"temperature": 0.0}, ValueError, r"temperature must be positive and finite; got 0\.0"),
    (
        "temperature-negative",
        {"temperature": [0.1, -1]},
        ValueError,
        r"temperature must be positive and finite; got -1",
    ),
    ("temperature-nan", {"temperature": float("nan")}, ValueError, r"temperature must be positive and finite; got nan"),
    (
        "temperature-text",
        {"temperature": "0.1"},
        TypeError,
        r"temperature must be a number, 2 numbers or .* got '0\.1'",
    ),
    ("temperature-bool", {"temperature": True}, TypeError, r"temperature must be a number, .* got True"),
    ("temperature-short", {"temperature": [0.1]}, ValueError, r"temperature must be one number or 2, .* got 1"),
    ("temperature-1d", {"temperature": ones(1)}, ValueError, r"must be \[T\] = \[2\], or a scalar \[\]; got \[1\]"),
    ("temperature-huge", {"temperature": 10**400}, ValueError, r"temperature must be positive and finite; got 1000"),
    ("temperature-int", {"temperature": torch.tensor([1, 1])}, TypeError, r"temperature tensor must be float16"),
    (
        "temperature-device",
        {"temperature": ones(2, device="meta")},
        ValueError,
        r"temperature must be on the device of",
    ),
    ("reduction", {"reduction": "avg"}, ValueError, r"reduction must be \"mean\", \"sum\" or \"none\"; got 'avg'"),
    ("reduction-none", {"reduction": None}, ValueError, r"reduction must be .* got None"),
    ("backend", {"backend": "gpu"}, ValueError, r"backend must be auto, .*reference; got 'gpu'"),
    ("backend-list", {"backend": ["cpu"]}, TypeError, r"backend must be auto, .*reference; got \['cpu'\]"),
    ("queue-d-k", {"queues": [ones(4, 9)] * 2}, ValueError, r"\[K, D\] with D = 4 .*got \[4, 9\]. Pass queues\[0\].T"),
]


@pytest.mark.parametrize(("change", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"multi_queue_infonce: .*" + message):
        multi_queue_infonce(**{**good(), **change})


def test_good_input_is_not_refused() -> None:
    assert multi_queue_infonce(**good()).shape == (2,)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("value", [0.0, -0.5, float("inf"), float("nan")])
def test_values_of_a_temperature_tensor_are_checked_on_the_cpu(backend: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"temperature\[1\] must be positive and finite; got"):
        multi_queue_infonce(**good(), temperature=torch.tensor([0.1, value]), backend=backend)


def test_a_named_backend_never_falls_back() -> None:
    elsewhere = {key: [t.to("meta") for t in tensors] for key, tensors in good().items() if key != "queue_index"}
    with pytest.raises(
        RuntimeError, match=r"no backend can run this call\n  cpu: (it runs on CPU tensors|.*not installed)"
    ):
        multi_queue_infonce(**elsewhere, queue_index=[0, 1], backend="cpu")
