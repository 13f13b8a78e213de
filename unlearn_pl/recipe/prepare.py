"""The preparing stages of a recipe: the data, and a base model that has memorised it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn_pl.data.readers import read_documents, read_records
from unlearn_pl.data.records import Record
from unlearn_pl.data.sets import check_documents_per_task, read_split
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, write_json_lines
from unlearn_pl.models.load import load_base, load_tokenizer
from unlearn_pl.models.tiny import TinyModel, build_tiny
from unlearn_pl.tasks.synthetic.benchmark import Synthetic, tokenizer_texts, write_benchmark
from unlearn_pl.training.memorise import Memorise, memorise


@dataclass(frozen=True)
class Subset:
    """A part of real forget and retain sets, small enough to be memorised here."""

    documents_per_task: int | None = 4
    """The first so many documents of each task in each set, with all their rows, are memorised; null for all but the
    non-members."""
    nonmembers_per_task: int = 8
    """The next so many documents of each task of the forget set (if all are to be memorised, the last so many) are
    not: they are the membership attack's non-members."""

    def __post_init__(self) -> None:
        check_documents_per_task(self.documents_per_task)
        if self.nonmembers_per_task < 1:
            raise InputError(f"must be at least 1, got {self.nonmembers_per_task}", "nonmembers_per_task")


@dataclass(frozen=True)
class Prepare:
    """What comes before unlearning: data, and a model that knows it by heart."""

    synthetic: Synthetic | None = None
    """Make the synthetic benchmark; its seed is the recipe's."""
    subset: Subset | None = None
    """Take a part of the rows given as data."""
    tiny: TinyModel | None = None
    """Build a tiny model and its tokenizer; its seed is the recipe's. Without it the base is what memorises."""
    memorise: Memorise | None = None
    """Fine-tune all weights until the model knows the rows; its seed is the recipe's."""

    def __post_init__(self) -> None:
        if (self.synthetic is None) == (self.subset is None):
            raise InputError("needs either 'synthetic' or 'subset'", "prepare")
        if self.tiny is not None and self.synthetic is None:
            raise InputError("'tiny' needs 'synthetic'; a model for real rows is given as base", "prepare")
        if self.memorise is None:
            raise InputError("needs 'memorise', how the model learns the rows", "prepare")


def prepare_data(prepare: Prepare, forget: str | None, retain: str | None, seed: int, folder: Path) -> None:
    """Write `forget.jsonl`, `retain.jsonl`, `membership/` and `mmlu/` into ``folder``."""
    if prepare.synthetic is not None:
        write_benchmark(folder, replace(prepare.synthetic, seed=seed), overwrite=True)
        return
    assert prepare.subset is not None
    if forget is None or retain is None:
        raise InputError("forget and retain are needed, the recipe takes a subset of them", "data")
    write_subset(prepare.subset, forget, retain, seed, folder)


def write_subset(subset: Subset, forget: str, retain: str, seed: int, folder: Path) -> None:
    """The chosen documents, the members and non-members among them, and the built-in multiple-choice questions."""
    taught = read_split(forget, retain, documents_per_task=subset.documents_per_task)
    if subset.documents_per_task is None:
        taught = but_last_documents(taught[0], subset.nonmembers_per_task), taught[1]
    held_out = held_out_documents(read_records(forget), taught[0], subset.nonmembers_per_task)
    with new_folder(folder, overwrite=True) as target:
        for name, records in zip(("forget", "retain"), taught, strict=True):
            write_json_lines(target / f"{name}.jsonl", (row_of(record) for record in records))
        members = [record.document for record in taught[0] if record.kind == "sc"]
        for name, documents in (("member", members), ("nonmember", held_out)):
            write_json_lines(target / "membership" / f"{name}.jsonl", ({"document": text} for text in documents))
        write_benchmark(target / "synthetic", Synthetic(seed=seed))
        shutil.move(target / "synthetic" / "mmlu", target / "mmlu")
        shutil.rmtree(target / "synthetic")


def but_last_documents(records: list[Record], per_task: int) -> list[Record]:
    """The rows of all documents but the last ``per_task`` of each task. Raises InputError if a task has no others."""
    documents: dict[str, dict[str, None]] = {}
    for record in records:
        documents.setdefault(record.task, {})[record.document_id] = None
    if few := [task for task, names in documents.items() if len(names) <= per_task]:
        raise InputError(
            f"must be fewer than the documents of each task of data.forget ({few[0]} has {len(documents[few[0]])}), "
            f"got {per_task}",
            "nonmembers_per_task",
        )
    kept = {(task, name) for task, names in documents.items() for name in list(names)[:-per_task]}
    return [record for record in records if (record.task, record.document_id) in kept]


def held_out_documents(records: list[Record], taught: list[Record], per_task: int) -> list[str]:
    """The first ``per_task`` documents of each task that are not ``taught``."""
    known = {record.document_id for record in taught}
    by_task: dict[str, list[str]] = {}
    for record in records:
        if record.kind == "sc" and record.document_id not in known:
            by_task.setdefault(record.task, []).append(record.document)
    short = [task for task, documents in by_task.items() if len(documents) < per_task]
    if short or not by_task:
        raise InputError(
            f"must be at most the further documents of each task of data.forget, got {per_task}", "nonmembers_per_task"
        )
    return [document for documents in by_task.values() for document in documents[:per_task]]


def row_of(record: Record) -> dict[str, str]:
    """A record as a row of a JSONL file."""
    return {name: getattr(record, name) for name in ("id", "input", "output", "task", "kind")}


def prepare_base(
    prepare: Prepare, base: str | None, seed: int, data: Path, folder: Path, trust_remote_code: bool = False
) -> None:
    """Write a model that has memorised ``data`` into ``folder``, with its tokenizer."""
    assert prepare.memorise is not None
    records = [record for name in ("forget", "retain") for record in read_records(str(data / f"{name}.jsonl"))]
    taught = data / "knowledge.jsonl"
    knowledge = read_documents(str(taught), "prepare") if taught.is_file() else []
    if prepare.tiny is not None:
        assert prepare.synthetic is not None
        texts = tokenizer_texts(replace(prepare.synthetic, seed=seed))
        model, tokenizer = build_tiny(texts, replace(prepare.tiny, seed=seed))
    else:
        assert base is not None
        model, tokenizer = load_base(base, trust_remote_code=trust_remote_code), load_tokenizer(base, trust_remote_code)
    report = memorise(model, tokenizer, records, knowledge, replace(prepare.memorise, seed=seed))
    print(
        f"memorised in {report['seconds']:.0f} s: loss {report['loss']:.4f} nats a token after {report['steps']} steps"
    )
    with new_folder(folder, overwrite=True) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
