"""Files hold the features; the plane is that of the first two principal components."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mixfast.scoring.embed import principal_plane, write_embeddings
from mixfast.scoring.features import Features


def test_both_formats_hold_the_same(tmp_path: Path, rng: torch.Generator) -> None:
    features = Features(torch.randn(5, 3, generator=rng), torch.randn(5, 4, generator=rng))
    labels = torch.tensor([1, -1, 0, 2, 2])
    before = os.umask(0o027)
    try:
        (path,) = write_embeddings(tmp_path / "v1.2-test", features, labels, "safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.name == "v1.2-test.safetensors"
    stored = load_file(path)
    paths = write_embeddings(tmp_path / "v1.2-test", features, labels, "npy")
    assert [p.name for p in paths] == [f"v1.2-test-{name}.npy" for name in ("z", "h", "labels")]
    assert set(stored) == {"z", "h", "labels"}
    for name, expected in (("z", features.z), ("h", features.h), ("labels", labels)):
        assert torch.equal(stored[name], expected)
        assert torch.equal(torch.from_numpy(np.load(tmp_path / f"v1.2-test-{name}.npy")), expected)
    with pytest.raises(ValueError, match="form must be one of safetensors, npy; got 'csv'"):
        write_embeddings(tmp_path / "x", features, labels, "csv")


def test_the_plane_keeps_most_of_the_variance(rng: torch.Generator) -> None:
    features = torch.randn(60, 5, generator=rng) @ torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.5, 0.1])) + 3
    plane, shares = principal_plane(features)
    values, vectors = torch.linalg.eigh(torch.cov(features.T.double()))
    assert shares == pytest.approx((values[[-1, -2]] / values.sum()).tolist())
    for column in (0, 1):
        along = (features.double() - features.double().mean(0)) @ vectors[:, -1 - column]
        along = along if along[along.abs().argmax()] > 0 else -along
        torch.testing.assert_close(plane[:, column].double(), along, rtol=1e-4, atol=1e-4)


def test_flat_data_have_a_plane(rng: torch.Generator) -> None:
    line = torch.linspace(-1, 2, 7)[:, None] * torch.tensor([[3.0, 4.0]])
    plane, shares = principal_plane(line)
    torch.testing.assert_close(plane[:, 0].abs(), 5 * (torch.linspace(-1, 2, 7) - 0.5).abs(), rtol=1e-5, atol=1e-5)
    assert plane[:, 1].abs().max() < 1e-5 and shares == pytest.approx((1, 0), abs=1e-9)
    assert principal_plane(torch.ones(4, 1))[0].tolist() == [[0, 0]] * 4
