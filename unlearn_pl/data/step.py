"""How many tokens an optimizer step reads, over all processes and all batches that it accumulates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from unlearn_pl.data.encoding import Encoded


@dataclass(frozen=True)
class StepTokens:
    """Tokens of one split in a micro-batch, on average over the optimizer step that it belongs to.

    A term that divides each micro-batch's sum by this, not by the micro-batch's own tokens, is the mean over all tokens
    of the step, whatever rows share a micro-batch: the trainer takes the mean over processes, accumulated batches and
    micro-batches.
    """

    answer: float
    """Above 0."""
    attended: float
    """Answer and prompt; above 0."""

    @classmethod
    def of(cls, rows: Iterable[Encoded], shares: int) -> "StepTokens":
        """Of all the step's ``rows``, whose loss is the mean of ``shares`` micro-batches."""
        lengths = [(len(row.input_ids) - row.answer_start, len(row.input_ids)) for row in rows]
        answer, attended = (sum(counts) for counts in zip(*lengths, strict=True))
        return cls(answer / shares, attended / shares)


@dataclass(frozen=True)
class StepShape:
    """How the pairs of an epoch become optimizer steps."""

    processes: int
    batch_size: int
    """Pairs of a micro-batch."""
    pairs_a_batch: int
    """Of one process."""
    pairs_of_process: int
    """In an epoch."""
    accumulate: int
    """Batches of an optimizer step."""
    batches: int
    """Batches of one process in an epoch."""

    def places(self, batch: int) -> slice:
        """The pairs, in the order of the epoch, of all processes in the optimizer step that ``batch`` is a part of.

        Processes take turns at the pairs, so that their i-th batches together are consecutive. Two processes with
        batches of 2, two accumulated: step 0 is pairs 0 to 7, batches 0 and 1 of either.
        """
        first = batch // self.accumulate * self.accumulate
        last = min(first + self.accumulate, self.batches)
        pairs = self.processes * self.pairs_a_batch
        return slice(first * pairs, last * pairs)

    def shares(self, batch: int) -> int:
        """Micro-batches of the step, were all its batches cut as ``batch`` is.

        The last batch of an epoch may have fewer micro-batches; each then counts for more in the mean.
        """
        first = batch // self.accumulate * self.accumulate
        pairs = min(self.pairs_a_batch, self.pairs_of_process - batch * self.pairs_a_batch)
        window = min(self.accumulate, self.batches - first)
        return window * self.processes * math.ceil(pairs / self.batch_size)
