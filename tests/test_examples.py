"""The examples and the Python blocks of the docs run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(program: Path, folder: Path) -> str:
    """What a program prints that runs in ``folder``, with this tree's package."""
    paths = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=folder, env=paths)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(program: Path, tmp_path: Path) -> None:
    assert run(program, tmp_path)
    assert len(program.read_text(encoding="utf-8").splitlines()) < 60


def test_there_are_examples() -> None:
    assert {"unlearn", "own_loss", "own_benchmark", "merge_and_score"} <= {path.stem for path in EXAMPLES}


def test_the_page_about_python_runs(tmp_path: Path) -> None:
    """Its blocks are one program, as a reader types them one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) >= 5
    (tmp_path / "page.py").write_text("\n".join(blocks))
    assert "tensor(0.6931" in run(tmp_path / "page.py", tmp_path).replace("tensor(-", "tensor(")
    assert (tmp_path / "merged/adapter_config.json").is_file()
