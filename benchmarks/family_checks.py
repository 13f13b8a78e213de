"""What is measured of one family: its greedy text, its training loss and gradient, and the merge of two adapters."""

import copy
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.small_models import small_model, small_tokenizer
from unlearn_pl.data.batch import collate_pairs
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.errors import InputError
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.merging.adapters import read_adapters
from unlearn_pl.merging.merge import MergedAdapter
from unlearn_pl.merging.options import MergeOptions
from unlearn_pl.models.lora import Lora, attach_lora, save_adapter
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.prepare import prepare_policy
from unlearn_pl.training.reference import live_reference

PROMPTS = [
    "Anna Quill",
    "What is the name of the painter?",
    "The old lighthouse keeper",
    "Where did she live? The old lighthouse keeper wrote a letter to his sister. Her phone number is",
    "555",
    "born on 1984",
    "7",
    "Where did she live?",
]
NEW = 16
LORA = Lora(rank=4, alpha=8, dropout=0)
Build = Callable[[], PreTrainedModel]


def check_generation(build: Build, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Rows whose text differs from ``generate`` alone, in batches, whether the answer is known, half known or not."""
    model = build()
    ends = [tokenizer.eos_token_id, *range(3, len(tokenizer), 40)]
    model.generation_config.eos_token_id = ends
    own = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        found = copy.deepcopy(model).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        own.append(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    answers = [(text, text[: len(text) // 2] + " zebra", "no such thing", "")[i % 4] for i, text in enumerate(own)]
    prompts = [Prompt(*pair) for pair in zip(PROMPTS, answers, strict=True)]
    asked, differing = LanguageModel(model, tokenizer, joiner=""), 0
    for size in (1, 3, 16):
        texts = [answer.text for answer in asked.generate(prompts, Generation(NEW, size))]
        differing = max(differing, sum(one != other for one, other in zip(texts, own, strict=True)))
    return {"differing": differing, "rows": len(PROMPTS)}


def rows_of(lengths: list[tuple[int, int]], vocabulary: int, seed: int) -> list[Encoded]:
    drawn = torch.Generator().manual_seed(seed)
    return [
        Encoded(f"r{seed}{i}", tuple(torch.randint(1, vocabulary, (p + a,), generator=drawn).tolist()), p, False)
        for i, (p, a) in enumerate(lengths)
    ]


def adapted(model: PreTrainedModel, seed: int = 0, lora: Lora = LORA, **options: Any) -> PeftModel:
    """With an adapter that does something."""
    peft = attach_lora(model, lora, 1, **options)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name) + seed))
    return peft


def as_trained(model: PeftModel, ids: Tensor) -> PeftModel:
    """With B at zero where no gradient comes, as training leaves it: some families read the weights of a layer past the
    layer, and its adapter does nothing."""
    model(input_ids=ids, use_cache=False).logits.sum().backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.grad is None:
                parameter.zero_()
    return model


def plain_loss(model: PeftModel, forget: list[Encoded], retain: list[Encoded]) -> Tensor:
    """NPO + NLL + KL by their formulas, one row at a time through the whole model."""

    def logits(row: Encoded) -> Tensor:
        return model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, row.answer_start - 1 : -1]

    def targets(row: Encoded) -> Tensor:
        return torch.tensor(row.input_ids[row.answer_start :])

    terms = []
    for row in forget:
        nll = F.cross_entropy(logits(row), targets(row))
        with torch.no_grad(), model.disable_adapter():
            base = F.cross_entropy(logits(row), targets(row))
        terms.append(0.5 * (2 / 0.3) * F.softplus(-0.3 * (nll - base)))
    kls = []
    for row in retain:
        log_p = logits(row).log_softmax(-1)
        with torch.no_grad(), model.disable_adapter():
            log_q = logits(row).log_softmax(-1)
        terms.append(0.3 * F.nll_loss(log_p, targets(row)))
        kls.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return torch.stack(terms).sum() / len(forget) + 0.2 * torch.cat(kls).mean()


def check_training(build: Build, vocabulary: int) -> dict[str, Any]:
    """Largest relative difference of loss and gradient, and whether rows are packed."""
    forget = rows_of([(3, 4), (7, 2), (1, 1), (5, 9)], vocabulary, 1)
    retain = rows_of([(5, 5), (1, 1), (12, 3), (2, 6)], vocabulary, 2)
    for dtype in (torch.float64, torch.float32):
        try:
            return with_any_adapter(build, partial(_train, build, forget, retain, dtype))
        except (RuntimeError, InputError):  # some families cannot compute in float64
            if dtype == torch.float32:
                raise
    raise AssertionError


def _train(
    build: Build, forget: list[Encoded], retain: list[Encoded], dtype: torch.dtype, lora: Lora
) -> dict[str, Any]:
    ours = adapted(build().to(dtype), 0, lora).to(dtype)
    plain = adapted(build().to(dtype), 0, lora, fast=False).to(dtype)
    packed = prepare_policy(ours)
    terms = {
        "ga": NPO(0.5, beta=0.3, reduction="sequence_mean"),
        "gd": RetainNLL(0.3, reduction="sequence_mean"),
        "gk": RetainKL(0.2),
    }
    batch = collate_pairs([{"forget": f, "retain": r} for f, r in zip(forget, retain, strict=True)], 0)
    loss, _ = PackedLoss(terms, 32, None)(ours, batch, live_reference)
    loss.backward()
    wanted = plain_loss(plain.train(), forget, retain)
    wanted.backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    if not theirs or found.keys() != theirs.keys():
        return {"packed": packed, "loss": None, "gradient": None, "dtype": str(dtype)}
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    apart = max(float((found[name] - grad).abs().max()) for name, grad in theirs.items())
    return {
        "packed": packed,
        "loss": abs(float(loss - wanted)) / abs(float(wanted)),
        "gradient": apart / largest,
        "dtype": str(dtype).removeprefix("torch."),
    }


def check_merging(build: Build, vocabulary: int) -> dict[str, Any]:
    """Largest relative difference of logits between our saved model and PEFT's own merge, for ties and cat."""
    return with_any_adapter(build, lambda lora: _merge(build, vocabulary, lora))


def with_any_adapter(build: Build, measure: Callable[[Lora], dict[str, Any]]) -> dict[str, Any]:
    """``measure`` with an adapter of all linear layers or, where that is refused, of the attention's, by name."""
    try:
        return measure(LORA)
    except InputError as error:
        names = {name for name, layer in build().named_modules() if type(layer) is nn.Linear}
        ends = {name.rsplit(".", 1)[-1] for name in names if "attn" in name or "attention" in name}
        attention = sorted(ends - {"gate_proj", "up_proj", "down_proj"})  # experts have these names too
        if not attention:
            raise
        return measure(replace(LORA, target_modules=attention)) | {"all_linear": one_line(error)}


def _merge(build: Build, vocabulary: int, lora: Lora) -> dict[str, Any]:
    ids = torch.tensor([row.input_ids for row in rows_of([(5, 7)], vocabulary, 3)])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first = build()
        first.save_pretrained(home / "base")

        def loaded() -> PreTrainedModel:
            """As users have a base; to be loaded changes some (Youtu's row of the padding token becomes zero)."""
            return type(first).from_pretrained(home / "base")

        for number, name in enumerate(("one", "two")):
            save_adapter(as_trained(adapted(loaded(), 7 * number, lora), ids), home / name)
        folders = [home / "one", home / "two"]
        apart: dict[str, Any] = {}
        for method, density in (("ties", 0.8), ("cat", None)):
            settings = MergeOptions(method=method, density=density).settings(2)
            base = loaded()
            adapter = MergedAdapter.of(base, read_adapters(folders, settings), settings)
            adapter.save(save_model=home / method, base=base)
            merged = type(base).from_pretrained(home / method).eval()
            peft = PeftModel.from_pretrained(loaded(), str(folders[0]), adapter_name="one")
            peft.load_adapter(str(folders[1]), adapter_name="two")
            peft.add_weighted_adapter(["one", "two"], [1.0, 1.0], "m", combination_type=method, density=density)
            peft.set_adapter("m")
            with torch.no_grad():
                wanted = peft.eval()(input_ids=ids, use_cache=False).logits
                found = merged(input_ids=ids, use_cache=False).logits
            apart[method] = float((found - wanted).abs().max() / wanted.abs().max())
    return apart


def check(family: str) -> dict[str, Any]:
    """All measurements of a family; what refuses it says so in its own line."""
    tokenizer = small_tokenizer()
    try:
        first = small_model(family, tokenizer)
        copy.deepcopy(first)(input_ids=torch.arange(1, 6)[None])  # some keep a state
    except Exception as error:  # each configuration class fails in its own way
        return {"family": family, "not_built": one_line(error)}
    found: dict[str, Any] = {"family": family, "class": type(first).__name__}

    def build() -> PreTrainedModel:
        return copy.deepcopy(first)

    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "generation": lambda: check_generation(build, tokenizer),
        "training": lambda: check_training(build, len(tokenizer)),
        "merging": lambda: check_merging(build, len(tokenizer)),
    }
    for name, measure in checks.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found[name] = measure()
            except InputError as error:
                found[name] = {"refused": one_line(error)}
            except Exception as error:  # a fault, which the table has to show
                found[name] = {"failed": f"{type(error).__name__}: {one_line(error)}"}
        found[name]["told"] = sorted({one_line(w.message) for w in told if issubclass(w.category, UserWarning)})
    return found


def one_line(error: object) -> str:
    """Its first lines as one, without the place of temporary folders."""
    text = " ".join((str(error).strip() or type(error).__name__).split())
    return re.sub(rf"{tempfile.gettempdir()}/\w+/", "", text)[:300]
