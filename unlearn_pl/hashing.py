"""SHA-256 of what a result was made from: sources, and this package's own code."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unlearn_pl
from unlearn_pl.files import sha256_of


def code_hash() -> str:
    """Hash of the source of this package: what another formula gave must not pass for this one's."""
    return sha256_of(*sorted(Path(unlearn_pl.__file__).parent.rglob("*.py")))


def source_hash(source: str, read: Sequence[Any]) -> str:
    """Hash of the file or folder ``source``, or of the values ``read`` from it if it is neither."""
    path = Path(source).expanduser()
    if source and path.exists():
        return sha256_of(path)
    return hashlib.sha256(json.dumps(read, ensure_ascii=False).encode()).hexdigest()
