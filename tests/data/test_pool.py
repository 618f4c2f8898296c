"""The processes that decode: order, reuse, what happens when one dies or hangs, and that none is left over."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import pool as module
from mixfast.data import streamed
from mixfast.data.pool import Files, Pool
from mixfast.data.streamed import Library, Streamed
from mixfast.errors import DataError

ROOT = Path(__file__).parents[2]
SIZE, COUNT = 8, 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one grey level each, which is their number."""
    root = tmp_path_factory.mktemp("levels")
    for level in range(COUNT):
        Image.new("RGB", (SIZE, SIZE), (level,) * 3).save(root / f"{level}.png")
    return [root / f"{level}.png" for level in range(COUNT)]


def make(names: list[Path], rows: int = 8, workers: int = 2, say: Callable[[str], None] = pytest.fail) -> Pool:
    return Pool(Files(names, (len(names),), say), SIZE, rows, workers, CPU)


def levels(batch: torch.Tensor) -> list[int]:
    assert (batch == batch[:, :1, :1, :1]).all()
    return batch[:, 0, 0, 0].tolist()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(("task_rows", "open_tasks"), [(64, 128), (1, 2), (3, 5)], ids=str)
def test_batches_come_in_order_whatever_the_tasks(task_rows, open_tasks, names, monkeypatch, rng) -> None:
    monkeypatch.setattr(module, "_TASK_ROWS", task_rows)
    monkeypatch.setattr(module, "_OPEN_TASKS", open_tasks)
    parts = [torch.randint(COUNT, (size,), generator=rng).numpy() for size in (8, 1, 7, 8, 8, 3, 8, 8, 2)]
    found = [levels(batch) for batch in make(names).batches(parts)]
    assert found == [part.tolist() for part in parts]


def test_batches_that_are_kept_stay_what_they_were(names) -> None:
    parts = [np.arange(first, first + 8) for first in (0, 8, 16, 24, 32, 0, 8, 16)]
    kept = list(make(names).batches(parts))
    assert [levels(batch) for batch in kept] == [part.tolist() for part in parts]


def test_images_are_decoded_ahead(names) -> None:
    """While the first batch is in use, three more are written; the fifth has to wait for its place."""
    pool = make(names)
    iterator = pool.batches([np.arange(first, first + 8) for first in range(0, 40, 8)])
    next(iterator)
    ahead = [8, 16, 24]
    assert eventually(lambda: [int(pool._pixels[slot, 0, 0, 0, 0]) for slot in (1, 2, 3)] == ahead)
    assert levels(pool._pixels[0]) == list(range(8))
    assert [levels(batch)[0] for batch in iterator] == [*ahead, 32]


def test_processes_hold_no_torch(names) -> None:
    pool = make(names, workers=1)
    assert [levels(batch) for batch in pool.batches([np.array([3])])] == [[3]]
    mapped = Path(f"/proc/{pool._workers[0].pid}/maps").read_text()
    assert "numpy" in mapped and "PIL" in mapped and "torch" not in mapped


def test_a_reader_that_ends_leaves_its_processes_to_the_next(names) -> None:
    library = Library(names, (COUNT,), SIZE, 2, pytest.fail)
    images = Streamed(library, torch.arange(COUNT))
    assert list(images.read([])) == [] and library._idle is None
    list(images.split(16))
    first = [worker.pid for worker in library._idle._workers]
    list(images.split(8))
    assert [worker.pid for worker in library._idle._workers] == first and all(map(alive, first))
    half = images.split(8)
    next(half)
    other = images.split(8)
    assert torch.equal(torch.cat(list(other)), torch.cat([images[:8], *half]))  # two readers at once
    list(images.split(20))  # more rows than there is room for
    last = [worker.pid for worker in library._idle._workers]
    assert not set(last) & set(first) and not any(map(alive, first))
    del library, images, half, other
    assert eventually(lambda: not any(map(alive, last)))


def test_a_reader_that_is_left_ends_its_processes(names, monkeypatch) -> None:
    made: list[Pool] = []
    monkeypatch.setattr(streamed, "Pool", lambda *given: made.append(Pool(*given)) or made[-1])
    images = Streamed(Library(names, (COUNT,), SIZE, 2, pytest.fail), torch.arange(COUNT))
    for _ in images.split(4):
        assert [worker.poll() for worker in made[0]._workers] == [None, None]
        break
    assert [worker.returncode for worker in made[0]._workers] == [-signal.SIGKILL] * 2
    assert torch.equal(torch.cat(list(images.split(4))), images[:]) and len(made) == 2


def test_a_process_that_is_killed_is_an_error_and_no_hang(names, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    pool = make(names)
    iterator = pool.batches([np.arange(8)] * 50)
    next(iterator)
    for worker in pool._workers:
        worker.kill()
    with pytest.raises(DataError, match=r"a process that decodes images was killed by signal 9\..*--data\.workers"):
        list(iterator)


def test_a_process_that_cannot_start_says_why(names, monkeypatch) -> None:
    monkeypatch.setattr(module, "_START", "raise SystemExit('no module named numpy')")
    pool = make(names)
    with pytest.raises(DataError, match=r"(?s)ended with exit code 1\.\nno module named numpy"):
        list(pool.batches([np.arange(8)]))


def test_signals_for_the_whole_group_do_not_reach_the_processes(names) -> None:
    pool = make(names)
    parts = [np.arange(8)] * 3
    for _ in range(2):  # before they have begun, and when they listen
        for worker in pool._workers:
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGTERM)
        assert [levels(batch) for batch in pool.batches(parts)] == [list(range(8))] * 3
    assert all(worker.poll() is None for worker in pool._workers)


def test_a_disk_that_does_not_answer_is_mentioned(names, tmp_path, monkeypatch) -> None:
    """Opening a named pipe waits for a writer, as a file of a server that is gone may."""
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    monkeypatch.setattr(module, "_SILENCE", 0.2)
    slow, said = tmp_path / "slow.png", []
    os.mkfifo(slow)

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            threading.Thread(target=slow.write_bytes, args=(b"not an image",)).start()

    pool = make([slow, names[5]], workers=1, say=say)
    assert [levels(batch) for batch in pool.batches([np.array([0, 1])])] == [[5, 5]]
    assert len(said) >= 3 and all("no image has arrived for" in line for line in said[:2])
    assert "slow.png cannot be read (" in said[-1]


def test_processes_end_with_the_one_that_started_them(names) -> None:
    """However it ends: here it kills itself while the processes are at work."""
    code = f"""
import os, signal, sys
import numpy as np, torch
from pathlib import Path
from mixfast.data import streamed
from mixfast.data.pool import Files, Pool
names = sorted(Path({str(names[0].parent)!r}).iterdir())
pool = Pool(Files(names, (len(names),), print), 8, 8, 2, torch.device("cpu"))
for number, _ in enumerate(pool.batches([np.arange(8)] * 1000)):
    if number == 5:
        print(*(worker.pid for worker in pool._workers), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2 and eventually(lambda: not any(map(alive, pids)))
