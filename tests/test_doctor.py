"""The report names every part, and says why one is missing."""

import sys
import types

import pytest
import torch

import mixfast
from mixfast import doctor
from mixfast.ops import _native


def test_report_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    report = capsys.readouterr().out
    for word in (mixfast.__version__, torch.__version__, "_mixfast_C", "_mixfast_cuda", "MIXFAST_CUDA", "threads"):
        assert word in report


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--help"])
    text = capsys.readouterr().out
    assert "usage: python -m mixfast.doctor" in text and "compiled modules" not in text


def test_table_is_what_backends_says() -> None:
    table = dict(doctor.operations())
    for operation, row in mixfast.backends().items():
        for backend, reason in row.items():
            shown = table[f"{operation} {backend}"]
            assert shown == reason if reason else shown.startswith("available")


@pytest.mark.parametrize("gpu", [False, True])
def test_table_says_what_auto_takes(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"cuda": None, "triton": None, "cpu": None, "reference": None}
    row |= {} if gpu else {"cuda": "no GPU", "triton": "no GPU"}
    monkeypatch.setattr(mixfast, "backends", lambda: {"masked_upsample_pool": row})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    shown = [value for _, value in doctor.operations()]
    reference = "available; auto for cpu tensors, after cpu"
    if gpu:
        assert shown == [
            "available; auto for cuda tensors",
            "available; auto for cuda tensors, after cuda",
            "available; auto for cpu tensors",
            f"{reference}; auto for cuda tensors, after cuda and triton",
        ]
    else:
        assert shown == ["no GPU", "no GPU", "available; auto for cpu tensors", reference]


def test_compiled_backend_is_available() -> None:
    """Everything else would skip without it."""
    assert _native.cpu is not None, _native.cpu_error
    assert {row["cpu"] for row in mixfast.backends().values() if "cpu" in row} == {None}


def test_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXFAST_CUDA", raising=False)
    monkeypatch.setenv("MIXFAST_BACKEND", "reference")
    rows = dict(doctor.environment())
    assert rows["MIXFAST_BACKEND"] == "reference"
    assert rows["MIXFAST_CUDA"].startswith("not set: auto")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "_mixfast_cuda is not installed"),
        (types.SimpleNamespace(ABI=0, __file__="old.so"), f"old.so has interface 0, this source needs {_native.ABI}"),
    ],
    ids=["absent", "stale"],
)
def test_reason_for_a_missing_module(module: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_mixfast_cuda", module)
    found, error = _native._load("_mixfast_cuda")
    assert found is None and reason in error and "pip install ." in error
    monkeypatch.setattr(_native, "cuda", found)
    monkeypatch.setattr(_native, "cuda_error", error)
    assert dict(doctor.modules())["_mixfast_cuda"] == error


def test_module_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(ABI=1, __file__="here.so", archs="80-real,90-real,90-virtual")
    monkeypatch.setattr(_native, "cuda", module)
    assert dict(doctor.modules())["_mixfast_cuda"] == "interface 1 from here.so for sm_80 sm_90 compute_90 (PTX)"
