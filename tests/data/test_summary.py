"""What is said of a data set: its counts, and warnings of what makes training or scores worthless."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, Streamed, from_tensor, load


def noise(count: int, first: int = 0) -> torch.Tensor:
    """uint8 images, all different."""
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(first, first + count)
    return images


def said_of(images: torch.Tensor, labels: list[int] | None = None, test=None) -> list[str]:
    said: list[str] = []
    marks = None if labels is None else torch.tensor(labels)
    from_tensor(
        images, marks, test=(noise(4, 200), None) if test is None else test, name="mine", print_line=said.append
    )
    return said


def labelled(*labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(len(labels), 200), torch.tensor(labels)


def test_counts() -> None:
    assert said_of(noise(6)) == ["mine: 6 training + 4 test images, no classes"]
    assert said_of(noise(6), [0, 1, 1, 1, 0, 1], labelled(0, 1)) == [
        "mine: 6 training + 2 test images, 2 classes (0 3, 1 5)"
    ]
    assert said_of(noise(6), [0, 1, 1, 1, 0, -1], labelled(0, 1)) == [
        "mine: 6 training + 2 test images, 2 classes (0 3, 1 4), 1 images without a class"
    ]
    many = [*range(12), *range(12), 7]
    assert said_of(noise(25), many, labelled(*range(12))) == [
        "mine: 25 training + 12 test images, 12 classes of 3 to 4 images (0, 1, 2 ...)"
    ]


def test_images_that_are_copies() -> None:
    (warning,) = said_of(noise(1))[1:]
    assert warning == "warning: there is one training image: views can only be told from views of the same image."
    (warning,) = said_of(noise(1).repeat(5, 1, 1, 1))[1:]
    assert warning.startswith("warning: the 5 training images are all the same: ")
    (warning,) = said_of(noise(3).repeat(2, 1, 1, 1))[1:]
    assert warning.startswith("warning: 3 of the 6 training images differ: a batch takes copies for other images")


def test_test_images_among_the_training_images() -> None:
    images = noise(6)
    (warning,) = said_of(images, test=(torch.cat([images[2:4], noise(3, 100)]), None))[1:]
    assert warning == "warning: 2 of the 5 test images are training images too: they do not test what was learned."


def test_classes_on_one_side_only() -> None:
    said = said_of(noise(8), [0, 0, 1, 1, 2, 4, 4, 4], labelled(0, 3, 3))
    assert said[1:] == [
        "warning: 1 of 5 classes have one image only: 2.",
        "warning: 2 of 5 classes have no test image: 1, 4.",
        "warning: 1 of 5 classes have no training image: 3.",
    ]
    (warning,) = said_of(noise(7), [0, 1, 2, 3, 4, 5, 6], labelled(*range(1)))[1:]
    assert warning == "warning: 6 of 7 classes have one image only: 1, 2, 3, 4, 5 and 1 more."


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_files_are_compared_by_their_pixels(in_memory, tmp_path) -> None:
    """In memory or not, with other names and bytes."""
    for i in range(6):
        picture = Image.new("RGB", (8, 8), (i,) * 3)
        (tmp_path / "train").mkdir(exist_ok=True), (tmp_path / "test").mkdir(exist_ok=True)
        picture.save(tmp_path / "train" / f"{i}.png")
        if i < 2:
            picture.save(tmp_path / "test" / f"copy{i}.bmp")
    for _ in range(2):  # the second time from the cache
        said: list[str] = []
        cfg = DataConfig("folder", str(tmp_path), size=8, in_memory=in_memory, workers=0, cache_dir=f"{tmp_path}/c")
        splits = load(cfg, 0, said.append)
        assert isinstance(splits.train.images, Streamed) == (in_memory == "no")
        assert "warning: 2 of the 2 test images are training images too: they do not test what was learned." in said


def test_generated_scenes_are_said_too(capsys) -> None:
    load(DataConfig(scenes=20, test_scenes=10, size=8), 0)
    line = capsys.readouterr().out.splitlines()[0]
    counts, names = line.split(" (")
    assert counts == "scenes: 20 training + 10 test images, 10 classes of 3 images"
    assert names == "plain disc, checks square, rings triangle ...)"


def test_a_place_that_holds_the_test_images_twice(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (8, 8), (i,) * 3).save(tmp_path / f"{i}.png")
    said: list[str] = []
    load(DataConfig("folder", str(tmp_path), str(tmp_path), size=8, cache=False), 0, said.append)
    assert said[0] == f"{tmp_path}: 6 training + 6 test images, no classes; 0 files passed over"
    assert said[1] == "warning: 6 of the 6 test images are training images too: they do not test what was learned."
