"""Every benchmark runs, at small shapes, so that none rots; and the report says what the results say."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes, report
from benchmarks.gpu import plot
from benchmarks.gpu import report as gpu_report
from benchmarks.interleave import interleaved, quantiles
from benchmarks.report import render

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_benchmark_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--smoke"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "failed" not in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("lightly is not installed" in line or "GPU" in line for line in skipped), skipped


def test_report_compares_with_ours_and_with_the_floor() -> None:
    def row(implementation: str, median: float, memory: float | None) -> dict:
        info = {"implementation": implementation, "extra_memory_mib": memory, "threads": 2}
        return {"group": "G", "stats": {"median": median, "min": median / 2}, "extra_info": info}

    results = {
        "machine_info": {"cpu": {"brand_raw": "A CPU", "count": 2}},
        "datetime": "2025-01-02T00:00:00",
        "commit_info": {"id": "0123456789abcdef"},
        "benchmarks": [row("eager", 0.4, 30.0), row("mixfast cpu", 0.1, None), row("floor: copy", 0.08, 1.0)],
    }
    lines = render(results).splitlines()
    assert lines[0] == "A CPU, 2 cores, 2 threads, 2025-01-02, commit 0123456789"
    assert lines[2] == "### G"
    assert lines[6:9] == [
        "| floor: copy | 80 | 40 | 0.80 x | 1.00 x | 1.0 |",
        "| mixfast cpu | 100 | 50 | 1.00 x | 1.25 x |  |",
        "| eager | 400 | 200 | 4.00 x | 5.00 x | 30.0 |",
    ]


def test_document_holds_what_the_results_say() -> None:
    """`python -m benchmarks.report` writes it."""
    text = report.DOCUMENT.read_text()
    assert report.filled(text) == text


@pytest.mark.slow
def test_processes_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "processes.json"
    command = [sys.executable, "-m", "benchmarks.processes", "--smoke", "--out", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    single, double, apart = (times[0] for times in row["seconds"])
    assert row["efficiency"] == pytest.approx(single / double / 2, abs=1e-3)
    assert row["efficiency_without_exchanges"] == pytest.approx(single / apart / 2, abs=1e-3)
    assert set(row["exchanges_ms"]) == set(processes.EXCHANGES.values())


def test_document_holds_the_computed_table() -> None:
    assert processes.table() in (ROOT / "docs" / "distributed.md").read_text()


def test_bytes_of_a_step_by_hand() -> None:
    """Two processes: half of each ring's numbers twice, half of the views, the other's keys and means."""
    of = processes.Sizes(1000, key_sets=1, map_sets=1, queues=2, trained=1, channels=10, norms=3, flops=0.0)
    sent = processes.traffic(of, 2, synced=True)
    assert sent.gradients == 4000 and sent.views == 4 * 16 * 3 * 224 * 224 and sent.maps == 4 * 16 * 2048 * 49
    assert sent.keys == 2 * 4 * 32 * 128 and sent.norms == 80 * (2 + 2)
    assert sent.exchanges == 1 + 1 + 2 + 1 + 2 + 3 * (2 + 1)  # one part of the gradients, and one of statistics


def test_samples_take_turns_and_slow_ones_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = 0.0

    def sampler(name: str, seconds: float) -> Callable[[], float]:
        def sample() -> float:
            nonlocal clock
            clock += seconds
            order.append(name)
            return seconds

        return sample

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    samples = interleaved({"quick": sampler("quick", 0.0), "slow": sampler("slow", 0.03)}, 0.1, least=2, most=8)
    assert samples == {"quick": [0.0] * 8, "slow": [0.03] * 3}
    assert order[:2] == ["quick", "slow"] and order[-2:].count("slow") == 1  # the slow ones are spread to the end
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0]) == (1.4, 3.0, 4.6)


def gpu_row(implementation: str, median: float, **more: Any) -> dict[str, Any]:
    times = {"median_us": median, "p10_us": median - 1, "p90_us": median + 1, "samples": 100, "calls": 4}
    facts = {"keys": 64, **({"sweep": "keys", "curve": "5 x 512 rows"} if more.pop("sweep", None) else {})}
    return {
        **{"kind": "row", "title": "T; CUDA graph, cold L2", "task": "T", "implementation": implementation},
        **{"graph": True, "cold": True, "goal_us": 15.0, "facts": facts, "floor_us": 6.0, "peak_mib": 9.5, **times},
        **more,
    }


GPU_RECORDS: list[dict[str, Any]] = [
    {
        **{"kind": "machine", "torch": "2.11", "packages": {"triton": "3.6"}, "cuda_runtime": "13.0"},
        **{"gpu": {"name": "A GPU", "driver_version": "580"}, "date": "2025-01-02T00:00", "commit": "0123"},
    },
    {"kind": "rates", "copy": 4.3e12, "products": {"bfloat16": 7.8e14}, "launch_us": 1.5},
    gpu_row("mixfast cuda", 12.0),
    gpu_row("mixfast triton", 24.0, goal_us=25.0),
    gpu_row("eager", 240.0, goal_us=None),
    {key: value for key, value in gpu_row("lightly", 0.0, reason="out of memory").items() if key != "median_us"},
    gpu_row("mixfast cuda", 12.0, sweep=True),
]


def test_gpu_report_and_pictures(tmp_path: Path) -> None:
    lines = gpu_report.render(GPU_RECORDS).splitlines()
    assert lines[0] == "A GPU, driver 580, torch 2.11, Triton 3.6, CUDA 13.0, 2025-01-02, commit 0123"
    assert lines[8] == "| T | 6.00 | 15 / 25 | 12.00 (50%) | 24.00 (25%) | eager 20.0; lightly out of memory | 9.50 |"
    assert "| 64 | 12.00 |" in lines
    assert gpu_report.render(GPU_RECORDS[:2]) == gpu_report.NOT_MEASURED + "\n"
    pictures = plot.draw(GPU_RECORDS, tmp_path)
    assert [path.name for path in pictures] == ["time_against_keys.png"] and pictures[0].stat().st_size > 5000
