"""The one exception that means "the user gave something that cannot be used"."""


class InputError(ValueError):
    """What a user gave (an argument, a file, a row) cannot be used.

    The message names the argument, what was allowed and what came, in one or two lines. The command line prints it
    alone and exits with code 2; every other exception is a defect of ours and keeps its traceback.
    """
