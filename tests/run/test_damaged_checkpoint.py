"""A checkpoint that is damaged, edited, or not finite is named, and never used."""

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.errors import CheckpointError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.run import checkpoint, engine
from mixfast.run.state import Run
from mixfast.train.__main__ import main as train
from tests.tiny_run import assert_same, last_state, open_tiny, records, words

pytestmark = pytest.mark.usefixtures("command_settings")

State = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of moco of two epochs: previous.pt is of step 4, last.pt of step 8."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train([*words(out, "moco", train__epochs=2, eval__every=0), "--eval.no-baselines"]) == 0
    return out


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def saved(trained: Path) -> State:
    return checkpoint.load(trained / "checkpoints" / "last.pt")


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of that configuration, in a folder of its own."""
    changes = {"train__epochs": 2, "eval__every": 0}
    return open_tiny(tmp_path_factory.mktemp("other") / "run", "moco", **changes)


def test_flipped_bits_and_zeroed_blocks_are_noticed_or_harmless(tmp_path: Path, saved: State) -> None:
    """100 single bits and 20 blocks of 4 KiB, all over the file."""
    path = checkpoint.save(tmp_path, saved)
    whole, draw = path.read_bytes(), random.Random(0)
    state, noticed = checkpoint.load(path), 0
    for trial in range(120):
        content = bytearray(whole)
        if trial < 100:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            start = draw.randrange(len(content))
            content[start : start + 4096] = bytes(len(content[start : start + 4096]))
        path.write_bytes(content)
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            noticed += 1
        else:
            assert_same(found, state)
    assert noticed > 84  # padding between parts is the rest


def flip(path: Path) -> None:
    """Change a bit in the middle of the file, where the weights are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_previous_one_is_taken_in_place_of_a_damaged_one(folder: Path, trained: Path, capsys: Any) -> None:
    last, previous = (folder / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    flip(last)
    assert evaluate(["knn", str(folder), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "last.pt cannot be read (bits of its part" in printed and "previous.pt is taken in its place" in printed
    assert "epoch 1, step 4" in printed
    assert evaluate(["knn", str(last), "--threads", "1"]) == 4  # named, so nothing stands in for it
    assert "--resume " in capsys.readouterr().err
    assert train(["--resume", str(last)]) == 4
    assert train(["--resume", str(folder)]) == 0
    assert "previous.pt is taken in its place, at step 4" in capsys.readouterr().out
    assert_same(last_state(folder), last_state(trained))
    assert records(folder) == records(trained)
    assert checkpoint.load(previous)["step"] == 4 and (folder / "checkpoints" / "damaged.pt").is_file()


def test_nothing_stands_in_where_both_are_damaged(folder: Path, capsys: Any) -> None:
    for name in ("last.pt", "previous.pt"):
        flip(folder / "checkpoints" / name)
    files = sorted(folder.rglob("*"))
    assert train(["--resume", str(folder)]) == 4 and "cannot be read" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == files


def leaves(state: State, name: str = "") -> Iterator[tuple[str, State, Any]]:
    """Every entry that is no dictionary: its dotted name, the dictionary that holds it, its key there."""
    for key, value in state.items():
        where = f"{name}.{key}" if name else str(key)
        if isinstance(value, dict) and value:
            yield from leaves(value, where)
        else:
            yield where, state, key


def edited(path: Path, edit: Callable[[State], None], sealed: bool) -> None:
    """Edit a checkpoint as a person with torch does; `sealed`: with a list of entries that agrees."""
    state = torch.load(path, weights_only=True)
    edit(state)
    if sealed:
        del state["format"], state["contents"]
        checkpoint.save(path.parent, state)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("sealed", [False, True])
def test_missing_entries_are_named(sealed: bool, run: Run, saved: State, tmp_path: Path) -> None:
    for name in saved:
        path = checkpoint.save(tmp_path, saved)
        edited(path, lambda state, name=name: state.pop(name), sealed)  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=rf"\b{name}\b"):
            run.load(path)


@pytest.mark.parametrize("value", ["x", None, 1.5, -7, [1], {}, torch.ones(3)], ids=str)
def test_entries_of_another_type_are_named(value: Any, run: Run, saved: State) -> None:
    for name in saved:
        if name == "seconds" and isinstance(value, float):
            continue  # that is one
        with pytest.raises(CheckpointError, match=rf"\b{name}\b|another|other images"):
            run.restore({**saved, name: value}, Path("edited.pt"))


def test_every_entry_is_of_its_type_and_shape(run: Run, saved: State, tmp_path: Path) -> None:
    """Also where the list of entries agrees: what a fused optimiser is given has the shape of its parameter."""
    run.load(checkpoint.save(tmp_path, saved))
    state = copy.deepcopy(saved)
    entries = [entry for entry in leaves(state) if not entry[0].startswith(("config.", "data."))]
    alike = [entry for entry in entries if entry[0].startswith(("method.", "optimizer.state."))]
    missed = []

    def refused(name: str) -> None:
        try:
            run.restore(state, Path("edited.pt"))
        except CheckpointError:
            return
        missed.append(name)

    left_out = {entry[0] for number, entry in enumerate(alike) if number % 17}
    for name, holder, key in [entry for entry in entries if entry[0] not in left_out]:
        value = holder.pop(key)
        if not name.startswith("generators."):  # a stream that was not used yet begins anew
            refused(f"{name} missing")
        others: list[Any] = ["x", *([torch.ones(3)] if isinstance(value, Tensor) else [])]
        if isinstance(value, Tensor) and value.is_floating_point():
            others += [value.double(), value * float("nan")]
        for other in others:
            holder[key] = other
            refused(f"{name} = {other!r:.40}")
        holder[key] = value
    assert not missed


EDITS: dict[str, tuple[Callable[[State], None], str]] = {
    "momentum": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.ones(3)),
        r"optimizer.state.0.momentum_buffer.*\[3\]",
    ),
    "momentum renamed": (
        lambda s: s["optimizer"]["state"][0].update(velocity=s["optimizer"]["state"][0].pop("momentum_buffer")),
        r"optimizer.state.0",
    ),
    "a moment of no parameter": (lambda s: s["optimizer"]["state"].update({99: {}}), r"optimizer.state.99"),
    "no moments": (lambda s: s["optimizer"].update(state={}), r"optimizer.state"),
    "order of parameters": (
        lambda s: s["optimizer"]["param_groups"][0]["params"].reverse(),
        r"optimizer.param_groups",
    ),
    "pointer": (lambda s: s["method"]["queues.pointer"].fill_(64), r"queues.pointer must be in 0 ... 63; got 64"),
    "negative pointer": (lambda s: s["method"]["queues.pointer"].fill_(-1), r"queues.pointer"),
    "NaN": (lambda s: s["method"]["queues.whole"][5, 0].fill_(float("nan")), r"method.queues.whole"),
    "infinity": (
        lambda s: s["optimizer"]["state"][3]["momentum_buffer"][0].fill_(float("inf")),
        r"optimizer.state.3.momentum_buffer",
    ),
    "epoch": (lambda s: s.update(epoch=3), r"epoch must be at most the 2 of the run; got 3"),
    "step": (lambda s: s.update(step=7), r"step must be 8, for 2 epochs of 4 batches and 0 more; got 7"),
    "evaluated": (lambda s: s.update(evaluated=3), r"evaluated must be in 1 ... 2, the epoch; got 3"),
    "not evaluated": (lambda s: s.update(evaluated=0), r"evaluated must be in 1 ... 2, the epoch; got 0"),
    "seconds": (lambda s: s.update(seconds=float("nan")), r"seconds"),
    "bool": (lambda s: s.update(epoch=True), r"epoch must be a whole number"),
    "position": (lambda s: s["batches"].update(next=5), r"batches.next must be in 0 ... 4; got 5"),
    "order": (lambda s: s["batches"].update(order=torch.zeros(64, dtype=torch.int64)), r"batches.order"),
    "images": (lambda s: s["batches"].update(images=63), r"batches.images must be 64; got 63"),
    "generator": (lambda s: s["generators"].update(order=torch.zeros(5056, dtype=torch.uint8)), r"generators"),
    "counter": (lambda s: s["generators"]["counter/augment"].zero_(), r"generators.counter/augment"),
    "torch's generator": (lambda s: s["torch_generators"].update(cpu=torch.zeros(7)), r"torch_generators.cpu"),
    "meter": (lambda s: s["meter"].update(sums={"loss": torch.ones(2)}), r"meter"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_edits_are_named(edit: Callable[[State], None], message: str, run: Run, saved: State, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, saved)
    edited(path, edit, sealed=True)
    with pytest.raises(CheckpointError, match=message):
        run.load(path)


def test_memory_layout_of_moments_is_the_parameters(run: Run, saved: State, tmp_path: Path) -> None:
    """A fused optimiser counts elements in memory: one of another layout would be given to other weights."""
    state = copy.deepcopy(saved)
    for entries in state["optimizer"]["state"].values():
        entries["momentum_buffer"] = entries["momentum_buffer"].contiguous()
    run.restore(state, Path("edited.pt"))
    for parameter, entries in run.optimizer.state.items():
        assert entries["momentum_buffer"].stride() == parameter.stride()
    ours = {number: entries["momentum_buffer"] for number, entries in enumerate(run.optimizer.state.values())}
    theirs = {number: entries["momentum_buffer"] for number, entries in saved["optimizer"]["state"].items()}
    assert_same(ours, theirs)


def test_both_commands_refuse_an_edited_checkpoint(folder: Path, capsys: Any) -> None:
    path = folder / "checkpoints" / "last.pt"
    edited(path, lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.ones(3)), sealed=False)
    for command in (lambda: train(["--resume", str(folder)]), lambda: evaluate(["knn", str(folder)])):
        assert command() == 4
        error = capsys.readouterr().err
        assert "last.pt was changed after it was written: optimizer.state.0.momentum_buffer: written float32 [" in error


def test_metrics_that_are_damaged_are_named_before_training(folder: Path, capsys: Any) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for line in ("{", "[]", '{"kind": "train"}', '{"kind": "eval", "name": 3, "step": 1, "epoch": 1}'):
        path.write_text("\n".join([line.ljust(len(lines[0])), *lines[1:]]) + "\n")
        before = path.read_bytes()
        assert train(["--resume", str(folder)]) == 4
        assert "metrics.jsonl, line 1: " in capsys.readouterr().err and path.read_bytes() == before


def test_a_step_that_nobody_looked_at_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "moco", train__log_every=100)
    run.save()
    engine.train_step(run, run.batches.images[:16], check=False)
    with torch.no_grad():
        run.method.encoder.head.weight[0, 0] = float("nan")
    with pytest.raises(Exception, match=r"method.encoder.head.weight = nan.\nIt began in a step") as caught:
        run.save()
    assert getattr(caught.value, "exit_code", None) == 5
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.pt"]
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 0
