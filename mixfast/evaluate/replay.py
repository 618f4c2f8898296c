"""evaluate replay: the step at which a run met a NaN or an infinity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from mixfast.errors import CheckpointError
from mixfast.evaluate.runs import MachineOptions, set_up_run
from mixfast.run.folder import RunFolder


@dataclass(frozen=True)
class Replay(MachineOptions):
    """Run the step again at which a run met a NaN or an infinity, and show where it begins."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # folder of the run; it holds nonfinite.pt


def replay(options: Replay) -> None:
    """Print the loss terms of the saved step, then let autograd name the operation that made the first NaN."""
    folder = RunFolder.open(options.run)
    path = folder.path / "nonfinite.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: this run met no NaN or infinity.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    setup = set_up_run(options.run, options)
    setup.load_method(state, path)
    setup.generators.load_state_dict(state["generators"])
    print(f"step {state['step']}, epoch {state['epoch']}: saved because {'; '.join(state['terms'][:5])}")
    for part in state["images"].to(setup.device).chunk(setup.config.train.accumulate):
        views = setup.views(part)
        with torch.autograd.set_detect_anomaly(True), setup.autocast():
            out = setup.method.step(views, setup.generators)
            for name, value in {"loss": out.loss.detach(), **out.parts}.items():
                print(f"  {name:<16} {value.item():.6g}")
            try:
                out.loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                print(f"  first in the backward pass: {error}")
                return
    norms = {n: p.grad.norm().item() for n, p in setup.method.named_parameters() if p.grad is not None}
    for name, value in sorted(norms.items(), key=lambda item: -abs(item[1]))[:5]:
        print(f"  gradient of {name}: norm {value:.6g}")
