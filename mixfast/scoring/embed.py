"""Embeddings of an image set as files, and their first two principal components."""

from pathlib import Path

import torch
from torch import Tensor

from mixfast.files import write_whole
from mixfast.scoring.features import Features

FORMATS = ("safetensors", "npy")


def principal_plane(features: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Features [N, D] in the plane of their first two principal components, and the share of variance on each.

    Signs are fixed so that the largest coordinate along each axis, by magnitude, is positive.

    Returns:
        float32 [N, 2] (zeros if the data have fewer than two dimensions), and two shares in [0, 1].
    """
    centred = (features - features.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(len(features), 2, dtype=torch.float64, device=features.device)
    count = min(2, len(s))
    plane[:, :count] = u[:, :count] * s[:count]
    plane *= plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()
    total = s.square().sum().clamp(min=1e-300)
    shares = [(s[i].square() / total).item() if i < len(s) else 0.0 for i in range(2)]
    return plane.float(), (shares[0], shares[1])


def write_embeddings(stem: Path, features: Features, labels: Tensor, form: str) -> list[Path]:
    """Write z [N, D], h [N, C] float32 and labels int64 [N]: stem.safetensors, or stem-z.npy, stem-h.npy and
    stem-labels.npy.

    Raises:
        ValueError: `form` is neither "safetensors" nor "npy".
    """
    tensors = {"z": features.z, "h": features.h, "labels": labels}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    if form == "safetensors":
        from safetensors.torch import save

        path = stem.with_name(stem.name + ".safetensors")
        write_whole(path, save(tensors, metadata={"format": "pt"}))
        return [path]
    if form == "npy":
        import numpy as np

        paths = [stem.with_name(f"{stem.name}-{name}.npy") for name in tensors]
        for path, tensor in zip(paths, tensors.values(), strict=True):
            np.save(path, tensor.numpy(), allow_pickle=False)
        return paths
    raise ValueError(f"write_embeddings: form must be one of {', '.join(FORMATS)}; got {form!r}")
