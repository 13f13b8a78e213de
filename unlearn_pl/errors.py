"""The exception that means "the user gave something that cannot be used", and what other libraries say, in one line."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

LONGEST = 400
# Characters of a word in a message, which may be a path.
LONGEST_WORD = 600


class InputError(ValueError):
    """What a user gave (an argument, a file, a row) cannot be used.

    ``reason`` says what was allowed and what came, in one or two lines; ``name`` is the parameter that it is about, as
    the function or class that raises it calls it (``InputError("must be at least 2, got 1", "grid")``), with dots into
    options (``membership.nonmember``). From Python the message is ``grid: must be at least 2, got 1``; the command line
    writes the flag in place of the name (``parsing.with_flag``), prints the message alone and exits with code 2. Every
    other exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason, name)
        self.reason, self.name = reason, name

    def __str__(self) -> str:
        return self.reason if self.name is None else f"{self.name}: {self.reason}"


@contextmanager
def within(outer: str) -> Iterator[None]:
    """Put ``outer`` before the name that an InputError from inside bears: ``grid`` becomes ``balance.grid``."""
    try:
        yield
    except InputError as error:
        if error.name is None:
            raise
        raise InputError(error.reason, f"{outer}.{error.name}") from error


@contextmanager
def renamed(inner: str, outer: str) -> Iterator[None]:
    """Call ``outer`` what an InputError from inside calls ``inner``."""
    try:
        yield
    except InputError as error:
        if error.name != inner:
            raise
        raise InputError(error.reason, outer) from error


# What NumPy takes, which is seeded too.
MOST_SEED = (1 << 32) - 1


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise InputError unless every generator of random numbers takes ``seed``."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"must be from 0 to {MOST_SEED}, got {seed}", name)


def check_distinct(values: Iterable[Any] | None, name: str) -> None:
    """Raise InputError if one of ``values`` is there twice."""
    seen: list[Any] = []
    for value in values or ():
        if value in seen:
            raise InputError(f"each only once, got {value} twice", name)
        seen.append(value)


def check_choices(options: Any) -> None:
    """Raise InputError unless each field of a dataclass that is a ``Literal`` holds one of its values.

    The command line looks at them itself; from Python nothing else does, and a misspelt choice would be taken for the
    last of its kind.
    """
    kind: Any = type(options)
    for name, allowed in choices(kind).items():
        if (value := getattr(options, name)) not in allowed:
            raise InputError(f"must be one of {', '.join(map(str, allowed))}, got {value!r}", name)


@cache
def choices(kind: Any) -> Mapping[str, tuple[Any, ...]]:
    """Field -> its values, of the fields of a dataclass that are a ``Literal`` (or None)."""
    try:
        hints = get_type_hints(kind)
    except NameError:  # a class of a notebook or a function, annotated with what is not to be found from here
        return {}
    parts = {name: (hint,) if get_origin(hint) is Literal else get_args(hint) for name, hint in hints.items()}
    return {
        name: tuple(value for part in own for value in (get_args(part) or (None,)))
        for name, own in parts.items()
        if any(get_origin(part) is Literal for part in own)
        and all(get_origin(part) is Literal or part is type(None) for part in own)
    }


def refusal_behind(error: BaseException) -> InputError | None:
    """The InputError that ``error`` is or was raised from: parsers wrap what a class refuses in words of their own."""
    return next((one for one in chain(error, causes=True) if isinstance(one, InputError)), None)


def chain(error: BaseException | None, causes: bool = False) -> Iterator[BaseException]:
    """An exception, what it was raised from, or, unless ``causes`` alone are asked for, while, and so on; each once,
    also where one was raised from itself."""
    seen: set[int] = set()
    while error is not None:
        seen.add(id(error))
        yield error
        before = (error.__cause__, None if causes else error.__context__)
        error = next((one for one in before if one is not None and id(one) not in seen), None)


def one_line(error: BaseException) -> str:
    """What an exception of another library says, its lines joined: the first alone often ends where the facts begin."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("NoneType", "null")
    # of a library that met a text where it wants a number, or a vector where it wants a matrix
    if isinstance(error, TypeError | AttributeError) or "values to unpack" in text:
        text = f"a value in it is of the wrong type ({text})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def server_fault(error: BaseException) -> str | None:
    """What W&B said if ``error`` is its own, such as no server or no key, which it says before training; else None."""
    if not type(error).__module__.startswith("wandb."):
        return None
    return f"W&B: {one_line(error)} WANDB_MODE=offline keeps the run on the disk, for `wandb sync` later"


def json_kind(value: object) -> str:
    """What JSON calls a value that was read from a file: null, a boolean, a number, a string, a list or an object."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds[type(value)]


def printable(text: str) -> str:
    """``text`` as a terminal can show it in one line: what moves the cursor, hides or turns letters is written as in
    Python, ``\\n`` or ``\\u202e``, and so are halves of characters; a word that is longer than any path loses its
    middle."""
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:100]} ... {word[0][-20:]}", shown)


# What a disk answers whatever the program does right; safetensors says it in a text, with the number.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FAULTS = (*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def disk_fault(error: BaseException | None) -> str | None:
    """What a full or forbidden disk said if that is what ``error`` comes from, else None."""
    for one in chain(error):
        number = one.errno if isinstance(one, OSError) else None
        if number is None and (found := re.search(r"I/O error: .*\(os error (\d+)\)", str(one))):
            number = int(found[1])
        if number in DISK_FAULTS:
            place = getattr(one, "filename", None)
            where = f": {place!s:.200}" if place else ", while a file was written"
            advice = "; make room and run the command again, what was written before is whole" if number in FULL else ""
            return f"{os.strerror(number)}{where}{advice}"
    return None


MEMORY_FAULT = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc", re.I
)


def memory_fault(error: BaseException | None) -> str | None:
    """What the system or a device said that had no memory left, if that is what ``error`` comes from, else None. torch
    raises a RuntimeError for the memory of the CPU."""
    for one in chain(error):
        short = isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError"
        if short or (isinstance(one, RuntimeError | OSError) and MEMORY_FAULT.search(str(one))):
            said = re.search(r"(?:you )?[Tt]ried to allocate [^.]*?\d[\d.]* ?\w+", str(one))
            return f"out of memory{f' ({said[0][0].lower() + said[0][1:]})' if said else ''}"
    return None
