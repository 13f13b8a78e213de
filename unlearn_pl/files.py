"""Files that are whole or absent: written under a temporary name, then renamed; and hashes of what they hold."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 so that ``path`` holds either its old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON; NaN and infinities are refused, since JSON has no such numbers."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object a line."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False, argument: str = "--output") -> Iterator[Path]:
    """Yield an empty sibling folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises InputError if ``path`` exists, is not an empty folder and ``overwrite`` is off.
    """
    path = Path(path)
    refuse_existing(path, overwrite, argument)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: str | Path, overwrite: bool, argument: str = "--output") -> None:
    """Raise InputError if ``path`` holds something that may not be replaced: ask before the long work, not after."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not overwrite):
        raise InputError(f"{argument}: {path} exists already; give another folder, or --overwrite to replace a folder")


def sha256_of(*paths: str | Path) -> str:
    """Hash of the bytes of files; a folder counts as its files in name order, with their relative names."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for member in members:
            digest.update(str(member.relative_to(path)).encode() if path.is_dir() else b"")
            with member.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
