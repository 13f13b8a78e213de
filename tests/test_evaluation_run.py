"""The whole evaluation: results, samples, files, and two processes against one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sample
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationInputs, read_inputs
from unlearn_pl.evaluation.membership import Membership, document_losses
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results, write_results
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.generation import Answer, Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.scores import knowledge_score, regurgitation_score
from unlearn_pl.tasks.lume import Lume

Build = Callable[[], LlamaForCausalLM]


def write_lines(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(split: str) -> list[dict[str, str]]:
    return [
        {"id": f"{split}{task}{kind}", "input": f"{split} {task} asks {kind}:", "output": f"it is {task}", "task": task}
        for task in ("Task2", "Task1", "Task3")
        for kind in ("sc1", "qa0")
    ]


@pytest.fixture
def data(tmp_path: Path) -> EvaluationData:
    """A row for each of the twelve terms."""
    forget, retain = (write_lines(tmp_path / f"{split}.jsonl", rows_of(split)) for split in ("forget", "retain"))
    return EvaluationData(forget, retain)


@pytest.fixture
def options(tmp_path: Path) -> EvaluationOptions:
    """With three non-members, and three questions in two subjects."""
    documents = [{"document": f"nobody knows of number {number}, {'really ' * number}"} for number in range(3)]
    nonmember = write_lines(tmp_path / "nonmember.jsonl", documents)
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "law_test.csv").write_text("How many?,1,2,3,4,A\nWhich is it?,one,two,ten,six,D\n")
    (tmp_path / "mmlu" / "test" / "art_test.csv").write_text("Who?,Ida,Bo,Cy,Di,B\n")
    return EvaluationOptions(
        membership=Membership(nonmember=nonmember, batch_size=2),
        choice=Choice(str(tmp_path / "mmlu"), shots=0, batch_size=2),
        generation=Generation(8, 2),
    )


def test_results_follow_from_their_parts(
    data: EvaluationData, options: EvaluationOptions, tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Twelve terms of one row each, the AUC by counting pairs, the aggregate as a mean of three."""
    model = tiny_model()
    inputs = read_inputs(data, options)
    found = evaluate(model, tokenizer, inputs, options)
    results, samples = found.to_json(), found.samples

    assert [(row.id, row.split) for row in samples] == [
        (row["id"], split) for split in ("forget", "retain") for row in rows_of(split)
    ]
    asked = LanguageModel(model, tokenizer)
    answers = asked.generate([row.prompt for row in samples], Generation(8))
    assert [row.generated for row in samples] == [answer.text for answer in answers]
    for row in samples:
        score = regurgitation_score if row.kind == "sc" else knowledge_score
        assert row.score == score(row.expected, row.generated)
        name = {"sc": "regurgitation", "qa": "knowledge"}[row.kind]
        term = results["terms"][f"{row.split}/{row.task}/{name}"]
        assert term == (1 - row.score if row.split == "forget" else row.score)
    assert len(results["terms"]) == 12

    assert inputs.members == ["forget Task3 asks sc1: it is Task3"]
    member, *others = document_losses(asked, inputs.members + inputs.nonmembers, batch_size=2)
    assert results["membership_auc"] == pytest.approx(sum(member < other for other in others) / 3)
    assert results["membership_score"] == pytest.approx(1 - 2 * abs(results["membership_auc"] - 0.5))
    parts = (results["task_aggregate"], results["membership_score"], results["mmlu"])
    assert results["aggregate"] == pytest.approx(sum(parts) / 3)
    assert results["counts"] == dict.fromkeys(results["terms"], 1) | {"questions": 3, "member": 1, "nonmember": 3}
    assert set(results["choice"]["subjects"]) == {"art", "law"}
    assert results["semeval"]["aggregate-score"] == results["aggregate"]
    assert results["eligible"] is None


def test_a_model_that_knows_everything(
    data: EvaluationData, tokenizer: PreTrainedTokenizerFast, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each generation is the expected text: forget terms 0, retain terms 1, so the task aggregate is 0."""
    inputs = read_inputs(data, EvaluationOptions())
    answers = {record.input: record.output for _, record in inputs.rows}
    monkeypatch.setattr(
        LanguageModel,
        "generate",
        lambda asked, prompts, options: [Answer(answers[p.text], 3, True, False, None) for p in prompts],
    )
    results = evaluate(tiny_model(), tokenizer, inputs).to_json()
    assert set(list(results["terms"].values())[:6]) == {0}
    assert set(list(results["terms"].values())[6:]) == {1}
    assert results["task_aggregate"] == 0
    for name in ("membership_auc", "membership_score", "mmlu", "aggregate", "eligible", "choice"):
        assert results[name] is None
    assert results["counts"]["member"] == results["counts"]["questions"] == 0


@pytest.mark.parametrize(
    ("mmlu", "threshold", "eligible"), [(0.4, 0.371, True), (0.371, 0.371, False), (0.4, None, None)]
)
def test_eligible_is_above_the_threshold(mmlu: float, threshold: float | None, eligible: bool | None) -> None:
    for choice, expected in (({"average": mmlu, "questions": 1}, eligible), (None, None)):
        attacks, rows = {"loss": [2.0, 1.0]}, [sample(split="retain", kind="qa", score=1.0)]
        measured = Measured(samples=rows, attacks=attacks, members=["a"], nonmembers=["b"], choice=choice)
        options = EvaluationOptions(minimum_mmlu=threshold)
        assert results_of(measured, Lume([], []), [], options).eligible is expected


def test_the_limit_reaches_the_reader(data: EvaluationData, tmp_path: Path) -> None:
    """Each task has two rows of one document; a second document of Task1 is beyond a limit of one."""
    rows = rows_of("forget")
    more = write_lines(tmp_path / "more.jsonl", [*rows, rows[2] | {"id": "otherTask1sc1"}])
    for limit, count in ((None, 7), (1, 6)):
        limited = EvaluationData(more, data.retain, documents_per_task=limit)
        assert len(read_inputs(limited, EvaluationOptions()).sets[0].rows) == count


def test_documents_on_both_sides_are_refused(data: EvaluationData, tmp_path: Path) -> None:
    """Of one file for both sides the AUC is 0.5 and the membership score 1, whatever the model."""
    same = write_lines(tmp_path / "m.jsonl", [{"document": "one"}, {"document": "two"}])
    with pytest.raises(InputError, match=r"^membership.nonmember: 2 documents are members as well, .*'one'"):
        read_inputs(data, EvaluationOptions(membership=Membership(member=same, nonmember=same)))


def test_what_rouge_cannot_see_is_told_before_anything_is_measured(data: EvaluationData, tmp_path: Path) -> None:
    rows = [row | {"output": "上海"} if row["id"].endswith("sc1") else row for row in rows_of("forget")]
    rows[2]["output"] = "上海上海上海 ab"
    chinese = write_lines(tmp_path / "chinese.jsonl", rows)
    with pytest.warns(UserWarning, match="scores: ") as told:
        read_inputs(EvaluationData(chinese, data.retain), EvaluationOptions())
    said = [str(one.message) for one in told]
    assert said[0].startswith("scores: 2 of 3 sc rows of the forget set have no score: ROUGE knows only a-z and 0-9")
    assert said[1].startswith(
        "scores: ROUGE sees only 25% of the letters and digits of 1 of 3 sc rows of the forget set"
    )


@pytest.mark.filterwarnings("ignore:scores")
def test_a_set_that_rouge_cannot_see_has_no_task_aggregate(
    tmp_path: Path, data: EvaluationData, tokenizer: PreTrainedTokenizerFast, tiny_model: Build
) -> None:
    """Not the 1.000 of perfect forgetting; leak@k and the official keys say nothing either."""
    rows = [row | {"output": "上海"} if row["id"].endswith("sc1") else row for row in rows_of("forget")]
    chinese = EvaluationData(write_lines(tmp_path / "chinese.jsonl", rows), data.retain)
    options = EvaluationOptions(generation=Generation(4, 4), sampling=Sampling(samples=1, max_new_tokens=2))
    results = evaluate(tiny_model(), tokenizer, read_inputs(chinese, options), options).to_json()
    assert results["task_aggregate"] is results["aggregate"] is None
    assert results["terms"]["forget/Task1/regurgitation"] is None
    assert results["counts"]["forget/Task1/regurgitation"] == 0
    assert results["semeval"]["forget-set"]["Task1"]["regurgitation-score"] is None
    assert results["semeval"]["aggregate-score"] == -1
    assert results["scores"]["task_aggregate"]["value"] is None
    assert results["scores"]["forget/leak_at_1"]["n"] == 3, "the questions alone"
    assert results["scores"]["forget/regurgitation_unicode"]["n"] == 3
    assert any(
        note.startswith("no Task Aggregate and no Aggregate: no row has a score in") for note in results["notes"]
    )


def test_inputs_are_checked(data: EvaluationData, tmp_path: Path) -> None:
    for membership in (Membership(member="m.jsonl"), Membership(tasks=["Task1"])):
        with pytest.raises(InputError, match=r"membership.nonmember: needed with membership.member or"):
            read_inputs(data, EvaluationOptions(membership=membership))
    with pytest.raises(InputError, match=r"^membership.nonmember: .*gone.jsonl does not exist"):
        read_inputs(data, EvaluationOptions(membership=Membership(nonmember=str(tmp_path / "gone.jsonl"))))
    with pytest.raises(InputError, match=r"minimum_mmlu: must be in \[0, 1\], got 37.1"):
        EvaluationOptions(minimum_mmlu=37.1)


def test_a_member_file_replaces_the_rebuilt_documents(data: EvaluationData, tmp_path: Path) -> None:
    member = write_lines(tmp_path / "m.jsonl", [{"document": "seen in training"}])
    other = write_lines(tmp_path / "n.jsonl", [{"document": "never seen"}])
    inputs = read_inputs(data, EvaluationOptions(membership=Membership(member=member, nonmember=other)))
    assert (inputs.members, inputs.nonmembers) == (["seen in training"], ["never seen"])


def test_written_files(tmp_path: Path) -> None:
    """Same input, same bytes; text stays readable; nothing else is left in the folder."""
    samples = [sample(id="a", generated="Zoë\nand \u2028 more"), sample(id="b", generated="", sampled=("x",))]
    folders = [tmp_path / "one", tmp_path / "two"]
    empty = dict.fromkeys(("membership_auc", "membership_score", "mmlu", "aggregate", "eligible", "choice"))
    plain = {"task_aggregate": 0.5, **empty, "terms": {}, "counts": {}, "semeval": {"a": 1}, "scores": {}}
    plain |= {"verdicts": {}, "truth": {}, "notes": []}
    results = Results.from_json(plain, samples)
    for folder in folders:
        write_results(folder, results, {"commit": None})
        assert sorted(path.name for path in folder.iterdir()) == ["documents.jsonl", "results.json", "samples.jsonl"]
    for name in ("results.json", "samples.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    lines = (folders[0] / "samples.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == [one.to_json() for one in samples]
    assert "Zoë" in lines[0]
    assert json.loads((folders[0] / "results.json").read_text()) == plain | {"provenance": {"commit": None}}


def test_batches_hold_every_row_once_longest_first() -> None:
    batches = length_sorted_batches([3, 9, 1, 9, 5], 2)
    assert batches == [[1, 3], [4, 0], [2]]
    said: list[str] = []
    assert map_batches(batches, lambda batch: [index * 10 for index in batch], "rows", Work(said.append)) == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert said == ["rows: 2 of 5", "rows: 4 of 5", "rows: 5 of 5"]


RANK = """
import json, multiprocessing, sys
import torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer
from unlearn_pl.inference import likelihood
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.inference.generation import Generation
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate

def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    options = EvaluationOptions(
        membership=Membership(nonmember=f"{folder}/nonmember.jsonl", batch_size=2),
        choice=Choice(f"{folder}/mmlu", shots=0, batch_size=2),
        generation=Generation(8, 2),
    )
    inputs = read_inputs(EvaluationData(f"{folder}/forget.jsonl", f"{folder}/retain.jsonl"), options)
    rows = []
    real = likelihood.likelihood
    likelihood.likelihood = lambda scores, *others: rows.append(len(scores.logprob)) or real(scores, *others)
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model")
    found = evaluate(model, AutoTokenizer.from_pretrained(f"{folder}/model"), inputs, options)
    with open(f"{folder}/rank{rank}.json", "w") as stream:
        samples = [one.to_json() for one in found.samples]
        json.dump({"results": found.to_json(), "samples": samples, "rows": rows}, stream)
    distributed.destroy_process_group()

if __name__ == "__main__":
    # Forked, not spawned: the imports take longer than the work. Nothing has been computed yet, so no thread is lost.
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank, sys.argv[1])) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
"""


def test_two_processes_agree_with_one(
    data: EvaluationData,
    options: EvaluationOptions,
    tmp_path: Path,
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Both ranks hold the complete result, to the last digit that of one process, and no row was generated twice."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = tmp_path / "ranks.py"
    script.write_text(RANK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = evaluate(model, tokenizer, read_inputs(data, options), options)
    torch.set_num_threads(threads)
    ranks: list[dict[str, Any]] = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["results"] == alone.to_json()
        assert rank["samples"] == [one.to_json() for one in alone.samples]
        assert len(rank["rows"]) == 6
    answers = [len(tokenizer(f" {one.expected}").input_ids) + 1 for one in alone.samples]
    assert sorted(ranks[0]["rows"] + ranks[1]["rows"]) == sorted(answers)


def test_inputs_keep_the_order_of_the_data(data: EvaluationData) -> None:
    inputs: EvaluationInputs = read_inputs(data, EvaluationOptions())
    assert [one.name for one, _ in inputs.rows] == ["forget"] * 6 + ["retain"] * 6
