"""A tiny tokenizer and model built in code; offline and deterministic for every test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning 2.6 calls what jsonargparse 5 will drop
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
if "UNLEARN_PL_TEST_DEVICE" not in os.environ:  # tests/gpu alone compute elsewhere
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from command_server import CommandServer
from fuzz_world import World, make_world
from row_by_row import sharpened
from tiny_base import build_model, build_tokenizer, write_base
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LAUNCH = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE"} - os.environ.keys()

# The same examples each time; `pytest --hypothesis-profile=default` looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")
torch.set_flush_denormal(True)
torch.set_num_threads(1)  # tests run side by side, one a core


@pytest.fixture(autouse=True)
def no_launch_is_left() -> Iterator[None]:
    """Lightning's launcher leaves its variables behind, and a command that inherits a LOCAL_RANK waits for ever for the
    processes that somebody else is to start."""
    yield
    for name in LAUNCH:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny model."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[], LlamaForCausalLM]:
    """A function that gives a fresh two-layer Llama with the same random weights each time."""
    return lambda: build_model(tokenizer)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds the tiny model and its tokenizer."""
    return str(write_base(tmp_path_factory.mktemp("base")))


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


@pytest.fixture(scope="session")
def server() -> Iterator[CommandServer]:
    """The real command line in a warm process."""
    with CommandServer() as server:
        yield server


@pytest.fixture(scope="module")
def world(
    server: CommandServer,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[], LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
) -> World:
    """Whole files of every kind that a command reads."""
    return make_world(tmp_path_factory.mktemp("world"), server, tiny_model(), tokenizer)
