"""The command behind ``unlearn-pl evaluate``, called as a function."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.__main__ import main
from unlearn_pl.commands import evaluate as command
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation import stored
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.evaluation.lm_eval import Harness
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.files import sole_writer
from unlearn_pl.hashing import source_hash
from unlearn_pl.inference.generation import Generation
from unlearn_pl.models.load import load_base
from unlearn_pl.models.lora import Lora, attach_lora, save_adapter
from unlearn_pl.stopping import Stopped

Build = Callable[[], LlamaForCausalLM]

SHORT = Generation(max_new_tokens=6)


def given(extras: tuple[Membership, Choice]) -> dict[str, Any]:
    """These options, and short texts."""
    return {"membership": extras[0], "choice": extras[1], "generation": SHORT}


def write_rows(path: Path, split: str) -> str:
    rows = [
        {"id": f"{split}{task}{kind}", "input": f"{split} {kind}:", "output": f"{task} is it", "task": task}
        for task in ("Task1", "Task3")
        for kind in ("sc1", "qa0")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def evaluate(model: str, data: EvaluationData, output: str, adapter: str | None = None, **more: Any) -> None:
    """The command, its options by name."""
    command.evaluate(model, data, output, adapter, options=command.EvaluateOptions(**more))


@pytest.fixture
def data(tmp_path: Path) -> EvaluationData:
    return EvaluationData(
        write_rows(tmp_path / "forget.jsonl", "forget"), write_rows(tmp_path / "retain.jsonl", "retain")
    )


@pytest.fixture
def extras(tmp_path: Path) -> tuple[Membership, Choice]:
    (tmp_path / "nonmember.jsonl").write_text('{"document": "never seen at all"}\n')
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "art_test.csv").write_text("Who?,Ida,Bo,Cy,Di,B\nWhat?,1,2,3,4,A\n")
    return Membership(nonmember=str(tmp_path / "nonmember.jsonl")), Choice(str(tmp_path / "mmlu"), shots=0)


def test_a_second_one_into_a_folder_is_refused(base_folder: str, data: EvaluationData, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "out", "output"), pytest.raises(InputError, match="output: another process is writing"):
        evaluate(base_folder, data, str(tmp_path / "out"), generation=SHORT)
    assert not (tmp_path / "out").exists()


def test_twice_the_same_bytes(
    base_folder: str,
    data: EvaluationData,
    extras: tuple[Membership, Choice],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the output folder is called; with all keys of the contract and a table on the terminal."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        evaluate(
            base_folder,
            data,
            str(folder),
            membership=extras[0],
            choice=extras[1],
            generation=SHORT,
            minimum_mmlu=0.371,
            device="cpu",
            verbose=True,
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "documents.jsonl",
            "parts",
            "results.json",
            "samples.jsonl",
        ]
    for name in ("results.json", "samples.jsonl", "documents.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    results = json.loads((folders[0] / "results.json").read_text())
    wanted = {
        "task_aggregate",
        "membership_auc",
        "membership_score",
        "mmlu",
        "aggregate",
        "eligible",
        "terms",
        "counts",
    }
    assert wanted <= set(results)
    assert len(results["terms"]) == 8
    assert all(0 <= results[name] <= 1 for name in ("membership_auc", "mmlu", "aggregate"))
    samples = [json.loads(line) for line in (folders[0] / "samples.jsonl").read_text().splitlines()]
    assert [row["split"] for row in samples] == ["forget"] * 4 + ["retain"] * 4
    hashes = results["provenance"]["hashes"]
    assert hashes["forget"] == hashlib.sha256(Path(data.forget).read_bytes()).hexdigest()
    assert hashes["member"] is None
    assert results["provenance"]["config"]["generation"]["max_new_tokens"] == 6
    printed = capsys.readouterr()
    assert "Task Aggregate" in printed.out
    assert "retain/Task3/knowledge" in printed.out
    assert {line for line in printed.out.splitlines() if line.startswith("note:")} == {
        "note: no tpr_at_1_percent and tpr_at_5_percent: 1 % needs 100 non-members, 5 % needs 20, got 1"
    }
    assert "generation, rows: 8 of 8" in printed.err


def test_what_was_not_measured_is_said(
    base_folder: str, data: EvaluationData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(base_folder, data, str(tmp_path / "out"), generation=SHORT)
    printed = capsys.readouterr().out
    assert "no Aggregate without --membership.nonmember" in printed
    assert "no Aggregate without --choice.folder" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["aggregate"] is None
    assert results["provenance"]["hashes"]["choice"] is None


def test_an_adapter_changes_the_model(
    base_folder: str, data: EvaluationData, tiny_model: Build, tmp_path: Path
) -> None:
    """An adapter of zeros gives the base model's texts, one of noise does not; their hashes differ."""
    zero = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    noise = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", lora_alpha=64))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in noise.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    found = {}
    for name, adapted in (("base", None), ("zero", zero), ("noise", noise)):
        if adapted is not None:
            adapted.save_pretrained(tmp_path / f"{name}_adapter", save_embedding_layers=False)
        adapter = None if adapted is None else str(tmp_path / f"{name}_adapter")
        evaluate(base_folder, data, str(tmp_path / name), adapter, generation=SHORT)
        lines = (tmp_path / name / "samples.jsonl").read_text().splitlines()
        weights = json.loads((tmp_path / name / "results.json").read_text())["provenance"]["hashes"]["weights"]
        found[name] = ([json.loads(line)["generated"] for line in lines], weights)
    assert found["zero"][0] == found["base"][0]
    assert found["noise"][0] != found["base"][0]
    assert len({weights for _, weights in found.values()}) == 3


def test_overwrite_replaces_its_own_files_alone(base_folder: str, data: EvaluationData, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "weights.bin").write_text("precious")
    with pytest.raises(InputError, match=r"output: .* exists already"):
        evaluate(base_folder, data, str(output), generation=SHORT)
    evaluate(base_folder, data, str(output), generation=SHORT, overwrite=True)
    assert (output / "weights.bin").read_text() == "precious"
    assert (output / "results.json").is_file()


def test_everything_is_checked_before_the_model_is_loaded(
    base_folder: str, data: EvaluationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(stored, "load_base", never)
    monkeypatch.setattr(stored, "find_tokenizer", never)
    output = str(tmp_path / "out")
    (tmp_path / "bad.jsonl").write_text('{"id": "x"}\n')
    cases: list[tuple[dict[str, object], str]] = [
        ({"model": str(tmp_path / "gone" / "model")}, "model: .* is not a folder"),
        ({"data": EvaluationData(str(tmp_path / "bad.jsonl"), data.retain)}, "data.forget: .*bad.jsonl"),
        ({"data": EvaluationData(data.forget, str(tmp_path / "gone.jsonl"))}, "data.retain: .*gone.jsonl"),
        ({"adapter": str(tmp_path)}, "adapter: .* has no adapter_config.json"),
        ({"dtype": "int4"}, "dtype: must be one of float32, bfloat16, float16, nf4, fp4, int8, got int4"),
        ({"device": "toaster"}, "device: toaster cannot be used here"),
        ({"device": "cuda:0"}, "device: cuda:0 cannot be used here"),
        ({"device": "meta"}, "device: meta cannot be used here"),
        ({"output": f"{data.forget}/out"}, "output: .* cannot be a folder"),
        ({"output": data.forget}, "output: .* exists already"),
        ({"choice": Choice(str(tmp_path / "gone"))}, "choice.folder: .* found none"),
        ({"membership": Membership(nonmember=str(tmp_path / "gone.jsonl"))}, "membership.nonmember: "),
    ]
    for change, message in cases:
        arguments = {"model": base_folder, "data": data, "output": output} | change
        with pytest.raises(InputError, match=message):
            evaluate(**arguments)  # type: ignore[arg-type]
    assert not Path(output).exists()


def test_another_scaling_is_another_model(base_folder: str, data: EvaluationData, tmp_path: Path) -> None:
    """The same tensors under another alpha: neither parts nor scores of the first evaluation are found again."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    model = attach_lora(load_base(base_folder), Lora(rank=2, alpha=2, dropout=0), 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    save_adapter(model, adapter)

    def evaluated(folder: Path) -> tuple[str, float]:
        evaluate(base_folder, data, str(folder), adapter=str(adapter), generation=SHORT, overwrite=True)
        results = json.loads((folder / "results.json").read_text())
        score = results["scores"]["forget/verbatim_probability"]["value"]
        return results["provenance"]["hashes"]["weights"], score

    first = evaluated(out)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 400}))
    second = evaluated(out)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert second == evaluated(tmp_path / "fresh")


def test_a_stopped_evaluation_says_how_to_go_on(
    base_folder: str,
    data: EvaluationData,
    extras: tuple[Membership, Choice],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By SIGTERM among the documents: the last line is true, and the same command then gives the same bytes, also over
    what a process leaves that is killed while it writes the results."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = [f"--data.forget={data.forget}", f"--data.retain={data.retain}", "--generation.max_new_tokens=6"]
    options += [f"--membership.nonmember={extras[0].nonmember}", "--device=cpu", f"--model={base_folder}"]

    def told(line: str) -> None:
        if line.startswith(stopped_at):
            os.kill(os.getpid(), signal.SIGTERM)

    def run(folder: Path) -> None:
        monkeypatch.setattr("sys.argv", ["unlearn-pl", "evaluate", *options, f"--output={folder}"])
        main()

    def stopped() -> str:
        with pytest.raises(SystemExit) as end:
            run(out)
        assert end.value.code == 143
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setattr(command, "log", told)
    monkeypatch.setattr(stored, "load_base", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped() == "unlearn-pl: stopped by SIGTERM; nothing of it was kept: run the same command again"
    monkeypatch.setattr(stored, "load_base", load_base)
    stopped_at = "membership"
    kept = f"what was finished is in {out / 'parts'}: run the same command again, it goes on from there"
    assert stopped() == f"unlearn-pl: stopped by SIGTERM; {kept}"
    stopped_at = "never"
    run(whole)
    for left in ("samples.jsonl", "documents.jsonl", f".documents.jsonl.{'0' * 32}", f".results.json.{'0' * 32}"):
        shutil.copy(whole / "samples.jsonl", out / left)
    run(out)
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (out / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run(out)
    assert f"--output: {out} exists already" in capsys.readouterr().err


def test_a_source_that_is_no_file_is_hashed_by_its_rows() -> None:
    assert source_hash("hf:some/name", ["a"]) == source_hash("hf:other/name", ["a"])
    assert source_hash("hf:some/name", ["a"]) != source_hash("hf:some/name", ["b"])


def test_fluency_by_name_needs_the_model_as_it_was(base_folder: str, data: EvaluationData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metrics: fluency needs adapter or reference, got neither"):
        evaluate(base_folder, data, str(tmp_path / "out"), metrics=["fluency"])


def test_parts_of_other_code_are_not_reused(
    base_folder: str, data: EvaluationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same evaluation again finds its parts; with another formula in the source it makes new ones."""
    out = tmp_path / "out"

    def parts() -> set[str]:
        evaluate(base_folder, data, str(out), generation=SHORT, overwrite=True)
        return {path.name for path in (out / "parts").iterdir()}

    first = parts()
    assert parts() == first
    monkeypatch.setattr(stored, "code_hash", lambda: "another formula")
    assert not parts() & first


def test_lm_eval_that_fails_leaves_all_other_results(
    base_folder: str, data: EvaluationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks come last and download: an evaluation of hours must not be lost with them."""

    def fails(*args: object, **options: object) -> None:
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(stored, "task_manager", lambda harness: None)
    monkeypatch.setattr(stored, "run_harness", fails)
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        evaluate(base_folder, data, str(out), generation=SHORT, harness=Harness(tasks=["mmlu"]), device="cpu")
    assert str(caught.value) == (
        f"harness.tasks: lm-eval failed (ConnectionError: no network); the rest is done: {out}"
    )
    assert "harness" not in json.loads((out / "results.json").read_text())

    def is_stopped(*args: object, **options: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(stored, "run_harness", is_stopped)
    again = Harness(tasks=["mmlu"])
    with pytest.raises(Stopped) as stop:
        evaluate(base_folder, data, str(out), generation=SHORT, harness=again, device="cpu", overwrite=True)
    kept = f"all but lm-eval's scores is in {out}: run the same again, with overwrite"
    assert str(stop.value) == f"stopped by SIGTERM; {kept}"
    monkeypatch.setattr(stored, "run_harness", lambda *args, **options: {"mmlu": {"acc,none": 0.5}})
    evaluate(base_folder, data, str(out), generation=SHORT, harness=again, device="cpu", overwrite=True)
    assert json.loads((out / "results.json").read_text())["harness"] == {"mmlu": {"acc,none": 0.5}}


def test_a_reference_with_another_tokenizer_is_refused(
    base_folder: str, data: EvaluationData, tmp_path: Path, tiny_model: Build
) -> None:
    """Its losses would be of ids that mean something else to it."""
    other = tmp_path / "other"
    shutil.copytree(base_folder, other)
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"^reference: its tokenizer is another than the model's \(the token 'b'"):
        evaluate(base_folder, data, str(tmp_path / "out"), generation=SHORT, reference=str(other), device="cpu")


def test_a_model_of_nan_is_called_broken(
    data: EvaluationData,
    extras: tuple[Membership, Choice],
    tmp_path: Path,
    tiny_model: Build,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not an AUC of 0.5, a score of 1 and an Aggregate better than that of a sound model."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.warns(UserWarning, match="have no finite loss"):
        evaluate(
            str(tmp_path / "nan"),
            data,
            str(tmp_path / "out"),
            membership=extras[0],
            choice=extras[1],
            generation=SHORT,
            device="cpu",
        )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in ("membership_auc", "membership_score", "mmlu", "aggregate"):
        assert found[name] is None
    assert found["scores"]["forget/verbatim_probability"]["value"] is None
    documents = [json.loads(line) for line in (tmp_path / "out" / "documents.jsonl").read_text().splitlines()]
    assert documents
    for document in documents:
        assert document["logprob"] is None
        assert not any(score is not None for score in document["attacks"].values())
    assert found["choice"] == {
        "average": None, "macro": None, "subjects": {"art": None}, "questions": 2, "shortened": 0
    }  # fmt: skip
    for name in ("choice/micro", "choice/macro"):
        assert (found["scores"][name]["value"], found["scores"][name]["n"]) == (None, 0)
    assert any(note.startswith("broken model: 2 of 2 questions have no finite logits") for note in found["notes"])
    assert found["verdicts"]["loss"].startswith("broken model: 2 of 2 documents have no finite loss")
    assert "note: broken model: " in capsys.readouterr().out
