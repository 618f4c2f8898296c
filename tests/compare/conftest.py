"""What the tests of the comparison share."""

import pytest

from mixfast.compare import curves


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer than all else that a comparison without maps does."""
    for name in ("knn", "losses"):
        monkeypatch.setattr(curves, name, lambda *_: True)
