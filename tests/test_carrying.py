"""What brings the benchmarks of a GPU onto a machine without network: files in pieces, wheels by pinned versions."""

import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(CI / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two and a half MiB."""
    path = tmp_path / "weights of a model.gguf"
    path.write_bytes(bytes(range(256)) * 10240)
    return path


def test_pieces_make_the_file_again(file: Path, tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    (tmp_path / f"pieces/{file.name}.007").write_text("of an earlier file")
    assert run("pieces.sh", "split", file, tmp_path / "pieces", "1").returncode == 0
    sizes = [path.stat().st_size for path in sorted((tmp_path / "pieces").glob("*.[0-9]*"))]
    assert sizes == [2**20, 2**20, 2**19]
    (tmp_path / "there").mkdir()
    joined = tmp_path / "there" / file.name
    assert run("pieces.sh", "join", tmp_path / "pieces", joined).returncode == 0
    assert joined.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damage_is_seen_and_leaves_nothing(damage: str, file: Path, tmp_path: Path) -> None:
    run("pieces.sh", "split", file, tmp_path / "pieces", "1")
    piece = tmp_path / f"pieces/{file.name}.001"
    piece.unlink() if damage == "missing" else piece.write_bytes(piece.read_bytes()[::-1])
    (tmp_path / "there").mkdir()
    done = run("pieces.sh", "join", tmp_path / "pieces", tmp_path / "there" / file.name)
    assert done.returncode == 2
    assert "a piece is missing or damaged" in done.stderr
    assert not list((tmp_path / "there").iterdir())


def test_mistakes_end_with_how_it_is_used(tmp_path: Path) -> None:
    for arguments in ([], ["join"], ["split", "x"], ["glue", "x", "y"]):
        done = run("pieces.sh", *arguments)
        assert (done.returncode, "split FILE FOLDER" in done.stderr) == (2, True)
    assert "is no file" in run("pieces.sh", "split", tmp_path / "x", tmp_path).stderr
    assert "has no x.sha256" in run("pieces.sh", "join", tmp_path, tmp_path / "x").stderr
    assert run("gpu_wheels.sh").returncode == 2


def test_wheels_have_a_pinned_version(tmp_path: Path) -> None:
    """An unknown package is refused before anything is fetched; all that are fetched by default are pinned."""
    done = run("gpu_wheels.sh", tmp_path / "wheels", "no_such_package")
    assert (done.returncode, done.stderr.strip()) == (2, "no_such_package is not in constraints.txt")
    assert not (tmp_path / "wheels").exists()
