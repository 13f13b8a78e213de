"""A forget and a retain set that belong together, and their first documents."""

from collections import defaultdict
from collections.abc import Mapping

from unlearn_pl.data.readers import Source, read_records
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError


def read_split(
    forget: Source, retain: Source, columns: Mapping[str, str] | None = None, documents_per_task: int | None = None
) -> tuple[list[Record], list[Record]]:
    """Read a forget and a retain set that belong together, each from a source of ``read_records``.

    ``documents_per_task`` keeps the first so many documents of each task in each of the two, with all their rows.
    Raises InputError as ``read_records`` does, and if a row id is in both.
    """
    check_documents_per_task(documents_per_task)
    forget_records = read_records(forget, columns, "forget")
    retain_records = read_records(retain, columns, "retain")
    number_of = {record.id: number for number, record in enumerate(forget_records, start=1)}
    for number, record in enumerate(retain_records, start=1):
        if record.id in number_of:
            other = place(forget, number_of[record.id])
            raise InputError(
                f"{place(retain, number)}: id {record.id!r} is that of forget, {other}; they must not share any",
                "retain",
            )
    return first_documents(forget_records, documents_per_task), first_documents(retain_records, documents_per_task)


def place(source: Source, number: int) -> str:
    """A row of a source, for a message."""
    return f"row {number}" if not isinstance(source, str) else f"{source}, row {number}"


def first_documents(records: list[Record], per_task: int | None) -> list[Record]:
    """The rows of the first ``per_task`` documents of each task, in their order; all rows if it is None."""
    if per_task is None:
        return records
    documents: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        documents[record.task][record.document_id] = None
    kept = {(task, name) for task, names in documents.items() for name in list(names)[:per_task]}
    return [record for record in records if (record.task, record.document_id) in kept]


def check_documents_per_task(documents_per_task: int | None) -> None:
    """Raise InputError unless the limit is absent or at least one."""
    if documents_per_task is not None and documents_per_task < 1:
        raise InputError(f"must be at least 1, or null for all, got {documents_per_task}", "documents_per_task")
