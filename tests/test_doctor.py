"""The report names every part, and says why one is missing."""

import sys
import types

import pytest
import torch

import mixfast
from mixfast import doctor
from mixfast.ops import _native


def test_report_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main()
    report = capsys.readouterr().out
    for word in (mixfast.__version__, torch.__version__, "_mixfast_C", "_mixfast_cuda", "MIXFAST_CUDA", "threads"):
        assert word in report


def test_table_is_what_backends_says() -> None:
    table = dict(doctor.operations())
    for operation, row in mixfast.backends().items():
        for backend, reason in row.items():
            assert table[f"{operation} {backend}"] == (reason or "available")
    assert table["masked_upsample_pool reference"] == table["multi_queue_infonce reference"] == "available"


def test_compiled_backend_is_available() -> None:
    """Everything else would skip without it."""
    assert _native.cpu is not None, _native.cpu_error
    assert all(row["cpu"] is None for row in mixfast.backends().values())


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
        (types.SimpleNamespace(ABI=_native.ABI - 1, __file__="old.so"), "old.so has interface 0, this source needs 1"),
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
