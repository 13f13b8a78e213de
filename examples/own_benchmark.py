"""A benchmark of one's own: three sets, an own score of a row and an own aggregate, on a tiny model.

Run it with `python examples/own_benchmark.py`, or let the command find the class:
`PYTHONPATH=examples unlearn-pl evaluate --benchmark own_benchmark.Capitals --model MODEL --output OUT`.
"""

from collections.abc import Sequence
from statistics import fmean

from unlearn_pl import Record, evaluate
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.inference.generation import Generation
from unlearn_pl.metrics.sample import Role
from unlearn_pl.models.tiny import TinyModel, build_tiny
from unlearn_pl.tasks.base import Benchmark, RowSet, Term

FACTS = {
    "forget": {"France": "Paris", "Italy": "Rome"},
    "retain": {"Spain": "Madrid", "Peru": "Lima"},
    "colours": {"snow": "white", "grass": "green"},
}


class Capitals(Benchmark):
    """Two capitals to be forgotten, two to be kept, and what every model should know anyhow."""

    def __init__(self, strict: bool = False):
        self.strict = strict

    def sets(self) -> list[RowSet]:
        roles: dict[str, Role] = {"forget": "forget", "retain": "retain", "colours": "utility"}
        return [
            RowSet(name, roles[name], [Record(f"{name} {key}", key, value) for key, value in FACTS[name].items()])
            for name in FACTS
        ]

    def prompt(self, row: Record) -> str:
        return f"What belongs to {row.input}?"

    def score(self, row: Record, text: str) -> float:
        """Whether the answer is in the text; the text must be nothing else if ``strict``."""
        return float(text.strip() == row.output if self.strict else row.output.lower() in text.lower())

    def task_aggregate(self, terms: Sequence[Term]) -> float:
        """Forgetting counts for half, everything that had to stay for the other half."""
        lost = [term.value or 0.0 for term in terms if term.role == "forget"]
        kept = [term.value or 0.0 for term in terms if term.role != "forget"]
        return fmean([fmean(lost), fmean(kept)])


if __name__ == "__main__":
    words = [f"What belongs to {key}? {value}" for facts in FACTS.values() for key, value in facts.items()]
    model, tokenizer = build_tiny(words, TinyModel(hidden=32, layers=1, heads=2))
    results = evaluate(model, tokenizer, Capitals(), EvaluationOptions(generation=Generation(max_new_tokens=8)))
    print(f"task aggregate {results.task_aggregate:.3f}, terms {results.terms}")
