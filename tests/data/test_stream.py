"""Batches: permutations, full batches only, and a position that survives a restart anywhere."""

import io

import pytest
import torch

from mixfast.data import Batches

N, BATCH = 23, 5  # 4 batches an epoch, 3 images left out


def make(seed: int = 0) -> tuple[Batches, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return Batches(torch.arange(N), BATCH, generator), generator


def run(batches: Batches, count: int) -> list[list[int]]:
    """The next `count` batches, over as many epochs as that takes."""
    found: list[list[int]] = []
    while len(found) < count:
        for batch in batches.epoch():
            found.append(batch.tolist())
            if len(found) == count:
                break
    return found


def test_an_epoch_is_a_permutation_in_full_batches() -> None:
    batches, _ = make()
    assert len(batches) == 4
    for _ in range(3):
        epoch = list(batches.epoch())
        assert [len(batch) for batch in epoch] == [BATCH] * 4
        assert len(set(torch.cat(epoch).tolist())) == 20


def test_epochs_differ_and_seeds_repeat() -> None:
    first, again, other = (run(make(seed)[0], 8) for seed in (0, 0, 1))
    assert first == again and first != other and first[:4] != first[4:]


def test_every_image_is_met_equally_often() -> None:
    """What is left out changes: 600 epochs meet each image 600 * 20/23 times, with a deviation of sqrt(68)."""
    batches, _ = make()
    counts = torch.tensor(run(batches, 600 * 4)).flatten().bincount(minlength=N).double()
    assert (counts - 600 * 20 / 23).abs().max() < 5 * (600 * 20 / 23 * 3 / 23) ** 0.5


@pytest.mark.parametrize("done", range(10))
def test_resume_anywhere(done) -> None:
    """State and generator, through a file as a checkpoint would: the rest is the same, batch for batch."""
    truth = run(make()[0], 14)
    batches, generator = make()
    assert run(batches, done) == truth[:done]
    file = io.BytesIO()
    torch.save({"batches": batches.state_dict(), "generator": generator.get_state()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, its_generator = make(seed=99)
    run(other, 3)
    other.load_state_dict(state["batches"])
    its_generator.set_state(state["generator"])
    assert run(other, 14 - done) == truth[done:]


def test_state_counts_the_batch_in_hand() -> None:
    batches, generator = make()
    for i, _ in enumerate(batches.epoch()):
        if i == 1:
            break
    other = Batches(torch.arange(N), BATCH, generator)
    other.load_state_dict(batches.state_dict())
    assert len(list(other.epoch())) == 2


def test_indices_and_images_agree() -> None:
    images = torch.randint(0, 255, (N, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    by_index = Batches(images, BATCH, torch.Generator().manual_seed(0))
    by_image = Batches(images, BATCH, torch.Generator().manual_seed(0))
    for index, batch in zip(by_index.epoch_indices(), by_image.epoch(), strict=True):
        assert torch.equal(images[index], batch)


@pytest.mark.parametrize("batch_size", [0, -1, N + 1])
def test_impossible_batches_are_refused(batch_size) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be from 1 to the number of images, 23; got {batch_size}"):
        Batches(torch.arange(N), batch_size, torch.Generator())


def test_foreign_state_is_refused() -> None:
    batches, generator = make()
    for other, what in (
        (Batches(torch.arange(N + 1), BATCH, generator), "images = 23, this run has 24"),
        (Batches(torch.arange(N), BATCH + 1, generator), "batch_size = 5, this run has 6"),
    ):
        with pytest.raises(ValueError, match=what):
            other.load_state_dict(batches.state_dict())
