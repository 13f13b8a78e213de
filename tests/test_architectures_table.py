"""The script behind docs/architectures.md, on two families."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_two_families_are_measured_and_told(tmp_path: Path) -> None:
    """A packed and a hybrid one; a file each, which a second call takes as it is."""
    told = tmp_path / "told"
    told.mkdir()
    (told / "old.json").write_text(json.dumps({"family": "old", "not_built": "it is too old"}))
    command = [
        sys.executable,
        ROOT / "benchmarks" / "architectures.py",
        "--json",
        told,
        "--families",
        "llama",
        "bamba",
        "old",
    ]
    done = subprocess.run([*command, "--markdown", tmp_path / "page.md"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    llama, bamba = (json.loads((told / f"{name}.json").read_text()) for name in ("llama", "bamba"))
    assert (llama["training"]["packed"], bamba["training"]["packed"]) == (True, False)
    for found in (llama, bamba):
        assert found["generation"]["differing"] == 0
        assert max(found["training"]["loss"], found["training"]["gradient"]) < 1e-6
        assert max(found["merging"]["ties"], found["merging"]["cat"]) < 1e-5
    page = (tmp_path / "page.md").read_text()
    assert "| llama | packed " in page
    assert "| bamba | padded " in page
    assert "* old: it is too old" in page
    assert len(done.stdout.splitlines()) == 2
