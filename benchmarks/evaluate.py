"""Evaluation, ours beside the official way of it and beside batches: the same rows in turn, the time of each, and
whether they agree.

python -m benchmarks.evaluate --model DIR --data.forget F --data.retain R --json OUT
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.command import BenchData, hashes_of, run, shown, tell
from benchmarks.competent import answer_batches, attack_batches, attack_one_by_one, continue_batches
from benchmarks.official import PASSES, answer_each, attack_each, continue_each
from benchmarks.turns import Calls, Round, Tell, take_turns, time_figures
from benchmarks.workload import Amounts, Workload, choose_work
from unlearn_pl.data.records import Record
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice, answer_choices, fitting_prompt, letter_ids
from unlearn_pl.evaluation.membership import document_attacks
from unlearn_pl.files import sha256_of, write_json
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import open_adapter
from unlearn_pl.provenance import provenance
from unlearn_pl.tasks.mmlu import LETTERS, Subject

RATIOS = {
    "ratio_generation": ("generation", ["official"]),
    "ratio_generation_batched": ("generation", ["batches of 8", "batches of 32"]),
    "ratio_choice": ("choice", ["official"]),
    "ratio_choice_batched": ("choice", ["batches"]),
    "ratio_membership": ("membership", ["official"]),
    "ratio_membership_batched": ("membership", ["batches"]),
    "ratio_membership_one_forward": ("membership", ["batches, one forward"]),
    "ratio_membership_loss": ("membership_loss", ["official"]),
}
"""Name of a figure -> the work, and the ways of which the fastest is compared with ours."""
# All ways take turns after so many rows, so that they see the same minutes of the machine.
CHUNK_ROWS = 100
WARM_ROWS, WARM_TOKENS = 2, 16


def compare_evaluation(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, work: Workload, amounts: Amounts, rounds: int, tell: Tell
) -> dict[str, Any]:
    """All figures of ``rounds`` rounds of all ways, JSON-ready.

    Raises InputError if a row exceeds the model's positions.
    """
    # Said now and not after an hour
    ours = LanguageModel(model, tokenizer)
    ours.encode_texts([row.input for row in work.records], "max_new_tokens", amounts.max_new_tokens)
    ours.encode_texts(work.documents, "documents")
    device = next(model.parameters()).device
    first = work.subjects[0]
    small = Subject(first.name, first.shots, first.questions[:WARM_ROWS])
    warm = Workload(work.records[:WARM_ROWS], [small], work.documents[:WARM_ROWS])
    for kind, calls in calls_of(model, tokenizer, warm, min(WARM_TOKENS, amounts.max_new_tokens)).items():
        tell(f"warming up: {kind}")
        take_turns(calls, device, swapped=False)
    done: list[Round] = []
    for number in range(rounds):
        done.append({})
        for kind, calls in calls_of(model, tokenizer, work, amounts.max_new_tokens, tell).items():
            tell(f"round {number + 1} of {rounds}: {kind}")
            done[-1][kind] = take_turns(calls, device, swapped=number % 2 == 1, tell=tell)
    letters = own_letters(ours, work.subjects)
    return (
        time_figures(done, RATIOS)
        | generation_figures(done, work)
        | choice_figures(done, letters, work)
        | score_figures(done, work)
    )


def asked(row: Record) -> Prompt:
    """A row as `unlearn-pl evaluate` asks it."""
    return Prompt(row.input, row.output, exact=row.kind == "qa")


def calls_of(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, work: Workload, max_new_tokens: int, tell: Tell | None = None
) -> dict[str, Calls]:
    """What each way does for each kind of work, ours last."""
    # Parts of one size: a last one of a few rows would be no batch at all
    parts = math.ceil(len(work.records) / CHUNK_ROWS)
    chunks = [work.records[len(work.records) * n // parts : len(work.records) * (n + 1) // parts] for n in range(parts)]
    inputs = [[row.input for row in chunk] for chunk in chunks]
    both, attacks = (model, tokenizer), tuple(PASSES)
    ours = LanguageModel(model, tokenizer, work=Work(tell))
    return {
        "generation": {
            "official": [partial(continue_each, *both, part, max_new_tokens, tell) for part in inputs],
            "batches of 8": [partial(continue_batches, *both, part, max_new_tokens, 8, tell) for part in inputs],
            "batches of 32": [partial(continue_batches, *both, part, max_new_tokens, 32, tell) for part in inputs],
            "ours": [
                partial(ours.generate, [asked(row) for row in chunk], Generation(max_new_tokens)) for chunk in chunks
            ],
        },
        "choice": {
            "official": [partial(answer_each, *both, work.subjects)],
            "batches": [partial(answer_batches, *both, work.subjects)],
            "ours": [partial(answer_choices, ours, work.subjects)],
        },
        "membership": {
            "official": [partial(attack_each, *both, work.documents, attack) for attack in attacks],
            "batches": [partial(attack_one_by_one, *both, work.documents, attack) for attack in attacks],
            "batches, one forward": [partial(attack_batches, *both, work.documents, attacks)],
            "ours": [partial(document_attacks, ours, work.documents, attacks)],
        },
        "membership_loss": {
            "official": [partial(attack_each, *both, work.documents, "loss")],
            "ours": [partial(document_attacks, ours, work.documents)],
        },
    }


def own_letters(ours: LanguageModel, subjects: Sequence[Subject]) -> list[str | None]:
    """The letters behind the outcomes that ``answer_choices`` gives."""
    prompts = [fitting_prompt(ours, subject, question)[0] for subject in subjects for question in subject.questions]
    places = ours.next_token(prompts, letter_ids(ours.tokenizer), batch_size=Choice.batch_size)
    return [None if place is None else LETTERS[place] for place in places]


def generation_figures(done: Sequence[Round], work: Workload) -> dict[str, Any]:
    """Rows whose text is the official way's in every round, the ids of the others, how many of the batches' texts are
    not, and what was generated in the first round.

    ``rows_unsure`` had a close call within their expected answer, so our way generated them alone from the first token
    on; rows that it had to redo alone later, for a close call within a batch, are not counted. ``tokens_confirmed`` are
    those of the other rows' expected answers that one forward showed to be the greedy ones.
    """
    answers = [
        {way: [answer for result in side.results for answer in result] for way, side in one["generation"].items()}
        for one in done
    ]
    differing = {
        way: {
            record.id
            for sides in answers
            for record, *both in zip(work.records, sides["official"], sides[way], strict=True)
            if both[0].text != both[1].text
        }
        for way in answers[0]
        if way != "official"
    }
    recalls = [answer.recall for answer in answers[0]["ours"]]
    return {
        "rows": len(work.records),
        "identical_rows": len(work.records) - len(differing["ours"]),
        "differing_rows": sorted(differing["ours"]),
        "differing_rows_batched": {way: len(rows) for way, rows in differing.items() if way != "ours"},
        "tokens_generated": {way: sum(answer.tokens for answer in found) for way, found in answers[0].items()},
        "ended_share": {way: statistics.fmean(answer.ended for answer in found) for way, found in answers[0].items()},
        "rows_unsure": sum(recall.unsure for recall in recalls),
        "tokens_confirmed": sum(recall.accepted for recall in recalls if not recall.unsure),
    }


def choice_figures(done: Sequence[Round], letters: Sequence[str | None], work: Workload) -> dict[str, Any]:
    """Questions with the same letter in every round (``letters`` are ours), and both ways' accuracy in the first."""
    asked = [question for subject in work.subjects for question in subject.questions]
    official = [one["choice"]["official"].results[0] for one in done]
    ours = done[0]["choice"]["ours"].results[0]
    right = [letter == question.answer for letter, question in zip(official[0], asked, strict=True)]
    return {
        "questions": len(asked),
        "subjects": {subject.name: len(subject.questions) for subject in work.subjects},
        "identical_choices": sum({*theirs} == {own} for own, *theirs in zip(letters, *official, strict=True)),
        "accuracy": {"official": statistics.fmean(right), "ours": ours["average"]},
        "questions_with_fewer_shots": ours["shortened"],
    }


def score_figures(done: Sequence[Round], work: Workload) -> dict[str, Any]:
    """Attack -> largest relative difference of a document's score between both ways, over all rounds.

    The attack ``loss`` is the loss, negated. None where a score is infinite in one of them only.
    """
    largest = dict.fromkeys(PASSES, 0.0)
    for one in done:
        ours = one["membership"]["ours"].results[0]
        for attack, theirs in zip(PASSES, one["membership"]["official"].results, strict=True):
            gaps = [relative_difference(a, b) for a, b in zip(theirs, ours[attack], strict=True)]
            largest[attack] = max(largest[attack], *gaps)
    shown = {attack: gap if math.isfinite(gap) else None for attack, gap in largest.items()}
    return {"documents": len(work.documents), "largest_relative_difference": shown}


def relative_difference(one: float, other: float) -> float:
    """|one - other| / the larger size; 0 if they are the same, infinite if only one of them is a finite number."""
    if one == other or not (math.isfinite(one) or math.isfinite(other)):
        return 0.0
    gap = abs(one - other) / max(abs(one), abs(other))
    return gap if math.isfinite(gap) else math.inf


def evaluate(
    model: str,
    data: BenchData,
    json: str,
    adapter: str | None = None,
    rows: int = 200,
    max_new_tokens: int = 256,
    rounds: int = 1,
    questions: int = 60,
    shots: int = 5,
    documents: int = 40,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 42,
) -> None:
    """Evaluate a model by the official way, in batches, and by ours, in turn within one process, and compare time and
    results.

    The official way is one row at a time: generation as in SemEval-2025 Task 4, one question at a time, and for each
    membership attack a forward over each document, as in open-unlearning. Batches, as one writes them with transformers
    alone: `generate` on 8 and on 32 rows of like length, whole prompts of 8 questions, 8 documents a forward (one for
    each attack, and one for all). Multiple choice is made of the question rows.
    The file holds ids of rows and no texts.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to evaluate on.
        json: File for all figures.
        adapter: Folder of a PEFT adapter to put on the model.
        rows: Rows to generate answers to, half of them from each set; at least 2.
        max_new_tokens: A row that has not ended by then is cut; at least 1.
        rounds: How often to measure everything; the figures are medians. At least 1.
        questions: Multiple-choice questions; at least 1. Fewer if the rows give fewer.
        shots: Solved questions before each of them; at least 0.
        documents: Documents of the membership attacks, from completion rows; at least 1. Fewer if there are fewer.
        dtype: Type of the weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        seed: Of the choice of rows, questions and documents.
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    amounts = Amounts(rows, max_new_tokens, questions, shots, documents)
    place = check_evaluation(model, adapter, rounds, dtype, device)
    work = choose_work(*read_split(data.forget, data.retain), amounts, seed)
    for name, asked, found in (("questions", questions, work.questions), ("documents", documents, len(work.documents))):
        if found < asked:
            tell(f"--{name}: the two sets give {found} of the {asked}")
    tokenizer = load_tokenizer(model)
    network: nn.Module = load_base(model, dtype)
    if adapter is not None:
        network = open_adapter(network, adapter)
    figures = compare_evaluation(network.to(place), tokenizer, work, amounts, rounds, tell)
    print_evaluation(figures)
    folder, gguf = resolve(model)
    weights = Path(folder) / (gguf or "")
    hashes = {
        "model": sha256_of(weights) if weights.exists() else None,  # None for one from the hub
        "adapter": None if adapter is None else sha256_of(adapter),
        **hashes_of(data),
    }
    write_json(json, provenance(**figures, config=config | {"device": place}, hashes=hashes))
    print(f"wrote {json}")


def check_evaluation(model: str, adapter: str | None, rounds: int, dtype: str, device: str) -> str:
    """All that can be told to be wrong before anything is read; gives the device. Raises InputError."""
    if rounds < 1:
        raise InputError(f"must be at least 1, got {rounds}", "rounds")
    if dtype not in DTYPES:
        raise InputError(f"must be one of {', '.join(DTYPES)}, got {dtype}", "dtype")
    resolve(model)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"{adapter} has no adapter_config.json; a PEFT adapter folder is needed", "adapter")
    return str(find_device(device))


def print_evaluation(figures: dict[str, Any]) -> None:
    """Print one line for each comparison, and how far ours agrees with the official way."""
    amounts = {key: figures[key] for key in ("rows", "questions", "documents")}
    rows, questions, documents = (f"{count} {name}" for name, count in amounts.items())
    gaps = figures["largest_relative_difference"]
    largest = None if None in gaps.values() else max(gaps.values())
    lines = {
        "generation": (f"generation, {rows}", f"{figures['identical_rows']} texts identical"),
        "choice": (f"multiple choice, {questions}", f"{figures['identical_choices']} letters identical"),
        "membership": (f"{len(gaps)} attacks, {documents}", f"scores within {shown(largest)}"),
        "membership_loss": (f"loss attack, {documents}", f"scores within {shown(gaps['loss'])}"),
    }
    table = Table(
        "Work", "Compared with", "Its s", "Ours, s", "Faster", "Range over rounds", "Ours beside the official way"
    )
    for name, (kind, ways) in sorted(RATIOS.items(), key=lambda item: item[1][1] == ["official"]):
        seconds = {way: found[kind] for way, found in figures["seconds"].items() if kind in found}
        low, high = figures["ranges"][name]
        fastest = min(ways, key=lambda way: seconds[way])
        told = [shown(seconds[fastest]), shown(seconds["ours"]), shown(figures[name]), f"{shown(low)} to {shown(high)}"]
        table.add_row(lines[kind][0], fastest, *told, lines[kind][1])
    Console(width=140).print(table)
    tokens, ended = (figures[key]["official"] for key in ("tokens_generated", "ended_share"))
    print(f"{tokens} tokens generated, {ended:.0%} of the rows ended by EOS; {figures['rows_unsure']} rows unsure")


if __name__ == "__main__":
    run(evaluate)
