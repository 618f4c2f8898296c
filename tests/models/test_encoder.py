"""models.encoder: which of its passes are compiled, and that they are the same passes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.models import Encoder, ModelConfig, build_encoder
from mixfast.run import engine
from tests.tiny_run import open_tiny

pytestmark = pytest.mark.slow


def build(splits: int) -> Encoder:
    config = ModelConfig(depth=8, width=8, dim=6, bn_splits=splits)
    return build_encoder(config, torch.Generator().manual_seed(0)).train()


@pytest.mark.parametrize(("splits", "backend"), [(1, "eager"), (2, "aot_eager")])
def test_compiled_passes_are_the_same_in_one_graph(
    splits: int, backend: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without splits all operators are torch's own."""

    def traced(function: Any, **options: Any) -> Any:
        return compiler(function, backend=backend, fullgraph=True, **options)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = build(splits), build(splits)
    compiled.compile_training()
    x = torch.randn(4, 3, 8, 8, generator=rng)
    for encoder in (plain, compiled):
        encoder(x, 2).z.square().sum().backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text
        )
    for ours, theirs in zip(compiled.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(compiled.pool(x), plain.pool(x), rtol=1e-5, atol=1e-6)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_training_alone_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(function: Any, dynamic: bool) -> Any:
        return lambda *given: passes.append(function) or function(*given)

    monkeypatch.setattr(torch, "compile", counted)
    runs = [
        open_tiny(tmp_path / wanted, "moco_unmix", train__compile=wanted, eval__diagnostics=())
        for wanted in ("on", "off")
    ]
    for run in runs:
        engine.train(run)
    # twelve steps of two passes with gradient and one without; the diagnostics of two epochs score a step twice, the
    # second time with fresh patches
    assert len(passes) == 3 * 12 + 3 * 2 * 2
    assert all(torch.equal(*pair) for pair in zip(*(run.method.state_dict().values() for run in runs), strict=True))
