"""Callbacks under a real Trainer: what they save, when, and what they refuse."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import module, trainer, write_rows
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.callbacks.adapter import SaveAdapter
from unlearn_pl.callbacks.angles import AngleAnalysis
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.callbacks.predictions import WritePredictions
from unlearn_pl.callbacks.progress import Throughput
from unlearn_pl.callbacks.snapshot import WeightSnapshot
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.readers import read_records
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.models.load import load_base
from unlearn_pl.models.lora import Lora, adapter_state
from unlearn_pl.training.metrics_file import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is smaller than the logging")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_rows(tmp_path_factory.mktemp("rows"), forget=7)


class States(Callback):
    """The adapter right after each optimizer step, taken in another hook than the snapshot's."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.states.setdefault(trainer.global_step, adapter_state(pl_module.model))


def test_snapshots_hold_the_weights_right_after_their_step(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """7 batches, accumulation 3: steps after batches 3, 6 and 7, so step 4 is the first of the second epoch."""
    states = States()
    callbacks = [WeightSnapshot(steps=[1, 3, 4]), states]
    trainer(tmp_path, callbacks, accumulate_grad_batches=3).fit(module(base_folder), ForgetRetainData(**rows))
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == ["step_0", "step_1", "step_3", "step_4"]
    for step in (1, 3, 4):
        saved = load_file(tmp_path / f"snapshots/step_{step}" / WEIGHTS)
        for name, value in states.states[step].items():
            assert torch.equal(saved[name], value), (step, name)
    first = load_file(tmp_path / "snapshots/step_0" / WEIGHTS)
    assert not any(value.any() for name, value in first.items() if "lora_B" in name)


def test_a_snapshot_step_that_is_never_reached_is_named(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no snapshot of step 165: training ended at optimizer step 3"):
        trainer(tmp_path, [WeightSnapshot()], max_epochs=1, accumulate_grad_batches=3).fit(
            module(base_folder), ForgetRetainData(**rows)
        )


def test_snapshot_steps_must_be_positive() -> None:
    with pytest.raises(InputError, match="must be optimizer steps of at least 1, got"):
        WeightSnapshot(steps=[0])


def test_the_saved_adapter_opens_with_peft_and_gives_the_same_logits(
    base_folder: str, rows: dict[str, str], tmp_path: Path, tiny_model: Callable[[], LlamaForCausalLM]
) -> None:
    trained = module(base_folder)
    trainer(tmp_path, [SaveAdapter()]).fit(trained, ForgetRetainData(**rows))
    folder = tmp_path / "adapter"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", WEIGHTS, "unlearn_pl.json"]
    opened = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
    ids = torch.arange(20)[None]
    expected = trained.model.eval()(input_ids=ids).logits
    assert torch.equal(opened(input_ids=ids).logits, expected)
    assert not torch.allclose(tiny_model()(input_ids=ids).logits, expected, atol=1e-3)
    facts = json.loads((folder / "unlearn_pl.json").read_text())
    assert facts["step"] == 14
    assert len(facts["lora_init_sha256"]) == 64
    merged = opened.merge_and_unload()
    plain, tuned = (dict(model.named_parameters()) for model in (tiny_model(), merged))
    squares = [(tuned[name] - plain[name]).double().square().sum().item() for name in plain]
    spectrum = json.loads((tmp_path / "spectrum.json").read_text())
    assert spectrum["overall"]["norm"] == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


def test_angles_of_a_run(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """The angle of both parts to the whole add up to the angle between them, in every layer and space."""
    callbacks = [WeightSnapshot(steps=[5]), AngleAnalysis(pivot=5), SaveAdapter()]
    trainer(tmp_path, callbacks).fit(module(base_folder), ForgetRetainData(**rows))
    report = json.loads((tmp_path / "angles.json").read_text())
    assert report["steps"] == [0, 5, 14]
    groups = [report[space]["overall"] for space in ("factors", "delta")]
    groups += [layer for space in ("factors", "delta") for layer in report[space]["layers"].values()]
    assert len(groups) == 6
    for group in groups:
        angles = group["angles"]
        assert angles["before_total"] + angles["after_total"] == pytest.approx(angles["before_after"], abs=1e-6)
        assert 0 < angles["before_after"] < 180
    assert (tmp_path / "angles.png").read_bytes().startswith(b"\x89PNG")


def test_angles_of_several_pivots(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """Each as it would be alone; one that training does not go beyond is left out. Then a run that none of them is in
    leaves no file of the run before it."""
    for pivots in (5, 9, [9, 5, 14]):
        steps = [pivots] if isinstance(pivots, int) else pivots
        callbacks = [WeightSnapshot(steps=steps), AngleAnalysis(pivot=pivots), SaveAdapter()]
        folder = tmp_path / (str(pivots) if isinstance(pivots, int) else "several")
        trainer(folder, callbacks).fit(module(base_folder), ForgetRetainData(**rows))
    alone = [json.loads((tmp_path / name / "angles.json").read_text()) for name in ("5", "9")]
    assert json.loads((tmp_path / "several/angles.json").read_text()) == {"pivots": alone}
    assert (tmp_path / "several/angles.png").is_file()
    callbacks = [WeightSnapshot(steps=[14]), AngleAnalysis(pivot=[14]), SaveAdapter()]
    trainer(tmp_path / "several", callbacks).fit(module(base_folder), ForgetRetainData(**rows))
    assert not (tmp_path / "several/angles.json").exists()
    with pytest.raises(InputError, match=r"AngleAnalysis.pivot: at least one is needed"):
        AngleAnalysis(pivot=[])


def test_angles_without_their_snapshot_are_refused(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs a WeightSnapshot of step 9 among the callbacks, got \[5\]"):
        trainer(tmp_path, [WeightSnapshot(steps=[5]), AngleAnalysis(pivot=9)]).fit(
            module(base_folder), ForgetRetainData(**rows)
        )


def test_merge_after_fit_saves_adapter_and_model(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    trainer(tmp_path / "one", [SaveAdapter()]).fit(module(base_folder), ForgetRetainData(**rows))
    merge = MergeAfterFit(str(tmp_path / "one/adapter"), score=True, generation=Generation(max_new_tokens=4))
    logger = CSVLogger(tmp_path / "two", name="", version="")
    trainer(tmp_path / "two", [SaveAdapter(), merge], max_epochs=1, logger=logger).fit(
        module(base_folder), ForgetRetainData(**rows)
    )
    merged = tmp_path / "two/merged"
    options = EvaluationOptions(generation=Generation(max_new_tokens=4))
    scored = evaluate(
        AutoModelForCausalLM.from_pretrained(merged / "model"),
        AutoTokenizer.from_pretrained(merged / "model"),
        read_inputs(EvaluationData(**rows), options),
        options,
    )
    logged = [row for row in read_rows(tmp_path / "two/metrics.csv") if row["merged/task_aggregate"]]
    assert len(logged) == 1, "the scores of the merged model, once"
    assert float(logged[0]["merged/task_aggregate"]) == pytest.approx(scored.headline["task_aggregate"])
    assert float(logged[0]["merged/forget/Task1/regurgitation"]) == pytest.approx(
        scored.terms["forget/Task1/regurgitation"]
    )
    ids = torch.arange(20)[None]
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    with_adapter = PeftModel.from_pretrained(base, str(merged / "adapter")).eval()(input_ids=ids).logits
    alone = AutoModelForCausalLM.from_pretrained(merged / "model").eval()(input_ids=ids).logits
    torch.testing.assert_close(with_adapter, alone, rtol=0, atol=1e-5)
    assert json.loads((merged / "adapter/unlearn_pl.json").read_text())["merge"]["density"] == 0.8
    anatomy = json.loads((merged / "anatomy.json").read_text())
    assert anatomy["adapters"] == ["two", "one"]
    assert 0 < anatomy["overall"]["trimmed_mass"] < 0.2  # the smaller fifth of the entries
    found = load_file(merged / "adapter" / WEIGHTS)
    squares = [
        (found[name.replace("lora_A", "lora_B")] @ found[name]).square().sum().item()
        for name in found if "lora_A" in name
    ]  # fmt: skip
    spectrum = json.loads((merged / "spectrum.json").read_text())
    assert spectrum["overall"]["norm"] == pytest.approx(sum(squares) ** 0.5)
    assert anatomy["overall"]["norm"] == pytest.approx(sum(squares) ** 0.5)


def test_merge_after_fit_searches_the_balance(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """With the rows of the fit; the adapter of another start is no obstacle to the exact interpolation."""
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder, seed=1), ForgetRetainData(**rows))
    other = tmp_path / "nonmember.jsonl"
    other.write_text("".join(f'{{"document": "Where was row {i} seen before"}}\n' for i in range(8)))
    search = BalanceOptions(methods=["cat"], scales=[1.0], evaluations=1, splits=1)
    options = {"membership": Membership(nonmember=str(other), tasks=["Task1", "Task2", "Task3"]), "over": True}
    merge = MergeAfterFit(str(tmp_path / "one/adapter"), balance=search, generation=Generation(4), **options)
    trainer(tmp_path / "two", [SaveAdapter(), merge], max_epochs=1).fit(
        module(base_folder, seed=2), ForgetRetainData(**rows)
    )
    merged = tmp_path / "two/merged"
    assert sorted(path.name for path in merged.iterdir()) == [
        "adapter", "anatomy.json", "balance.json", "balance.md", "balance.png", "model", "spectrum.json"
    ]  # fmt: skip
    chosen = json.loads((merged / "balance.json").read_text())["chosen"]
    facts = json.loads((merged / "adapter/unlearn_pl.json").read_text())["merge"]
    assert facts["weights"] == chosen["weights"][0]
    assert [Path(parent["folder"]).parent.name for parent in facts["adapters"]] == ["two", "one"]
    ids = torch.arange(20)[None]
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    with_adapter = PeftModel.from_pretrained(base, str(merged / "adapter")).eval()(input_ids=ids).logits
    alone = AutoModelForCausalLM.from_pretrained(merged / "model").eval()(input_ids=ids).logits
    torch.testing.assert_close(with_adapter, alone, rtol=0, atol=1e-5)


def test_what_the_balance_does_not_need_or_lacks_is_refused(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"MergeAfterFit\.balance: finds method, density and weights itself"):
        MergeAfterFit("x", method="ties", balance=BalanceOptions())
    with pytest.raises(InputError, match=r"MergeAfterFit\.balance: needed with membership, choice or generation"):
        MergeAfterFit("x", generation=Generation())
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    merge = MergeAfterFit(str(tmp_path / "one/adapter"), balance=BalanceOptions())
    with pytest.raises(InputError, match=r"MergeAfterFit.membership.nonmember: needed"):
        trainer(tmp_path / "two", [SaveAdapter(), merge]).fit(module(base_folder), ForgetRetainData(**rows))
    assert not (tmp_path / "two").exists(), "refused before training"


def test_merge_refuses_another_seed(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """Factor-space TIES of adapters with different initial A factors is meaningless."""
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder, seed=1), ForgetRetainData(**rows))
    merge = MergeAfterFit(str(tmp_path / "one/adapter"))
    with pytest.raises(InputError, match="started from other A factors than this run, which ties cannot mix"):
        trainer(tmp_path / "two", [SaveAdapter(), merge], max_epochs=1).fit(
            module(base_folder, seed=2), ForgetRetainData(**rows)
        )
    assert not (tmp_path / "two").exists(), "refused before training"


def test_merge_refuses_a_missing_adapter_before_training(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is no PEFT adapter folder"):
        trainer(tmp_path, [MergeAfterFit(str(tmp_path / "nothing"))]).fit(module(base_folder), ForgetRetainData(**rows))
    assert list(tmp_path.iterdir()) == []


def test_evaluation_during_fit(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """Before training, after each of two epochs; logged under the step they belong to."""
    logger = CSVLogger(tmp_path, name="", version="")
    evaluate = EvaluateDuringFit(every_n_epochs=1, generation=Generation(max_new_tokens=4))
    trainer(tmp_path, [evaluate], logger=logger).fit(module(base_folder), ForgetRetainData(**rows))
    history = json.loads((tmp_path / "evaluations.json").read_text())
    assert [entry["step"] for entry in history] == [0, 7, 14]
    assert len(history[0]["terms"]) == 12
    assert (tmp_path / "evaluations.png").is_file()
    logged = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "evaluation/task_aggregate" in logged
    assert "evaluation/forget/Task1/regurgitation" in logged


def test_evaluation_during_fit_by_steps(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    evaluate = EvaluateDuringFit(None, every_n_steps=2, generation=Generation(max_new_tokens=2))
    trainer(tmp_path, [evaluate], max_epochs=1, accumulate_grad_batches=2).fit(
        module(base_folder), ForgetRetainData(**rows)
    )
    assert [entry["step"] for entry in evaluate.history] == [0, 2, 4]


def test_throughput_counts_tokens_not_padding(
    base_folder: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr("unlearn_pl.callbacks.progress.time.perf_counter", lambda: float(next(times)))
    data = ForgetRetainData(**rows, batch_size=7)
    runner = trainer(tmp_path, [Throughput()], max_epochs=1)
    runner.fit(module(base_folder), data)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    forget = int(batch.rows["forget"].lengths.sum())
    rate = runner.callback_metrics["tokens_per_second"].item()
    assert rate > forget
    assert rate == int(rate)


def test_predictions_are_the_texts_of_an_evaluation(
    base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 40 to 510 tokens where training keeps 6: predict reads all of them; 510 leave room for two tokens and
    512 for none."""
    predicted, tokenizer = module(base_folder), AutoTokenizer.from_pretrained(base_folder)
    lines = [" 7" * count for count in (20, 255, 256)]
    assert [len(tokenizer(line).input_ids) for line in lines] == [40, 510, 512]
    for split in ("forget", "retain"):
        rows = [{"id": f"{split}{n}qa0", "input": line, "output": "x", "task": "Task1"} for n, line in enumerate(lines)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("forget", "retain")}
    monkeypatch.setattr("unlearn_pl.training.predict.NEW_TOKENS", 5)
    data = ForgetRetainData(**files, max_length=8, batch_size=3)
    with pytest.warns(UserWarning, match="have been cut|generation: 1 of 2"):
        trainer(tmp_path, [WritePredictions()]).predict(predicted, data)
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    plain = AutoModelForCausalLM.from_pretrained(base_folder)  # what a fresh adapter leaves it
    expected = [
        LanguageModel(plain, tokenizer).generate([line], Generation(budget))[0].text
        for line, budget in zip(lines[:2], (5, 2), strict=True)
    ]
    assert [row["generated"] for row in written] == [*expected, None] * 2


def test_predictions_hold_every_row_once(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    predicted = module(base_folder)
    data = ForgetRetainData(**rows, batch_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn_pl.training.predict.NEW_TOKENS", 3)
        trainer(tmp_path, [WritePredictions()]).predict(predicted, data)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["split"] == "forget"] == sorted(r.id for r in data.forget_records)
    assert len({line["id"] for line in lines}) == len(lines)


def test_an_evaluation_after_the_checkpoint_is_not_lost(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """The checkpoint of step 7 is taken before the evaluation of step 7, whose entry is in the file alone."""

    class SaveFirst(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "seven.ckpt")

    evaluate = EvaluateDuringFit(None, every_n_steps=7, generation=Generation(max_new_tokens=2))
    trainer(tmp_path, [SaveFirst(), evaluate]).fit(module(base_folder), ForgetRetainData(**rows))
    before = json.loads((tmp_path / "evaluations.json").read_text())
    again = EvaluateDuringFit(None, every_n_steps=7, generation=Generation(max_new_tokens=2))
    trainer(tmp_path, [again]).fit(module(base_folder), ForgetRetainData(**rows), ckpt_path=tmp_path / "seven.ckpt")
    assert json.loads((tmp_path / "evaluations.json").read_text()) == before
    assert [entry["step"] for entry in before] == [0, 7, 14]


def test_an_adapter_of_nan_is_not_written(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            for name, parameter in pl_module.named_parameters():
                if "lora_B" in name:
                    parameter.data.fill_(torch.nan)

    with pytest.raises(InputError, match=r"the adapter holds NaN or infinite numbers .* and was not written"):
        trainer(tmp_path, [Spoil(), SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    assert not (tmp_path / "adapter").exists()


def test_angles_without_the_old_folder_are_a_warning_and_the_merge_is_made(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """Resumed into another folder after the pivot, once with the old folder there and once without it."""
    first = [WeightSnapshot(steps=[5]), AngleAnalysis(pivot=5), SaveAdapter()]
    runner = trainer(tmp_path / "one", first, max_epochs=1)
    runner.fit(module(base_folder), ForgetRetainData(**rows))
    runner.save_checkpoint(tmp_path / "end.ckpt")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "one/adapter", other)
    for name in ("two", "three"):
        callbacks = [SaveAdapter(), WeightSnapshot(steps=[5]), AngleAnalysis(pivot=5), MergeAfterFit(str(other))]
        longer = pytest.warns(UserWarning, match="optimizer steps in all was 7 and is 14")
        expected = pytest.warns(UserWarning, match="AngleAnalysis: no angles, since .*step_0 and .*step_5 are missing")
        with longer, nullcontext() if name == "two" else expected:
            trainer(tmp_path / name, callbacks).fit(
                module(base_folder), ForgetRetainData(**rows), ckpt_path=tmp_path / "end.ckpt"
            )
        assert (tmp_path / name / "angles.json").is_file() == (name == "two")
        assert (tmp_path / name / "merged/adapter/adapter_model.safetensors").is_file()
        shutil.rmtree(tmp_path / "one", ignore_errors=True)


def test_merge_refuses_before_training_what_it_would_refuse_after_it(
    base_folder: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank, an adapter of NaN, a kind that cannot be merged, a disk that is full, a file in the way."""
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    other = tmp_path / "one/adapter"

    def refused(match: str, folder: Path = tmp_path / "two", **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            trainer(folder, [MergeAfterFit(str(other))]).fit(module(base_folder, **options), ForgetRetainData(**rows))

    refused(r"MergeAfterFit: .*ranks, got \[2, 4\]|started from other A factors", lora=Lora(rank=2))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    refused("cannot be merged: DoRA")
    (other / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "file").write_text("")
    refused("MergeAfterFit: .*merged cannot be a folder", folder=tmp_path / "file")
    monkeypatch.setattr("unlearn_pl.files.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    refused("MergeAfterFit: .* GB free")
    assert not (tmp_path / "two").exists()


def test_the_merge_lets_the_base_run_its_own_code_if_the_fit_may(
    base_folder: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    asked: list[Any] = []

    def spy(name: str, dtype: str, trust_remote_code: bool = False, *_: object) -> Any:
        asked.append(trust_remote_code)
        return load_base(name, dtype)

    monkeypatch.setattr("unlearn_pl.models.load.load_base", spy)
    merge = MergeAfterFit(str(tmp_path / "one/adapter"))
    trainer(tmp_path / "two", [SaveAdapter(), merge], max_epochs=1).fit(
        module(base_folder, trust_remote_code=True), ForgetRetainData(**rows)
    )
    assert set(asked) == {True}


def test_callbacks_of_a_fit_in_memory_are_those_of_one_by_path(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """Model, tokenizer and rows as objects: the same evaluation while it trains, and the same merge after it."""
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    for name in ("path", "memory"):
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        sets: Any = rows if name == "path" else {split: read_records(path) for split, path in rows.items()}
        given = {} if name == "path" else {"tokenizer": tokenizer}
        callbacks = [SaveAdapter(), MergeAfterFit(str(tmp_path / "one/adapter")), EvaluateDuringFit(None)]
        base: Any = base_folder if name == "path" else load_base(base_folder)
        trainer(tmp_path / name, callbacks, max_epochs=1).fit(module(base, **given), ForgetRetainData(**sets, **given))
    for left in (
        "evaluations.json",
        f"adapter/{WEIGHTS}",
        f"merged/adapter/{WEIGHTS}",
        "merged/model/model.safetensors",
    ):
        assert (tmp_path / "memory" / left).read_bytes() == (tmp_path / "path" / left).read_bytes(), left
