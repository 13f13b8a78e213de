"""Make a tiny model forget documents, and measure how well that went: the whole way, in memory, in seconds."""

import tempfile

from lightning.pytorch import Trainer, seed_everything

from unlearn_pl import NPO, ForgetRetainData, Lora, Lume, Record, RetainKL, RetainNLL, UnlearningModule, evaluate
from unlearn_pl.models.tiny import TinyModel, build_tiny
from unlearn_pl.tasks.synthetic.benchmark import Synthetic, invent_benchmark, tokenizer_texts
from unlearn_pl.training.memorise import Memorise, memorise

# A world of invented people: rows to forget and rows to keep.
sizes = Synthetic(documents_per_task=1, nonmembers_per_task=1, questions=1)
world = invent_benchmark(sizes)
forget = [Record(**row) for document in world.forget for row in document.rows()]
retain = [Record(**row) for document in world.retain for row in document.rows()]

# A base model that knows both by heart. Any causal language model of transformers does instead.
model, tokenizer = build_tiny(tokenizer_texts(sizes), TinyModel(hidden=64, layers=2, heads=4, intermediate=128))
memorise(model, tokenizer, [*forget, *retain], [], Memorise(epochs=25, learning_rate=5e-3, accelerator="cpu"))

seed_everything(42, verbose=False)
module = UnlearningModule(
    base=model,
    tokenizer=tokenizer,
    objectives={"ga": NPO(weight=0.4), "gd": RetainNLL(weight=0.3), "gk": RetainKL(weight=0.3)},
    lora=Lora(rank=8, alpha=16),
    learning_rate=5e-3,
)
data = ForgetRetainData(forget, retain, batch_size=4)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)
    module.save_adapter(f"{folder}/adapter")  # a PEFT adapter
    trainer.save_checkpoint(f"{folder}/last.ckpt")  # `UnlearningModule.load_from_checkpoint` opens it

results = evaluate(module.model, tokenizer, Lume(forget, retain))
print({name: value for name, value in results.headline.items() if value is not None})
for term, value in results.terms.items():
    print(f"{term}: {value}")
