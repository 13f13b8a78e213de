"""One validated record type for every benchmark row, whatever file it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_pl.data.spans import Span, read_spans
from unlearn_pl.errors import InputError

# Rows that a loss term reads side by side: forget, retain, and what further ones the data module makes.
Split = str
NEEDED = ("id", "input", "output")
TEXTS = ("task", "kind", "alternate")
FIELDS = (*NEEDED, *TEXTS, "answer_weights")
BLANK = " "
"""What stands between a prompt and its answer in the text that was memorised."""


def joined(prompt: str, answer: str) -> str:
    """The text that a prompt and its answer are parts of."""
    return f"{prompt}{BLANK}{answer}"


@dataclass(frozen=True)
class Record:
    """A row of a forget or retain set: ``Record(id="1", input="Who painted it?", output="Anna Quill")``.

    ``task`` and ``kind`` are names by which a benchmark groups its rows; training reads neither. An empty ``kind`` is
    taken from an id that ends as in LUME: ``sc`` (sentence completion) of ``...sc1``, ``qa`` (question) of ``...qa0``.
    """

    id: str
    input: str
    output: str
    task: str = ""
    kind: str = ""
    alternate: str | None = None
    """Another answer to the input: a refusal, or a made-up fact."""
    answer_weights: tuple[Span, ...] = ()
    """Weights of parts of the output, for terms that weigh tokens: (start, end, weight) over its characters. What no
    span covers weighs 0; without any span all weighs 1."""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", kind_of_id(self.id) or "")

    @property
    def document_id(self) -> str:
        """The id of the document this row was made from: ``12762334`` of ``12762334qa0``.

        An id that does not end in its own kind and a digit names a document of one row.
        """
        return self.id[:-3] if kind_of_id(self.id) == self.kind else self.id

    @property
    def document(self) -> str:
        """The text that was memorised: SemEval-2025 Task 4 joins input and output with one space."""
        return joined(self.input, self.output)


def record_from_row(row: Mapping[str, Any], where: str) -> Record:
    """Check one row and make it a Record. ``where`` (``forget.jsonl, line 3``) opens every message.

    All but ``id``, ``input`` and ``output`` may be missing or None; further fields are ignored. Raises InputError if
    one of the three is missing, if a text is no text or blank, or if ``answer_weights`` are not spans of the output.
    """
    texts = {
        field: text_field(row, field, where, NEEDED)
        for field in (*NEEDED, *TEXTS)
        if field in NEEDED or row.get(field) is not None
    }
    spans = row.get("answer_weights")
    return Record(**texts, answer_weights=() if spans is None else read_spans(spans, texts["output"], where))


def text_field(row: Mapping[str, Any], field: str, where: str, needed: tuple[str, ...]) -> str:
    """The value of one field of a row, checked to be text that is not blank and can be written as UTF-8."""
    if field in row and row[field] is None:
        raise InputError(f"{where}: field '{field}' must be text, got null")
    value = row.get(field)
    if value is None:
        raise InputError(f"{where}: field '{field}' is missing; a row needs {', '.join(needed)}; it has {some_of(row)}")
    if not isinstance(value, str):
        raise InputError(f"{where}: field '{field}' must be text, got {type(value).__name__} {value!r:.60}")
    if not value.strip():
        raise InputError(f"{where}: field '{field}' is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = value[error.start]
        raise InputError(
            f"{where}: field '{field}' holds half of a surrogate pair ({bad!r}), not a character"
        ) from None
    return value


def some_of(names: Mapping[str, Any]) -> str:
    """The first dozen keys in a message, since a transposed file has thousands."""
    shown = ", ".join(str(name) for name in list(names)[:12]) or "nothing"
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def kind_of_id(row_id: str) -> str | None:
    """The two letters before the last digit of a LUME id, None if they name no kind or no document id precedes them."""
    kind = row_id[-3:-1]
    return kind if len(row_id) > 3 and kind in ("sc", "qa") and row_id[-1:] in "0123456789" else None
