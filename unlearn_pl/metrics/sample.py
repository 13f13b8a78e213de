"""One measured row: what was asked, what should have come, what came, and its scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Role = Literal["forget", "retain", "utility", "member", "nonmember"]
"""What a set is for: rows to be forgotten, rows like them to be kept, rows of anything else that must be kept, and the
two sides of a membership attack."""

UNWRITTEN = ("role", "completion", "sampled_scores", "found")
"""Fields that are not written: the benchmark gives them again, or the scores hold them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row of a benchmark with the text that the model wrote for it.

    A row that could not be measured (too long for the model, say) has None in place of a text and of all that follows
    from it.
    """

    id: str
    document: str
    """The document that the row was made from: what a bootstrap draws."""
    split: str
    """Name of the set that the row is of."""
    role: Role
    """What that set is for."""
    task: str
    kind: str
    prompt: str
    expected: str
    completion: bool = True
    """Whether the answer is a text whose words count, and not one fact."""
    generated: str | None = None
    score: float | None = None
    """What the benchmark scores the text by; None if that says nothing of this row."""
    tokens: int | None = None
    """Tokens generated."""
    ended: bool | None = None
    """Whether the text ended by the end token."""
    cut: bool | None = None
    """Whether generation stopped early, as the score was known to be 0."""
    recall: Mapping[str, float | None] | None = None
    """What one forward over the true answer showed, by name: ``probability``, ``exact_memorization``,
    ``extraction_strength`` (None from a broken model), ``length``, and how greedy decoding follows it; None without
    such a forward."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Row metrics by name; None where one says nothing of this row."""
    sampled: tuple[str, ...] | None = None
    """Texts drawn at random for the prompt; None if none were asked for."""

    sampled_scores: tuple[float | None, ...] = ()
    """What the benchmark scores each of these by."""
    found: Mapping[str, float | None] = field(default_factory=dict)
    """What further requests gave for the row, by name of the metric."""

    @property
    def text(self) -> str:
        """The generated text of a row that has one."""
        assert self.generated is not None, self.id
        return self.generated

    @property
    def unit(self) -> tuple[str, str, str]:
        """What a bootstrap draws: rows of one document are alike."""
        return self.split, self.task, self.document

    def to_json(self) -> dict[str, Any]:
        """The fields as a line of ``samples.jsonl`` has them; ``sampled`` only where something was drawn."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in UNWRITTEN}
        for name in ("recall", "scores"):
            values[name] = None if values[name] is None else dict(values[name])
        drawn = values.pop("sampled")
        return values if drawn is None else values | {"sampled": list(drawn)}
