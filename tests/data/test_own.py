"""Data sets of the user's own, through the training command, and tensors from Python."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.data import DataConfig, Streamed, from_tensor, load
from mixfast.errors import ConfigError, DataError
from mixfast.run import engine
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, open_tiny, records, train_in_child, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

PHOTOS = '''
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class Photos(Dataset):
    """Noise, in every form that an image may have; item i is of class i % 2."""

    def __init__(self, count, labelled=True, broken=None):
        self.count, self.labelled, self.broken = count, labelled, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise LookupError("the tape is torn")
        form = index % 5
        shape = (20, 16) if form in (3, 4) else (20, 16, 3)
        pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        image = [
            lambda: Image.fromarray(pixels),
            lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            lambda: pixels,
            lambda: torch.from_numpy(pixels),
            lambda: torch.from_numpy(pixels)[None],
        ][form]()
        return (image, index % 2) if self.labelled else image


def both():
    return Photos(64), Photos(20)


def unlabelled():
    return Photos(72, labelled=False)


def torn():
    return Photos(64, broken=40), Photos(20)


def floats():
    return [torch.zeros(3, 16, 16)] * 20


def words():
    return [("a.jpg", 0)] * 20


def names():
    return [(torch.zeros(3, 16, 16, dtype=torch.uint8), "cat")] * 20


def thin():
    return [torch.zeros(2, 16, 16, dtype=torch.uint8)] * 20


def empty():
    return Photos(0)


def nothing():
    return None


def closures():
    photos = Photos(64)
    photos.transform = lambda image: image
    return photos


not_a_factory = 3
'''


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The user's module, photos_of_mine, in a folder from which modules are imported."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "photos_of_mine.py").write_text(PHOTOS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def options(factory: str, in_memory: str = "yes", workers: int = 0) -> dict[str, Any]:
    return {"data__kind": f"photos_of_mine:{factory}", "data__in_memory": in_memory, "data__workers": workers}


def opened(factory: str = "both", **changes: Any) -> Any:
    config = {"size": 16, "in_memory": "yes", "workers": 0, **changes}
    return load(DataConfig(kind=f"photos_of_mine:{factory}", **config), 0)


def test_every_form_of_an_image_is_its_central_square() -> None:
    import photos_of_mine

    splits = opened()
    for index in range(10):
        item = photos_of_mine.Photos(64)[index][0]
        pixels = item if isinstance(item, torch.Tensor) else torch.from_numpy(photos_of_mine.np.array(item))
        if pixels.ndim == 3 and pixels.shape[2] == 3:
            pixels = pixels.permute(2, 0, 1)
        assert torch.equal(splits.train.images[index], pixels.expand(3, 20, 16)[:, 2:18])
    assert splits.train.labels.tolist() == [0, 1] * 32 and splits.test.labels.tolist() == [0, 1] * 10
    assert splits.train.class_names == ("0", "1") and splits.name == "photos_of_mine:both"
    values = splits.train.images.double() / 255
    assert splits.mean == pytest.approx(values.mean((0, 2, 3)).tolist())


def test_limits_sizes_and_held_out_images() -> None:
    splits = opened("unlabelled", size=8, holdout=0.25, limit=30, test_limit=5)
    assert splits.train.images.shape == (30, 3, 8, 8) and splits.test.images.shape == (5, 3, 8, 8)
    assert not splits.train.labelled and splits.train.class_names == ()
    balanced = opened(limit=7)
    assert balanced.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_a_run_that_reads_while_it_trains_equals_one_in_memory(tmp_path: Path) -> None:
    """Stopped inside an epoch, and continued by workers."""
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    assert train_in_child(words(whole, **options("both")), log) == 0, log.read_text()
    first = words(parts, **options("both", "no"))
    assert train_in_child(first, log, [signal.SIGTERM], at_step=6) == 128 + signal.SIGTERM, log.read_text()
    assert train_in_child(["--resume", str(parts), "--data.workers", "1"], log) == 0, log.read_text()
    ours, theirs = last_state(parts), last_state(whole)
    for state in (ours, theirs):
        del state["config"]
    assert_same(ours, theirs)
    assert records(parts) == records(whole)
    assert any("knn_h" in record for record in records(whole))


def test_without_labels_knn_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path / "run", "moco", train__epochs=1, **options("unlabelled", "no"))) == 0
    printed = capsys.readouterr().out
    assert "kNN is off: not every image has a class." in printed
    assert "photos_of_mine:unlabelled: 65 training + 7 test images, no classes\n" in printed


def test_another_data_set_is_no_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(words(out, **options("both")), log, [signal.SIGTERM], at_step=2) == 128 + signal.SIGTERM
    assert main(["--resume", str(out), "--data.kind", "photos_of_mine:unlabelled"]) == 4
    assert "photos_of_mine:unlabelled" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_an_item_names_the_users_line(workers: int, tmp_path: Path, capsys: Any) -> None:
    assert main([*words(tmp_path / "run", **options("torn", "no", workers)), "--traceback"]) != 0
    error = capsys.readouterr().err
    assert "the tape is torn" in error and re.search(r'photos_of_mine\.py", line \d+, in __getitem__', error)


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [
        (
            "floats",
            3,
            r"item \d+ of the training set: a Tensor of torch.float32 .*, not of uint8 .*ToTensor",
        ),
        ("words", 3, r"item \d+ of the training set: a str; expected an image or \(image, label\): a PIL image"),
        ("names", 3, r"item \d+ of the training set: the label 'cat' of type str; expected"),
        ("thin", 3, r"a Tensor of torch.uint8 \[2, 16, 16\]; expected"),
        ("empty", 3, r"the training set is empty"),
        ("nothing", 3, r"nothing\(\) must return a map-style torch.utils.data.Dataset .*; got NoneType"),
        ("absent", 2, r"photos_of_mine must define absent\(\); got None"),
        ("not_a_factory", 2, r"photos_of_mine must define not_a_factory\(\); got 3"),
    ],
)
def test_what_a_factory_returns_is_checked(factory: str, code: int, message: str, tmp_path: Path, capsys: Any) -> None:
    assert main(words(tmp_path / "run", **options(factory))) == code
    assert re.search(message, capsys.readouterr().err)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot import 'my_lab.data' .*run from the folder that holds it"):
        load(DataConfig(kind="my_lab.data:photos"), 0)
    with pytest.raises(ConfigError, match=r"data\.kind cifar: expected one of scenes, .*; did you mean cifar10\?"):
        DataConfig(kind="cifar")


def test_what_cannot_be_sent_to_workers_is_said() -> None:
    with pytest.raises(DataError, match=r"cannot be sent to worker processes .*--data\.workers 0"):
        opened("closures", in_memory="no", workers=1)
    assert isinstance(opened("closures", in_memory="no").train.images, Streamed)


def test_a_tensor_is_the_data_of_a_run(tmp_path: Path, rng: torch.Generator) -> None:
    images = torch.randint(256, (80, 3, 16, 16), generator=rng, dtype=torch.uint8)
    splits = from_tensor(images, torch.arange(80) % 2, holdout=0.2)
    assert len(splits.train) == 64 and splits.test.labels.tolist().count(1) == 8
    run = open_tiny(tmp_path, "moco", splits=splits, train__epochs=1)
    engine.train(run)
    assert run.step == 4 and any("knn_h" in record for record in records(tmp_path))
    given = from_tensor(images, test=(images[:3], None))
    assert torch.equal(given.train.images, images) and len(given.test) == 3 and not given.train.labelled
    assert given.mean == pytest.approx((images.double() / 255).mean((0, 2, 3)).tolist())
    for bad, message in (
        (images.float(), r"images must be uint8 \[N, 3, S, S\]; got torch.float32"),
        (images[:, :1], r"got torch.uint8 \[80, 1, 16, 16\]"),
        (images[:0], r"got torch.uint8 \[0, 3, 16, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            from_tensor(bad)
    with pytest.raises(ValueError, match=r"labels must be \[80\], one for each image; got \[3\]"):
        from_tensor(images, torch.zeros(3))
    with pytest.raises(ValueError, match=r"test images must have the shape of the others, \[3, 16, 16\]"):
        from_tensor(images, test=(images[..., :8, :8], None))
