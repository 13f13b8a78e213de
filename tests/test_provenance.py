"""The commit in a result is that of this package's own checkout, or none."""

import subprocess
from pathlib import Path

from unlearn_pl.provenance import git_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_only_a_repository_that_tracks_the_file_gives_its_commit(tmp_path: Path) -> None:
    """Installed into another project's `.venv`, which it ignores or not, that project's commit says nothing of us."""
    package = tmp_path / ".venv" / "package"
    package.mkdir(parents=True)
    file = package / "provenance.py"
    file.write_text("")
    assert git_commit(file) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.txt").write_text("")
    git(tmp_path, "add", "theirs.txt")
    git(tmp_path, "commit", "-qm", "theirs")
    assert git_commit(file) is None
    git(tmp_path, "add", ".venv")
    git(tmp_path, "commit", "-qm", "ours")
    assert git_commit(file) == git(tmp_path, "rev-parse", "HEAD")
    file.write_text("changed")
    assert git_commit(file) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
