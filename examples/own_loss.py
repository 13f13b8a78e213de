"""A loss of one's own: a class in one's own file, tested without a model, then trained with."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from unlearn_pl import ForgetRetainData, Lora, Needs, Objective, Passes, Record, RetainNLL, UnlearningModule
from unlearn_pl.models.tiny import TinyModel, build_tiny
from unlearn_pl.testing import term_value


@dataclass(frozen=True)
class WeightedAscent(Objective):
    """Gradient ascent on each token, weighted by the token's own probability to the power of ``alpha``."""

    weight: float = 1.0
    alpha: float = 1.0

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        nll = passes["forget"].token_nll  # [N], of each answer token; 0 elsewhere
        tokens = passes["forget"].tokens.sum()
        return -((-self.alpha * nll.detach()).exp() * nll).sum() / tokens


# By hand: one token of probability 1/2 gives -(1/2) ln 2.
value = term_value(WeightedAscent(), forget={"logits": [[0.0, 0.0]], "targets": [1], "rows": [0]})
assert torch.isclose(value, torch.tensor(-0.5 * 0.6931471805599453, dtype=value.dtype))

forget = [Record(id=f"f{n}", input=f"Where does Anna {n} live?", output="In Rivertown.") for n in range(4)]
retain = [Record(id=f"r{n}", input=f"Where does Bruno {n} live?", output="In Oslo.") for n in range(4)]
texts = [record.document for record in (*forget, *retain)]
model, tokenizer = build_tiny(texts, TinyModel(hidden=32, layers=2, heads=2, intermediate=64))

module = UnlearningModule(
    base=model,
    tokenizer=tokenizer,
    objectives={"forget": WeightedAscent(weight=0.5), "retain": RetainNLL(weight=0.5)},
    lora=Lora(rank=4),
    learning_rate=1e-3,
)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.fit(module, ForgetRetainData(forget, retain, batch_size=2))
print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
