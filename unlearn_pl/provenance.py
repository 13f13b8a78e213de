"""What made a result: versions, git commit, configuration and hashes, as one JSON-ready dictionary."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from unlearn_pl import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "rouge-score")
OPTIONAL = ("bitsandbytes",)


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions of what computes (None of what is not installed), the commit of this checkout (None outside of one), and
    the caller's ``facts``.

    Holds no time and no host name: the same work gives the same bytes.
    """
    versions: dict[str, str | None] = {"unlearn_pl": __version__, "python": platform.python_version()}
    there = [name for name in OPTIONAL if version_of(name) is not None]
    versions |= {name: version_of(name) for name in (*PACKAGES, *there)}
    return {"versions": versions, "commit": git_commit(), **facts}


def version_of(package: str) -> str | None:
    """The version of a package; None if it is not installed, as those need not be that only some rows are read with."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit(file: str | Path = __file__) -> str | None:
    """The commit of the checkout that ``file`` runs from, with ``-dirty`` if files differ from it, else None: also if
    the package was installed into a folder within another project's repository, which does not track it."""
    file = Path(file).resolve()
    try:
        if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
            return None
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints there, None if it fails."""
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20)
    return answer.stdout.strip() if answer.returncode == 0 else None
