"""Data workers: the processes that assemble batches."""

import multiprocessing
import sys

from lightning.pytorch.utilities import rank_zero_warn

MENDED = (3, 11, 10)


def safe_workers(number: int, processes: int) -> int:
    """Data workers of a fit by so many ``processes``: ``number``, or 0 after a warning where one might hang.

    Before Python 3.11.10 a process that is forked while a thread enters Python for the first time inherits a lock that
    nobody gives back (https://github.com/python/cpython/issues/112275). Threads of gloo do that after each reduction:
    on two cores one worker in some hundreds hung, and the fit with it.
    """
    methods = multiprocessing.get_all_start_methods()  # the first is the default
    forked = (multiprocessing.get_start_method(allow_none=True) or methods[0]) == "fork"
    if number == 0 or processes == 1 or not forked or sys.version_info >= MENDED:
        return number
    rank_zero_warn(
        f"num_workers {number}: data workers of several processes can hang before Python 3.11.10 (this is "
        f"{'.'.join(map(str, sys.version_info[:3]))}); each process assembles its batches itself, which are the same"
    )
    return 0
