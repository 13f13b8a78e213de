"""Rows for the measurements on a device, made of random numbers: no data set need be there."""

import math
import random
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.released import EncodedPair
from unlearn_pl.data.encoding import Encoded

SHORTEST, LONGEST = 24, 256
END = "<|end|>"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def random_pairs(count: int, longest: int, vocabulary: int, seed: int) -> list[EncodedPair]:
    """Forget and retain rows whose lengths are log-uniform from ``SHORTEST`` to ``longest`` tokens (up to 256: 98 on
    average); the last third of a row is its answer."""
    source = random.Random(seed)

    def row(name: str) -> Encoded:
        length = round(SHORTEST * math.exp(source.random() * math.log(longest / SHORTEST)))
        ids = tuple(source.randrange(1, vocabulary) for _ in range(length))
        return Encoded(name, ids, length - length // 3, False)

    return [(row(f"forget {number}"), row(f"retain {number}")) for number in range(count)]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, so that a text that was generated gives its tokens back; the end of text is token 0."""
    vocabulary = {END: 0} | {letter: number for number, letter in enumerate(LETTERS, start=1)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)


def successors(seed: int, ending: bool) -> dict[int, int]:
    """Token -> the one after it, on one round through all letters in a random order; with ``ending`` the round goes
    through the end of text."""
    order = list(range(0 if ending else 1, len(LETTERS) + 1))
    random.Random(seed).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def random_texts(count: int, lengths: tuple[int, int], seed: int) -> list[str]:
    """Letters, as many as ``lengths`` say, both ends included."""
    source = random.Random(seed)
    return ["".join(source.choices(LETTERS, k=source.randint(*lengths))) for _ in range(count)]


def continuations(prompts: Sequence[str], successor: dict[int, int], tokens: int) -> list[str]:
    """What a model that walks says after each prompt, within so many tokens."""
    found = []
    for prompt in prompts:
        token, said = LETTERS.index(prompt[-1]) + 1, ""
        for _ in range(tokens):
            if (token := successor[token]) == 0:
                break
            said += LETTERS[token - 1]
        found.append(said)
    return found
