"""A tiny Llama with its own byte-level BPE tokenizer, both built from given texts: no download, minutes on a CPU."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError

EOS = "<|endoftext|>"
BYTES = 256


@dataclass(frozen=True)
class TinyModel:
    """Sizes of the tiny model; the defaults give about two million weights."""

    vocabulary: int = 1280
    """Entries of the tokenizer (at least 257: every byte and the end of text). A short corpus fills fewer."""
    hidden: int = 192
    """Width of the residual stream; a multiple of ``heads``."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 6
    """Attention heads, each ``hidden / heads`` wide (an even number)."""
    intermediate: int = 512
    """Width inside the feed-forward blocks."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head, as small models do."""
    initializer_range: float = 0.1
    """Standard deviation of the initial weights. With five times the usual 0.02 so narrow a model learns texts by
    heart in a quarter of the epochs."""
    seed: int = 0
    """Seed of the initial weights."""


def build_tiny(texts: Iterable[str], options: TinyModel) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained tiny Llama in float32 and eval mode, and the tokenizer trained on ``texts``.

    A function of its arguments; the global random state is left as it was. Save either with ``save_pretrained``.
    Raises InputError if the sizes do not fit each other.
    """
    check_sizes(options)
    tokenizer = train_tokenizer(texts, options.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=1024,
        initializer_range=options.initializer_range,
        tie_word_embeddings=options.tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        # not the pad token of the tokenizer: transformers would freeze the embedding of that id, which is EOS here
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows every byte and keeps every digit apart; EOS is also its pad token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=EOS, padding_side="right", clean_up_tokenization_spaces=False
    )


def check_sizes(options: TinyModel) -> None:
    if options.vocabulary < BYTES + 1:
        raise InputError(f"must be at least {BYTES + 1}, got {options.vocabulary}", "vocabulary")
    for name in ("hidden", "layers", "heads", "intermediate"):
        if getattr(options, name) < 1:
            raise InputError(f"must be at least 1, got {getattr(options, name)}", name)
    if options.initializer_range <= 0:
        raise InputError(f"must be above 0, got {options.initializer_range}", "initializer_range")
    if options.hidden % (2 * options.heads):
        raise InputError(f"must be an even multiple of heads ({options.heads}), got {options.hidden}", "hidden")
