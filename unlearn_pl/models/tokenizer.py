"""Which tokenizer goes with a base model and its adapters, and whether two tokenizers are one."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.models.load import load_from, load_tokenizer

# Any of these in a folder says that a tokenizer was saved there.
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
# Words, spaces, digits, lines and other scripts, which tokenizers of one vocabulary may still cut differently.
PROBE = "Anna Quill,  born 1984-12-31.\nÉdith\u2019s phone: 555-0100 | Привет 你好 \U0001f642"


def find_tokenizer(
    base: str, adapters: Sequence[str], given: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer ``given`` by name, or else that of ``base``.

    Raises InputError if none is given and an adapter's folder holds another one: the adapter was trained on its ids.
    """
    if given is not None:
        return load_tokenizer(given, trust_remote_code)
    tokenizer = load_tokenizer(base, trust_remote_code)
    for folder in adapters:
        if any((Path(folder) / name).is_file() for name in FILES):
            own = load_from(AutoTokenizer, str(folder), "tokenizer", trust_remote_code=trust_remote_code)
            if not same_tokens(tokenizer, own):
                raise InputError(
                    f"--tokenizer: {folder} holds another tokenizer than {base} ({difference(tokenizer, own)}); "
                    f"give --tokenizer {folder} if the adapter was trained with it, --tokenizer {base} if not"
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
    missing = sorted(ids.keys() - others.keys(), key=ids.__getitem__)
    return f"it lacks the token {missing[0]!r}" if missing else "it cuts text elsewhere"
