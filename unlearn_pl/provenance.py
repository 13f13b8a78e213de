"""What made a result: versions, git commit, configuration and hashes, as one JSON-ready dictionary."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from unlearn_pl import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "datasets", "rouge-score")


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions of what computes, the commit of this checkout (None outside of one), and the caller's ``facts``.

    Holds no time and no host name: the same work gives the same bytes.
    """
    versions = {"unlearn_pl": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "commit": git_commit(), **facts}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``-dirty`` if files differ from it, else None."""
    folder = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
