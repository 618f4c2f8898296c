"""What every test gets: one thread, a seeded generator, buffers that betray unwritten cells, no network."""

import gc
import multiprocessing
import os
import socket
import zlib
from collections.abc import Iterator

import pytest

# One thread for each process, since there is a process for each core; it must stand before torch is imported, and
# processes that a test starts inherit it. Tests of several threads call torch.set_num_threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else a matrix product on a GPU warns, as below

import torch

# The processes of tests are forked from a server that imports all this once, when the first of them starts.
multiprocessing.set_forkserver_preload(
    [
        "mixfast.train.__main__",
        "mixfast.evaluate.__main__",
        "tests.tiny_run",
        "torch._dynamo",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "torchvision.models.detection",
    ]
)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded from the test's id: the same numbers on every run, other numbers for every case."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="module")
def command_settings() -> Iterator[None]:
    """What commands set for their whole process is undone after the last test of the module."""
    from tests.tiny_run import process_settings_kept

    with process_settings_kept():
        yield


@pytest.fixture(autouse=True)
def nan_filled_buffers() -> Iterator[None]:
    """Deterministic mode fills uninitialised buffers with NaN (integers: the largest), so a skipped cell shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that leaves this machine fails the test that opens it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = self.family not in (socket.AF_INET, socket.AF_INET6)
        if not local and isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test opened a network connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, of these the longest: what begins last would run on alone, beside idle processes."""
    longest = ("test_triton_interpreted.py", "test_install.py")
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name not in longest))


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays; else each full collection of garbage would go through it all."""
    gc.freeze()
