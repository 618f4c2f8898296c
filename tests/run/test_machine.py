"""Device, threads and memory format, and the facts written into env.json."""

from pathlib import Path

import pytest
import torch

from mixfast.errors import ConfigError, PlatformError
from mixfast.run import machine


def test_device() -> None:
    assert machine.pick_device("cpu") == torch.device("cpu")
    assert machine.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("tpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(ConfigError, match=r"must be auto, cpu, cuda or cuda:N"):
            machine.pick_device(wrong)
    with pytest.raises(PlatformError, match=r"cuda:99: torch .* sees \d+ GPUs\. Use --train.device cpu"):
        machine.pick_device("cuda:99")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "9900000 100000"}, 8),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
    ids=str,
)
def test_quota_is_affinity_cut_by_the_control_group(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.cpu_quota() == cores


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2)
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert machine.set_threads(0) == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert machine.set_threads(0) == 2  # left to torch, which read the variable when it was imported
        assert machine.set_threads(1) == 1
    finally:
        torch.set_num_threads(before)


def test_memory_format() -> None:
    formats = [machine.pick_memory_format(wanted) for wanted in ("auto", "contiguous", "channels_last")]
    assert formats == [torch.channels_last, torch.contiguous_format, torch.channels_last]


def test_compile_and_graph_are_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(machine.shutil, "which", lambda name: name == "g++" or None)
    monkeypatch.delenv("CXX", raising=False)
    for pick, what in ((machine.pick_compile, "compile"), (machine.pick_graph, "graph")):
        assert pick("off", cpu) == (False, f"{what} off (as asked)") and pick("on", gpu)[0]
        for device in (cpu, gpu):
            chosen, why = pick("auto", device)
            assert not chosen and why.startswith(f"{what} off (auto: ")
    assert machine.pick_compile("on", cpu) == (True, "compile on (as asked)")
    with pytest.raises(ConfigError, match=r"--train.graph on: CUDA graphs need a GPU, and this run is on cpu"):
        machine.pick_graph("on", cpu)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(PlatformError, match=r"--train.compile on: torch.compile needs a C\+\+ compiler"):
        machine.pick_compile("on", cpu)


def test_environment_names_what_ran(tmp_path: Path) -> None:
    facts = machine.environment(torch.device("cpu"), extra=1)
    assert facts["torch"] == torch.__version__ and facts["device"] == "cpu" and facts["extra"] == 1
    assert (
        facts["threads"] == torch.get_num_threads() and facts["backends"]["masked_upsample_pool"]["reference"] is None
    )
    assert machine.git_state(tmp_path) is None
    assert machine.memory_bytes(torch.device("cpu")) > 2**28
    backends = [phrase.split()[0] for phrase in machine.kernels(torch.device("cpu")).split(", ")]
    assert backends and set(backends) <= {"cpu", "reference"}
