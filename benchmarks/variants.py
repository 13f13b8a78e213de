"""The ways of training that the benchmark compares, behind one interface: the released one, a competent one, ours."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from benchmarks.competent_step import CompetentStep
from benchmarks.measure import Stopwatch, peak_bytes, reset_peak
from benchmarks.released import EncodedPair, ReleasedStep, Weights
from unlearn_pl.data.batch import collate_pairs
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.lora import Lora, attach_lora
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.prepare import adamw, prepare_policy
from unlearn_pl.training.reference import Reference, live_reference

KLPositions = Literal["released", "padded", "attended", "answer"]


@dataclass(frozen=True)
class Settings:
    """What all ways share."""

    pairs: Sequence[EncodedPair]
    """In the order of training."""
    accumulate: int
    """Pairs of an optimizer step."""
    max_length: int
    """Tokens to which the released way pads every row."""
    pad_token_id: int
    lora: Lora = field(default_factory=Lora)
    positions: KLPositions = "released"
    tokens_per_forward: int | None = 256
    seed: int = 42
    learning_rate: float = 1e-4
    device: str = "cpu"
    micro_batch: int = 1
    """Pairs that the terms are taken of together; it decides what the loss is."""
    checkpointing: bool | None = None
    """Whether activations are computed anew in the backward pass; None for what each way does by itself."""
    autocast: bool = False
    """Whether the ways of PEFT's own layers run under autocast to bfloat16, as the libraries' trainers do it."""

    @property
    def windows(self) -> int:
        """Whole optimizer steps; pairs that do not fill one are left out."""
        return len(self.pairs) // self.accumulate

    def window(self, number: int) -> Sequence[EncodedPair]:
        """The pairs of an optimizer step."""
        return self.pairs[number * self.accumulate : (number + 1) * self.accumulate]


@dataclass(frozen=True)
class Window:
    """One optimizer step as it was measured."""

    loss: float
    """In nats."""
    seconds: float
    """Of the whole step."""
    gradient_seconds: float
    """Of loss and backward alone."""
    peak: int
    """The most memory in use, in bytes, with everything that was there before."""
    tokens: int
    """Tokens that went through the policy's body, padding included."""


@dataclass(frozen=True)
class Build:
    """A build of the reference cache as it was measured."""

    seconds: float
    peak: int
    """The most memory in use, in bytes, with everything that was there before."""


class Variant(ABC):
    """A model in training. ``policy`` is the base model with its adapter."""

    policy: PeftModel

    def __init__(self, base: PreTrainedModel, settings: Settings):
        self.settings, self.device = settings, torch.device(settings.device)
        self.base_bytes = sum(weight.numel() * weight.element_size() for weight in base.parameters())
        self.prepare(base.to(self.device))
        self.tokens = 0
        causal_model(self.policy).get_input_embeddings().register_forward_pre_hook(self._count)
        self.optimizer = adamw(self.policy, settings.learning_rate, weight_decay=0.01)

    @abstractmethod
    def prepare(self, base: PreTrainedModel) -> None:
        """Set ``policy`` up on ``base``, in training mode."""

    @abstractmethod
    def differentiate(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """The loss of an optimizer step, without gradient; its gradient is added to that of the adapter."""

    def window(self, number: int) -> Window:
        """Run an optimizer step and measure it."""
        pairs, watch = self.settings.window(number), Stopwatch(self.device)
        self.tokens = 0
        reset_peak(self.device)
        watch.mark()
        loss = self.differentiate(pairs)
        watch.mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        watch.mark()
        seconds, gradient_seconds = watch.seconds(0, 2), watch.seconds(0, 1)
        return Window(float(loss), seconds, gradient_seconds, peak_bytes(self.device), self.tokens)

    def check(self, number: int) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient by name of an optimizer step without dropout, at an adapter that has left the base model;
        everything is put back afterwards."""
        with moved_adapter(self.policy, self.settings.seed), no_dropout(self.policy):
            loss = float(self.differentiate(self.settings.window(number)))
            named = self.policy.named_parameters()
            gradient = {name: p.grad.cpu().clone() for name, p in named if p.grad is not None}
        self.optimizer.zero_grad()
        return loss, gradient

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.tokens += inputs[0].numel()


class ByMicroBatch(Variant):
    """One backward pass for each micro-batch."""

    step: ReleasedStep | CompetentStep

    def differentiate(self, pairs: Sequence[EncodedPair]) -> Tensor:
        size = self.settings.micro_batch
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        losses = []
        # the steps make their batches on the device of the context
        with nullcontext() if self.device.type == "cpu" else self.device:
            for part in parts:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
                    forget, retain = zip(*part, strict=True)
                    loss = self.step.loss(forget, retain, Weights()) / len(parts)
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses).sum()


class Released(ByMicroBatch):
    """The released ZJUKLAB way, everything padded."""

    def prepare(self, base: PreTrainedModel) -> None:
        s = self.settings
        self.step = ReleasedStep(base, s.lora, s.seed, s.max_length, s.pad_token_id)
        self.policy = self.step.policy
        causal_model(self.policy).config.use_cache = False  # transformers would do it, with a notice


class Competent(ByMicroBatch):
    """What a competent user writes with transformers and PEFT: nothing padded, one model, nothing computed twice."""

    def prepare(self, base: PreTrainedModel) -> None:
        s = self.settings
        self.step = CompetentStep(base, s.lora, s.seed, s.max_length, bool(s.checkpointing))
        self.policy = self.step.policy
        causal_model(self.policy).config.use_cache = False

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():  # not the reference, which is another model of the released way
            super()._count(module, inputs)


class Plain64(Released):
    """The released way in float64 throughout: what the loss and its gradient are."""

    def prepare(self, base: PreTrainedModel) -> None:
        super().prepare(base)
        assert isinstance(self.step, ReleasedStep)
        self.step.policy.double()
        self.step.reference.double()

    def differentiate(self, pairs: Sequence[EncodedPair]) -> Tensor:
        with KeepFloat64():
            return super().differentiate(pairs)


class Ours(Variant):
    """The way of ``unlearn-pl fit``: packed rows, no padding, the reference from the cache."""

    def prepare(self, base: PreTrainedModel) -> None:
        s, weights = self.settings, Weights()
        self.policy = attach_lora(base, s.lora, s.seed)
        self.packed = prepare_policy(self.policy, bool(s.checkpointing))
        objectives: dict[str, Objective] = {
            "ga": NPO(weights.npo, weights.beta, reduction="batch_mean"),
            "gd": RetainKL(weights.kl, s.positions),
            "gk": RetainNLL(weights.nll),
        }
        self.loss = PackedLoss(objectives, s.max_length, s.tokens_per_forward, s.pad_token_id)
        self.reference: Reference = live_reference

    def build(self, folder: Path, pairs: Sequence[EncodedPair]) -> Build:
        """Build the reference cache of the rows of ``pairs`` in an empty ``folder``, as a first epoch does; it is read
        from there on."""
        forget, retain = ({row.record_id: row for row in side} for side in zip(*pairs, strict=True))
        rows: dict[Split, list[Encoded]] = {"forget": list(forget.values()), "retain": list(retain.values())}
        watch = Stopwatch(self.device)
        reset_peak(self.device)
        watch.mark()
        cached = open_or_build(
            self.policy, rows, self.loss.needs, ReferenceCache(str(folder)), "32-true", lambda line: None
        )
        watch.mark()
        if cached is None:
            raise InputError(f"the reference cache of {len(pairs)} pairs is too large; take fewer", "pairs")
        self.reference = cached
        return Build(watch.seconds(0, 1), peak_bytes(self.device))

    def differentiate(self, pairs: Sequence[EncodedPair]) -> Tensor:
        rows = [{"forget": forget, "retain": retain} for forget, retain in pairs]
        batch = collate_pairs(rows, self.settings.pad_token_id, self.settings.micro_batch).to(self.device)
        loss, _ = self.loss(self.policy, batch, self.reference)
        loss.backward()
        return loss.detach()


class KeepFloat64(TorchDispatchMode):
    """Conversions to float32 go to float64: norms, rotary angles and losses of transformers ask for float32 however
    wide the model is, and a float64 result would be no better than that."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Every dropout at rate 0."""
    rates = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    for module in rates:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in rates.items():
            module.p = rate


@contextmanager
def moved_adapter(model: nn.Module, seed: int, scale: float = 0.01) -> Iterator[None]:
    """The B factors, which start at zero, drawn from normal(0, ``scale``): at zero the KL and its gradient vanish."""
    factors = [p for name, p in sorted(model.named_parameters()) if ".lora_B." in name]
    kept = [factor.detach().clone() for factor in factors]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in factors:
            factor.copy_(scale * torch.randn(factor.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for factor, old in zip(factors, kept, strict=True):
                factor.copy_(old)
