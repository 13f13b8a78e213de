"""Files that are whole or absent: written under a temporary name, then renamed; and hashes of what they hold."""

import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError

# End of the name of a folder that is about to be replaced.
ASIDE = ".old"


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 by ``write_bytes``."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` so that ``path`` holds either its old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_texts(folder: str | Path, texts: Mapping[str, str]) -> None:
    """Write files (name -> text) that belong together so that the last is there only beside the others of its call: all
    are on the disk before an older last one is removed, and then they get their names in order."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = {folder / name: folder / f".{name}.{uuid.uuid4().hex}" for name in texts}
    try:
        for temporary, text in zip(places.values(), texts.values(), strict=True):
            temporary.write_text(text, encoding="utf-8")
        (folder / list(texts)[-1]).unlink(missing_ok=True)
        for path, temporary in places.items():
            os.replace(temporary, path)
    finally:
        for temporary in places.values():
            temporary.unlink(missing_ok=True)


def as_json(value: Any) -> str:
    """Indented JSON; NaN and infinities are refused, since JSON has no such numbers."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` by ``as_json``."""
    return write_text(path, as_json(value))


def write_json_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write ``rows`` by ``as_json_lines``."""
    return write_text(path, as_json_lines(rows))


@contextmanager
def new_folder(
    path: str | Path,
    overwrite: bool = False,
    argument: str = "output",
    keep: Callable[[Path], bool] | None = None,
) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    An older folder is moved aside before and deleted after, so that its content or the new one is always there: whole
    at ``path``, or, if the machine stops between the two renames, beside it until the next call puts it back. With
    ``keep``, a folder that another process has put at ``path`` in the meantime stays if ``keep(path)`` is true, and
    this one's is thrown away: for folders whose name says what is in them. What killed processes left is removed.

    Raises InputError if ``path`` exists, is not an empty folder and ``overwrite`` is off; at the end too, but then
    what was written stays, under the name that the message gives.
    """
    path = Path(path)
    clear_leftovers(path)
    refuse_existing(path, overwrite, argument)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _claimed(temporary):
        try:
            yield temporary
            _put_in_place(temporary, path, overwrite, argument, keep)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(
    temporary: Path, path: Path, overwrite: bool, argument: str, keep: Callable[[Path], bool] | None
) -> None:
    while not _renamed(temporary, path):
        if keep is not None and keep(path):
            return
        if not overwrite:
            apart = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
            os.rename(temporary, apart)
            raise InputError(f"another process has written {path} in the meantime; this result is {apart}", argument)
        old = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ASIDE}")
        with suppress(FileNotFoundError):  # another process has just moved it
            os.rename(path, old)
        try:
            if _renamed(temporary, path):
                return
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _renamed(folder: Path, path: Path) -> bool:
    """Rename ``folder``; False if there is a folder with something in it at ``path``."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left beside ``path`` when they were to write it; if ``path`` itself is missing, the
    folder that one of them had moved aside is put back."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if not re.fullmatch(rf"[0-9a-f]{{32}}({re.escape(ASIDE)})?", left.name[len(path.name) + 2 :]):
            continue
        if left.name.endswith(ASIDE) and not path.exists():
            with suppress(OSError):
                os.rename(left, path)
        else:
            _remove_unclaimed(left)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold a lock on it that ends with this process, however that ends."""
    with ExitStack() as stack:
        while True:
            folder.mkdir(exist_ok=True)
            with suppress(BlockingIOError, FileNotFoundError):  # another process takes it for a leftover
                stack.enter_context(locked(folder))
                if folder.is_dir():
                    break
        yield


def _remove_unclaimed(folder: Path) -> None:
    # removed under the lock: its process may have made it a moment ago and be about to lock it
    with suppress(BlockingIOError, FileNotFoundError, NotADirectoryError), locked(folder) as held:
        if held:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[bool]:
    """Hold the lock of a folder, which the system gives back when the process ends; False if its file system has none.
    Raises BlockingIOError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: str | Path, argument: str) -> Iterator[None]:
    """Inside the block no other process that asks for it writes into ``folder``, which is made, and taken away again if
    nothing came of it. Raises InputError if one does."""
    check_writable(folder, argument)
    path = Path(folder).absolute()
    made = [place for place in (path, *path.parents) if not place.exists()]
    with ExitStack() as stack:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(path))
            except FileNotFoundError:  # another process takes its empty one away at this moment
                continue
            except BlockingIOError:
                raise InputError(f"another process is writing into {folder}; give another folder", argument) from None
            if path.is_dir():
                break
        try:
            yield
        finally:  # under the lock, so that nobody else has begun in it
            with suppress(OSError):
                for place in made:
                    place.rmdir()


def refuse_existing(path: str | Path, overwrite: bool, argument: str = "output") -> None:
    """Raise InputError if ``path`` holds something that may not be replaced, or cannot be written: ask before the long
    work, not after."""
    path = Path(path)
    if path.is_file() or (not overwrite and _is_filled(path)):
        raise InputError(f"{path} exists already; give another folder, or overwrite to replace a folder", argument)
    check_writable(path.parent, argument)


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Iterable[str | Path], overwrite: bool) -> None:
    """Raise InputError if one of the ``outputs`` (parameter -> folder, None for none) exists, or if writing it would
    replace an input or another output."""
    named = {name: Path(path) for name, path in outputs.items() if path is not None}
    for name, path in named.items():
        refuse_existing(path, overwrite, name)
        inside = [read for read in inputs if Path(read).resolve().is_relative_to(path.resolve())]
        if inside:
            raise InputError(f"{path} would replace {inside[0]}, which is read; give another folder", name)
    for (first, one), (second, other) in itertools.combinations(named.items(), 2):
        if one.resolve().is_relative_to(other.resolve()) or other.resolve().is_relative_to(one.resolve()):
            raise InputError(f"must be apart from {first}, got {other} and {one}", second)


def _is_filled(folder: Path) -> bool:
    """Whether something is in a folder; another process may move it away at any moment."""
    try:
        return any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_writable(folder: str | Path, argument: str) -> None:
    """Raise InputError unless ``folder`` is one that this process can write into, or can make. Makes nothing."""
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{folder} cannot be a folder, since {nearest} is a file", argument)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written, since {nearest} allows no writing", argument)


def check_room(folder: str | Path, needed: int, argument: str) -> None:
    """Raise InputError if the disk of ``folder`` has less than ``needed`` bytes free."""
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise InputError(f"{folder} needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free", argument)


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
