"""Whether checkpoint folders hold one model: the same tokens under the same ids, computed with in the same way."""

import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from unlearn_pl.checkpoints.folder import CONFIG_FILE
from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of
from unlearn_pl.models.load import load_from
from unlearn_pl.models.tokenizer import FILES, difference, same_tokens

# What a configuration says besides how the weights are computed with: names and versions, training, the ends of texts.
# The sizes, and whether the head is tied, show in the tensors.
OTHER_SETTINGS = {
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "vocab_size",
    "tie_word_embeddings", "id2label", "label2id", "problem_type", "task_specific_params", "pretraining_tp",
    "chunk_size_feed_forward", "is_encoder_decoder", "model_type",
}  # fmt: skip
OTHER_PARTS = ("dropout", "pdrop", "initializer", "output_", "router_", "aux_loss", "gradient_checkpointing")
LENGTH = "max_position_embeddings"


def refuse_other_model(base: Path, other: Path, name: str, trust_remote_code: bool = False) -> None:
    """Raise InputError, about the parameter ``name``, if the folder ``other`` computes with its weights otherwise than
    ``base`` by their `config.json` (rotary angles, activation, window, ...), or has another tokenizer.

    Warns if only the longest text differs. What one of the folders does not have is not compared.
    """
    if all((folder / CONFIG_FILE).is_file() for folder in (base, other)):
        one, two = (settings(folder, trust_remote_code) for folder in (base, other))
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) == two.get(key):
                continue
            text = f"{key} is {two.get(key)} in {other} and {one.get(key)} in {base}"
            if key.rsplit(".", 1)[-1] != LENGTH:
                raise InputError(f"must compute as the base does; by {CONFIG_FILE} {text}", name)
            warnings.warn(f"{text}; the merged model has the base's", stacklevel=4)
    if all(any((folder / name).is_file() for name in FILES) for folder in (base, other)):
        refuse_other_tokenizer(base, other, name, trust_remote_code)


def settings(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """What `config.json` says of the computation, the defaults filled in; nested settings by dotted names."""
    found: dict[str, Any] = {}

    def collect(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if name in OTHER_SETTINGS or name.startswith("_") or any(part in name for part in OTHER_PARTS):
                continue
            if isinstance(value, dict):
                collect(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    collect(load_from(AutoConfig, str(folder), trust_remote_code=trust_remote_code).to_dict(), "")
    return found


def refuse_other_tokenizer(base: Path, other: Path, name: str, trust_remote_code: bool) -> None:
    """Raise InputError if the two folders cut text into other tokens or number them otherwise."""
    file = "tokenizer.json"
    if all((folder / file).is_file() for folder in (base, other)) and sha256_of(base / file) == sha256_of(other / file):
        return
    one, two = (
        load_from(AutoTokenizer, str(folder), "tokenizer", trust_remote_code=trust_remote_code)
        for folder in (base, other)
    )
    if not same_tokens(one, two):
        raise InputError(
            f"{other} has another tokenizer than {base} ({difference(one, two)}), so the rows of its embeddings and "
            "head mean other tokens",
            name,
        )
