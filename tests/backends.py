"""Runs a test once for each backend of an operation; one that this machine lacks is skipped with its own reason."""

import pytest

import mixfast


def each_backend(operation: str, *, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Parametrises the argument `backend` over `mixfast.backends()[operation]`, less the names in `but`."""
    cases = []
    for name, reason in mixfast.backends()[operation].items():
        if name in but:
            continue
        marks = [pytest.mark.gpu] if name in ("cuda", "triton") else []
        if reason is not None:
            marks.append(pytest.mark.skip(reason=f"{name}: {reason}"))
        cases.append(pytest.param(name, marks=marks, id=name))
    return pytest.mark.parametrize("backend", cases)
