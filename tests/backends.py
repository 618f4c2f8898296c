"""Runs a test once for each backend of an operation; one that this machine lacks is skipped with its own reason."""

import os

import pytest

import mixfast
from mixfast.ops import _dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def each_backend(operation: str, *, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Parametrises the argument `backend` over `mixfast.backends()[operation]`, less the names in `but`."""
    cases = []
    for name, reason in mixfast.backends()[operation].items():
        if name in but:
            continue
        marks = [pytest.mark.gpu] if device_of(name) == "cuda" else []
        if reason is not None:
            marks.append(pytest.mark.skip(reason=f"{name}: {reason}"))
        cases.append(pytest.param(name, marks=marks, id=name))
    return pytest.mark.parametrize("backend", cases)


def device_of(backend: str) -> str:
    """The type of the device whose tensors a backend takes; Triton's interpreter takes the CPU's."""
    return "cuda" if backend == "cuda" or (backend == "triton" and not INTERPRETED) else "cpu"


def refusal(operation: str, backend: str, *facts: object) -> str | None:
    """Why a backend refuses calls with these facts, dtypes mostly, on tensors of its own device."""
    reason: str | None = _dispatch.module(operation, backend).why_not(device_of(backend), *facts)
    return reason


def skip_if_refused(operation: str, backend: str, *facts: object) -> None:
    """Skips the test, with the backend's own reason."""
    reason = refusal(operation, backend, *facts)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
