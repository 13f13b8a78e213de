"""The exception that means "the user gave something that cannot be used", and what other libraries say, in one line."""

LONGEST = 400


class InputError(ValueError):
    """What a user gave (an argument, a file, a row) cannot be used.

    The message names the argument, what was allowed and what came, in one or two lines. The command line prints it
    alone and exits with code 2; every other exception is a defect of ours and keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """What an exception of another library says, its lines joined: the first alone often ends where the facts begin."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
