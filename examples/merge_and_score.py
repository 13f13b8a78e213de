"""Two adapters of one base, one that forgets too much and one too little, merged and scored."""

import tempfile
from copy import deepcopy

from lightning.pytorch import Trainer

from unlearn_pl import NPO, ForgetRetainData, Lora, Lume, Record, RetainNLL, UnlearningModule, evaluate, merge_adapters
from unlearn_pl.models.tiny import TinyModel, build_tiny

rows = {
    name: [
        Record(id=f"{name}{n}{kind}", input=f"Where does {person} {n} live?", output=f"In {town}.", task="Task1")
        for n in range(3)
        for kind in ("sc1", "qa0")
    ]
    for name, person, town in (("forget", "Anna", "Rivertown"), ("retain", "Bruno", "Oslo"))
}
texts = [record.document for records in rows.values() for record in records]
base, tokenizer = build_tiny(texts, TinyModel(hidden=32, layers=2, heads=2, intermediate=64))
data = ForgetRetainData(**rows, batch_size=2)


def train(folder: str, forget: float, retain: float) -> str:
    """An adapter with these weights. Both start from the same seed, which merges in factor space need."""
    module = UnlearningModule(
        base=deepcopy(base),
        tokenizer=tokenizer,
        objectives={"ga": NPO(weight=forget), "gd": RetainNLL(weight=retain)},
        lora=Lora(rank=4),
        learning_rate=1e-3,
        seed=42,
    )
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    trainer.fit(module, data)
    module.save_adapter(f"{folder}/adapter")
    return f"{folder}/adapter"


with tempfile.TemporaryDirectory() as logs:
    adapters = [train(f"{logs}/over", 0.9, 0.1), train(f"{logs}/under", 0.1, 0.9)]
    for method in ("ties", "linear"):
        merged = merge_adapters(base, adapters, method=method)
        merged.save(f"{logs}/{method}")
        scores = evaluate(merged.open(deepcopy(base)), tokenizer, Lume(**rows))
        print(f"{method}: task aggregate {scores.task_aggregate}")
