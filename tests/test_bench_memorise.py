"""The benchmark of memorising on a tiny model: both ways learn the same, and mistakes are one line."""

import json
import subprocess
import sys
from pathlib import Path

from test_bench import ROOT, write_rows


def test_the_whole_comparison(base_folder: str, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    rows = [f"--data.{name}={path}" for name, path in write_rows(tmp_path).items()]
    command = [sys.executable, "-m", "benchmarks.memorise", f"--model={base_folder}", *rows, f"--json={output}"]
    sizes = ["--rows=6", "--batch_size=2", "--rounds=2", "--max_length=64"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    low, high = figures["ranges"]["ratio_memorise"]
    assert 0 < low <= figures["ratio_memorise"] <= high
    assert figures["rows"] == 6
    assert figures["loss_relative_difference"] < 1e-5
    padded, ours = (figures["losses"][way] for way in ("padded", "ours"))
    assert len(padded) == len(ours) == 9  # a warm-up and two rounds of three batches
    assert all(abs(one - other) < 1e-3 * one for one, other in zip(padded, ours, strict=True))
    assert "times faster" in done.stdout
    wrong = subprocess.run([*command, "--rows=1"], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1] == "unlearn-pl: error: --rows: must be at least 2, got 1"
