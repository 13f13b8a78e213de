"""The exception that means "the user gave something that cannot be used", and what other libraries say, in one line."""

import errno
import os
import re

LONGEST = 400


class InputError(ValueError):
    """What a user gave (an argument, a file, a row) cannot be used.

    The message names the argument, what was allowed and what came, in one or two lines. The command line prints it
    alone and exits with code 2; every other exception is a defect of ours and keeps its traceback.
    """


# What NumPy takes, which is seeded too.
MOST_SEED = (1 << 32) - 1


def check_seed(seed: int, flag: str = "--seed") -> None:
    """Raise InputError unless every generator of random numbers takes ``seed``."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"{flag}: must be from 0 to {MOST_SEED}, got {seed}")


def refusal_behind(error: BaseException) -> InputError | None:
    """The InputError that ``error`` is or was raised from: parsers wrap what a class refuses in words of their own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    return cause


def one_line(error: BaseException) -> str:
    """What an exception of another library says, its lines joined: the first alone often ends where the facts begin."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


# What a disk answers whatever the program does right; safetensors says it in a text, with the number.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def disk_fault(error: BaseException | None) -> str | None:
    """What a full or forbidden disk said if that is what ``error`` comes from, else None."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := re.search(r"I/O error: .*\(os error (\d+)\)", str(error))):
            number = int(found[1])
        if number in DISK_FAULTS:
            place = getattr(error, "filename", None)
            return f"{os.strerror(number)}: {place}" if place else f"{os.strerror(number)}, while a file was written"
        error = error.__cause__ or error.__context__
    return None
