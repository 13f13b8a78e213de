"""Records as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.records import BLANK, Record
from unlearn_pl.errors import InputError

JOINERS = (BLANK, "")
# What a text is put after to see its tokens within another; a later one where an earlier one grows together with it.
BEFORE = ("\n", ".", "a")


@dataclass(frozen=True)
class Encoding:
    """How a record becomes token ids. Raises InputError if a value is out of its range."""

    max_length: int = 256
    """Tokens of a whole sequence at most; the end of a longer one is cut off. At least 2."""

    prompt_share: float = 0.8
    """The prompt keeps its last int(prompt_share * max_length) tokens. Above 0, at most 1."""

    joiner: str = BLANK
    """What stands between input and answer. One space (" "): the answer's tokens are those that it has in the whole
    text, as it was memorised. Nothing (""): they are those of the answer alone, as in the code that the ZJUKLAB system
    was released with; a tokenizer that opens every text with a space mark then puts one before the answer."""

    eos_on_forget: bool = True
    """Whether answers of forget rows end with EOS too, so that stopping there is unlearned as well."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise InputError(f"must be at least 2, got {self.max_length}", "max_length")
        if not 0 < self.prompt_share <= 1:
            raise InputError(f"must be above 0 and at most 1, got {self.prompt_share}", "prompt_share")
        if self.prompt_limit < 1:
            product = f"{self.prompt_share} of max_length {self.max_length}"
            raise InputError(f"must leave the prompt at least one token, got {product}", "prompt_share")
        if self.joiner not in JOINERS:
            raise InputError(f"must be ' ' (one space) or '' (nothing), got {self.joiner!r}", "joiner")

    @property
    def prompt_limit(self) -> int:
        """Tokens of the prompt that are kept at most."""
        return int(self.prompt_share * self.max_length)


@dataclass(frozen=True)
class Encoded:
    """One record as token ids: the prompt up to ``answer_start``, the answer from there on, neither of them empty."""

    record_id: str
    input_ids: tuple[int, ...]
    answer_start: int
    truncated: bool
    """Whether the prompt lost its beginning or the whole its end."""
    token_weights: tuple[float, ...] | None = None
    """The weight of each answer token; None: 1 each."""


def encode_record(record: Record, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, forget: bool) -> Encoded:
    """Prompt and answer of ``encode_pair``, the end token, and both cut to their lengths.

    A prompt that is too long loses its beginning, BOS included, then a whole that is too long loses its end, EOS
    included: the order of the released ZJUKLAB code.

    Raises InputError, naming the row, if prompt or answer is left without a token.
    """
    row, data = f"row {record.id!r}", "forget" if forget else "retain"
    prompt, answer = encode_pair(record.input, record.output, tokenizer, encoding.joiner)
    if not prompt or not answer:
        raise InputError(f"{row}: the tokenizer makes no token of its {'output' if prompt else 'input'}", data)
    if encoding.eos_on_forget or not forget:
        answer = [*answer, eos_id(tokenizer)]
    kept = prompt[-encoding.prompt_limit :]
    ids = (*kept, *answer)[: encoding.max_length]
    if len(ids) == len(kept):
        limits = f"max_length {encoding.max_length}, prompt_share {encoding.prompt_share}"
        raise InputError(
            f"{row}: nothing of the answer is left after truncation ({limits}); lower the share or allow more tokens",
            data,
        )
    return Encoded(record.id, ids, len(kept), truncated=len(ids) < len(prompt) + len(answer))


def encode_document(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> list[int]:
    """A whole document, with the tokens that the tokenizer puts in front, cut to ``max_length`` tokens if given."""
    return start_ids(text, tokenizer)[:max_length]


def encode_pair(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, joiner: str = BLANK
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of the answer after it: of a row that is trained on, predicted, generated or measured.

    The prompt has what the tokenizer puts in front (BOS, if any). With the joiner " " both together are the ids of the
    whole text wherever the border between prompt and answer is one between its tokens; where it is not, the answer's
    are those of ``inner_ids``. With the joiner "" the answer's are those of the answer alone. No answer has no ids.
    """
    first = start_ids(prompt, tokenizer)
    if not answer or not joiner:
        return first, token_ids(answer, tokenizer)
    whole = start_ids(prompt + joiner + answer, tokenizer)
    if len(whole) > len(first) and whole[: len(first)] == first:
        return first, whole[len(first) :]
    return first, inner_ids(joiner + answer, tokenizer)


def start_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that stands at the beginning of a sequence and may go on: with what the tokenizer puts in front
    (BOS), without what it appends (EOS)."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    return ids[: len(ids) - appended_count(tokenizer)]


def appended_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts after every text by itself: an EOS, say."""
    if not tokenizer.num_special_tokens_to_add():
        return 0
    whole, plain = tokenizer("a", verbose=False)["input_ids"], token_ids("a", tokenizer)
    ends = [end for end in range(len(plain), len(whole) + 1) if whole[end - len(plain) : end] == plain]
    return len(whole) - ends[0] if plain and ends else 0


def inner_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that stands after another, whichever it is: without the space mark that some tokenizers put before
    what they are given, since they take it for the beginning of a text."""
    for before in BEFORE:
        first, whole = token_ids(before, tokenizer), token_ids(before + text, tokenizer)
        if len(whole) > len(first) and whole[: len(first)] == first:
            return whole[len(first) :]
    return token_ids(text, tokenizer)


def decoded_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that was decoded from tokens after a prompt, of which many tokenizers drop the first space."""
    kept = tokenizer.decode(inner_ids(f"{BLANK}a", tokenizer)).startswith(BLANK)
    return inner_ids(text if kept else BLANK + text, tokenizer) if text else []


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Generated text as the official script decodes it: special tokens dropped, spaces before punctuation cleaned up.

    transformers ignores the clean-up for BPE tokenizers, with a warning for every model; so they are not asked for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_bpe = backend is not None and type(backend.model).__name__ == "BPE"
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=not is_bpe))


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text alone."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def is_unknown(answer: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an answer's ids say nothing of it, as the tokenizer knows none of its characters."""
    said = set(answer) - {tokenizer.eos_token_id}
    return holds_unknown(answer, tokenizer) and said == {tokenizer.unk_token_id}


def holds_unknown(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer did not know some of the text behind ``ids``. Some name EOS as the token for that, which
    byte-level ones never need: there it is no sign."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown != tokenizer.eos_token_id and unknown in ids


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The EOS id. Raises InputError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token, and answers end with one")
    return int(tokenizer.eos_token_id)
