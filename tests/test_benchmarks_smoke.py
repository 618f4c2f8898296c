"""Every benchmark runs, at small shapes, so that none rots; and the report says what the results say."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.report import render

ROOT = Path(__file__).parent.parent


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
