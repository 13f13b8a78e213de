"""What is asked of greedy generation, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_pl.errors import InputError
from unlearn_pl.inference.batch_size import BatchSize, check_batch_size
from unlearn_pl.inference.likelihood import Likelihood

# Half of a character that takes several tokens.
UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Generation:
    """How answers are generated: greedily, from the bare prompt, without a chat template."""

    max_new_tokens: int = 256
    """A row that has not ended by then, or by the end of the model's positions, is cut; at least 1. The official value
    is 256."""
    batch_size: BatchSize = "auto"
    """Rows that are generated together; at least 1, or auto: as many as the memory of a GPU holds, or on a CPU 1.4 GB,
    there 32 at least, 256 at most. In float32 it changes the speed and never the text. In half precision ties between
    tokens are common and only 1 gives exactly the text of one row at a time."""
    stop_decided: bool = False
    """Stop rows that only the whole answer scores (LUME's questions) as soon as their text can no longer become the
    expected answer: their knowledge score is
    then known to be 0. Such samples say `cut: true`; what else is measured on their text sees only this much of it."""
    own_config: bool = False
    """Let all of the model's generation config act on the text, as in the official script: repetition penalty,
    suppressed and forced tokens, beams and so on. Rows then go one at a time through transformers' own `generate`.
    Without it only the EOS ids count, and a warning names what else there is."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"must be at least 1, got {self.max_new_tokens}", "generation.max_new_tokens")
        check_batch_size(self.batch_size, "generation.batch_size")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued."""

    text: str
    answer: str = ""
    """What is expected after it; it makes the work shorter and never changes what is generated."""
    exact: bool = False
    """Whether only the whole answer scores (see ``Generation.stop_decided``)."""


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt."""

    text: str
    """Special tokens dropped."""
    tokens: int
    """How many were generated, the end included."""
    ended: bool
    """Whether the model ended it, by an EOS."""
    cut: bool
    """Whether it was stopped since its score was decided."""
    recall: Likelihood | None
    """What one forward over the expected answer showed; None without one."""


@dataclass(frozen=True)
class Row:
    """A prompt as token ids."""

    prompt: Sequence[int]
    budget: int
    """How many tokens its text may have; at least 1."""
    draft: Sequence[int] = ()
    """Tokens of the expected answer."""
    exact: str | None = None
    """What the text must be to score; None if others score too."""


def is_decided(expected: str, begun: str) -> bool:
    """Whether no continuation of ``begun`` is ``expected`` but for case and surrounding space.

    A False may be wrong (the text is then written on), a True never is. Space inside counts for nothing, as decoding
    can drop a space once it knows what follows (" ," and " n't" of tokenizers whose texts are cleaned up).
    """
    return not _plain(expected).startswith(_plain(begun.rstrip(UNFINISHED)))


def _plain(text: str) -> str:
    # str.lower writes a Greek sigma differently at the end of a word, so it is not a function of each character
    return "".join(text.lower().replace("\u03c2", "\u03c3").split())
