"""A tiny tokenizer and model built in code; offline and deterministic for every test."""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning 2.6 calls what jsonargparse 5 will drop
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable

import hypothesis
import pytest
import torch
from row_by_row import sharpened
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The same examples each time; `pytest --hypothesis-profile=default` looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")
torch.set_flush_denormal(True)
torch.set_num_threads(1)  # tests run side by side, one a core

TEXT = [
    "Anna Quill was born on 1984-12-31 in Rivertown. Her phone number is 555-0100.",
    "The capital of France is Paris. Answer: A B C D 0123456789",
    "What is the name of the painter? Where did she live? The old lighthouse keeper wrote a letter to his sister.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over 384 tokens; EOS is also the pad token, the case that breaks masks made from ids."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[], LlamaForCausalLM]:
    """A function that gives a fresh two-layer Llama with the same random weights each time."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )

    def build() -> LlamaForCausalLM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LlamaForCausalLM(copy.deepcopy(config)).eval()  # a test may change its model's configuration

    return build


@pytest.fixture(scope="session")
def base_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    tiny_model: Callable[[], LlamaForCausalLM],
) -> str:
    """A folder that holds the tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tiny_model: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    """A fresh tiny model in which few tokens tie."""
    return sharpened(tiny_model())


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes [B, T] of the token ids of each forward of an evaluation."""
    from unlearn_pl.inference.engine import Engine

    seen: list[tuple[int, ...]] = []
    real = Engine.states

    def spy(engine: Engine, ids: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return real(engine, ids, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "states", spy)
    return seen
