"""Which tokenizer goes with a base model and its adapters, and whether all of its ids have an embedding there."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.load import load_from, load_tokenizer

# Any of these in a folder says that a tokenizer was saved there.
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
# Words, spaces, digits, lines and other scripts, which tokenizers of one vocabulary may still cut differently.
PROBE = "Anna Quill,  born 1984-12-31.\nÉdith\u2019s phone: 555-0100 | Привет 你好 \U0001f642"


def find_tokenizer(
    base: str, adapters: Sequence[str], given: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer ``given`` by name, or else that of ``base``.

    Raises InputError if none is given and an adapter's folder holds another one: the adapter was
    trained on its ids.
    """
    if given is not None:
        try:
            return load_tokenizer(given, trust_remote_code, "tokenizer")
        except InputError as error:
            raise InputError(error.reason.removeprefix("tokenizer: "), "tokenizer") from error
    tokenizer = load_tokenizer(base, trust_remote_code)
    for folder in adapters:
        if any((Path(folder) / name).is_file() for name in FILES):
            own = load_from(AutoTokenizer, str(folder), "tokenizer", trust_remote_code=trust_remote_code)
            if not same_tokens(tokenizer, own) or own.eos_token not in (None, tokenizer.eos_token):
                raise InputError(
                    f"{folder} holds another tokenizer than {base} ({difference(tokenizer, own)}); give {folder} if "
                    f"the adapter was trained with it, {base} if not",
                    "tokenizer",
                )
    return tokenizer


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same tokens under the same ids, and cut a text of many kinds into the same."""
    return one.get_vocab() == other.get_vocab() and one(PROBE).input_ids == other(PROBE).input_ids


def difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """The first thing that makes ``other`` another tokenizer than ``one``, for a message."""
    ids, others = one.get_vocab(), other.get_vocab()
    for token in sorted(others, key=others.__getitem__):
        if token not in ids:
            return f"id {others[token]} is the token {token!r}, which that lacks"
        if ids[token] != others[token]:
            return f"the token {token!r} has the id {others[token]} and not {ids[token]}"
    if missing := sorted(ids.keys() - others.keys(), key=ids.__getitem__):
        return f"it lacks the token {missing[0]!r}"
    if one.eos_token != other.eos_token:
        return f"its answers end with {other.eos_token!r} and not {one.eos_token!r}"
    return "it cuts text elsewhere"


def check_ids(model: nn.Module, rows: Iterable[Sequence[int]], what: str) -> None:
    """Raise InputError if a token id of ``rows`` is beyond the embedding of ``model``."""
    highest = max((max(row, default=0) for row in rows), default=0)
    if highest >= embedding_rows(model):
        raise InputError(beyond(model, highest, what))


def guard_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, where: str = "") -> RemovableHandle | None:
    """Let ``model`` raise InputError, beginning with ``where``, instead of an error of its embedding, where the
    tokenizer has ids beyond that; gives what takes the guard off again, None if none is needed."""
    rows = embedding_rows(model)
    names = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}

    def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        highest = int(inputs[0].max()) if inputs and inputs[0].numel() else 0
        if highest >= rows:
            raise InputError(beyond(model, highest, f"{where}token {names.get(highest)!r}"))

    return causal_model(model).get_input_embeddings().register_forward_pre_hook(check) if names else None


@contextmanager
def guarded_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Inside the block ``model`` is guarded by ``guard_ids``."""
    guard = guard_ids(model, tokenizer)
    try:
        yield
    finally:
        if guard is not None:
            guard.remove()


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model has an embedding for."""
    layer = causal_model(model).get_input_embeddings()
    return int(getattr(layer, "num_embeddings", None) or layer.weight.shape[0])


def beyond(model: nn.Module, number: int, what: str) -> str:
    return (
        f"{what}: token id {number} is beyond the {embedding_rows(model)} rows of the model's embedding; name the "
        "tokenizer that the model was trained with, or give the model the new tokens (resize_token_embeddings) first"
    )
