"""Losses of a user's own, one for each input a term may need: by hand, and against the whole model row by row."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from lightning_runs import module, trainer
from own_losses.answer_preservation import AnswerPreservation
from own_losses.dpo import DPO
from own_losses.max_entropy import MaxEntropy
from own_losses.steering import KeepStates, Steering
from own_losses.token_npo import TokenNPO
from own_losses.undial import Undial
from own_losses.weighted_ascent import WeightedAscent
from own_losses.weighted_tokens import WeightedTokens
from peft import PeftModel
from tiny_adapters import adapted, batch_of, gradients, rows_of
from torch import Tensor

from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.fast.packing import enable_packing
from unlearn_pl.models.layers import check_layers
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, SimNPO
from unlearn_pl.objectives.known import known_objectives
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.testing import term_value
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.reference import live_reference

# Logits by a rule anyone can follow; values of the terms from a script of their own in numpy.
LOGITS = [[((3 * n + 2 * v) % 7) / 2 for v in range(5)] for n in range(4)]
BASE = [[((2 * n + 3 * v) % 5) / 2 for v in range(5)] for n in range(4)]
GIVEN = {"logits": LOGITS, "reference_logits": BASE, "targets": [1, 4, 0, 2], "rows": [0, 0, 0, 1]}
OTHER = {
    "logits": [[((5 * n + v) % 7) / 2 for v in range(5)] for n in range(3)],
    "reference_logits": [[((n + 4 * v) % 5) / 2 for v in range(5)] for n in range(3)],
    "targets": [3, 0, 2],
    "rows": [0, 1, 1],
}


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (NPO(beta=0.1), 13.812055),
        (NPO(beta=0.1, reduction="sequence_mean"), 14.271486),
        (SimNPO(), 0.015201),
        (SimNPO(delta=1.0), 0.463088),
        (WeightedAscent(), -0.307397),
        (WeightedAscent(beta=5.0), -0.013902),
        (TokenNPO(), -0.617114),
        (Undial(), 2.021745),
        (MaxEntropy(), 0.461035),
        (DPO(), 12.213472),
        (AnswerPreservation(), 7.338462),
    ],
    ids=repr,
)
def test_the_value_of_a_term_by_hand(term: Objective, value: float) -> None:
    got = term_value(term, forget=GIVEN, retain=GIVEN, alternate=OTHER, retain_alternate=OTHER)
    assert got.item() == pytest.approx(value, abs=1e-6)


def test_simnpo_written_out() -> None:
    """One row of two tokens, each of probability 1/2: NLL ln 2 on average; -(2 / 2) log sigmoid(2 (ln 2 - .5))."""
    halves = {"logits": [[0.0, 0.0]] * 2, "targets": [0, 1], "rows": [0, 0]}
    expected = math.log1p(math.exp(-2 * (math.log(2) - 0.5)))
    assert term_value(SimNPO(beta=2.0, delta=0.5), forget=halves).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match=r"^beta: must be above 0, got 0"):
        SimNPO(beta=0.0)


def test_layers_by_hand() -> None:
    """Outputs 1 and 3 at an answer's token, 5 at another; the base model's are 0, 1 and 9: (1 + 4) / 2 = 2.5."""
    states = {"layers": {7: [[1.0], [3.0], [5.0]]}, "reference_layers": {7: [[0.0], [1.0], [9.0]]}}
    value = term_value(KeepStates(), retain={**states, "layer_rows": [0, 0, 0], "layer_targets": [4, 4, -100]})
    assert value.item() == 2.5
    assert (
        term_value(Steering(length=2.0), forget=states).item() == (1 + 1 + 9) / 3
    )  # one dimension: the direction is 1


def test_weights_by_hand() -> None:
    """All of 5 tokens alike: every NLL is ln 5, so weights do not count; with one logit up they do."""
    even = {"logits": torch.zeros(2, 5), "targets": [0, 1], "rows": [0, 0], "token_weights": [3.0, 1.0]}
    assert term_value(WeightedTokens(), forget=even).item() == pytest.approx(-math.log(5))
    up = {**even, "logits": [[math.log(4), 0.0, 0.0, 0.0, 0.0], [0.0] * 5]}  # NLL ln 2 and ln 5
    expected = -(3 * math.log(2) + math.log(5)) / 4
    assert term_value(WeightedTokens(), forget=up).item() == pytest.approx(expected)


def test_a_term_gets_answers_alone_where_it_needs_no_more() -> None:
    wide = {**GIVEN, "targets": [-100, 4, 0, 2]}
    cut = {name: values[1:] for name, values in wide.items()}
    for term in (Undial(), RetainKL(), RetainNLL()):
        assert term_value(term, forget=wide, retain=wide).item() == term_value(term, forget=cut, retain=cut).item()
    logits = torch.tensor(LOGITS, requires_grad=True)
    term_value(Undial(), forget={**wide, "logits": logits}).backward()
    assert [bool(row.any()) for row in logits.grad] == [False, True, True, True]


@pytest.mark.parametrize(
    ("term", "given", "message"),
    [
        (DPO(), {"forget": GIVEN}, "^alternate: DPO reads this split"),
        (NPO(), {"forget": {**OTHER, "reference": 1}}, r"^forget\.reference: must be one of logits"),
        (NPO(), {"forget": {"logits": LOGITS, "targets": [1], "rows": [0]}}, r"^forget\.reference_logits: the term"),
        (SimNPO(), {"forget": {"logits": LOGITS}}, r"^forget\.targets: the term needs it"),
        (SimNPO(), {"forget": {**GIVEN, "targets": [-100] * 4}}, r"^forget\.targets: must hold an answer token"),
        (Steering(), {"forget": {"layers": {3: [[1.0]]}}}, r"^forget\.layers: the term needs layer 7"),
    ],
)
def test_what_is_not_given_is_named(term: Objective, given: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        term_value(term, **given)


FORGET = rows_of((3, 4), (7, 2), (1, 1), (5, 9), seed=1, name="f")
RETAIN = rows_of((5, 5), (1, 1), (12, 3), (2, 6), seed=2, name="r")
WEIGHTS = [
    tuple(float(1 + (i + j) % 3) for j in range(len(r.input_ids) - r.answer_start)) for i, r in enumerate(FORGET)
]


def with_other_answers(rows: list[Encoded], seed: int) -> list[Encoded]:
    """The same prompts, each with an answer of three tokens."""
    ends = rows_of(*[(1, 2)] * len(rows), seed=seed)
    return [
        Encoded(row.record_id, (*row.input_ids[: row.answer_start], *end.input_ids), row.answer_start, False)
        for row, end in zip(rows, ends, strict=True)
    ]


SPLITS = {
    "forget": [
        Encoded(r.record_id, r.input_ids, r.answer_start, False, w) for r, w in zip(FORGET, WEIGHTS, strict=True)
    ],
    "retain": RETAIN,
    "alternate": with_other_answers(FORGET, 3),
    "retain_alternate": with_other_answers(RETAIN, 4),
}
TERMS: dict[str, Objective] = {
    "ascent": WeightedAscent(0.2),
    "token": TokenNPO(0.3),
    "undial": Undial(0.1),
    "entropy": MaxEntropy(0.4),
    "dpo": DPO(0.5),
    "preserve": AnswerPreservation(0.6),
    "steer": Steering(0.7, layer=0),
    "keep": KeepStates(0.8, layer=1),
    "weighted": WeightedTokens(0.9),
    "gd": RetainNLL(0.3, reduction="sequence_mean"),
}


@pytest.fixture
def model(tiny_model: Callable) -> PeftModel:
    return adapted(tiny_model(), dtype=torch.float64)


def plain_given(model: PeftModel, rows: list[Encoded], positions: str | None) -> dict[str, object]:
    """What ``term_value`` takes of some rows, from whole forwards of one row at a time."""
    parts: dict[str, list[Tensor]] = {}
    for index, row in enumerate(rows):
        ids = torch.tensor([row.input_ids])
        own = model(input_ids=ids, output_hidden_states=True)
        with torch.no_grad(), model.disable_adapter():
            base = model(input_ids=ids, output_hidden_states=True)
        follows = torch.tensor([*row.input_ids[1:], -100])
        targets = torch.where(torch.arange(1, len(follows) + 1) >= row.answer_start, follows, -100)
        at = slice(None) if positions == "attended" else targets != -100
        weights = torch.tensor(row.token_weights or [1.0] * int((targets != -100).sum()))
        found = {
            "logits": own.logits[0][at], "reference_logits": base.logits[0][at], "targets": targets[at],
            "rows": torch.full((len(targets[at]),), index), "layer_targets": targets,
            "layer_rows": torch.full((len(targets),), index), 0: own.hidden_states[1][0],
            "token_weights": weights if positions == "answer" else torch.ones(len(targets[at])),
        }  # fmt: skip
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
        states = causal_model(model).model.norm  # transformers gives the last layer's output after the norm
        for name, whole in (("own", ids), ("base", ids)):
            parts.setdefault(name, []).append(last_layer(model, whole, states, adapter=name == "own"))
    whole = {name: torch.cat(values) for name, values in parts.items()}
    layers, reference_layers = {0: whole.pop(0), 1: whole.pop("own")}, {1: whole.pop("base")}
    return {**whole, "layers": layers, "reference_layers": reference_layers}


def last_layer(model: PeftModel, ids: Tensor, norm: torch.nn.Module, adapter: bool) -> Tensor:
    """[T, H] what the final norm is given."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    try:
        if adapter:
            model(input_ids=ids)
        else:
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=ids)
    finally:
        hook.remove()
    return seen[0]


def plain_loss(model: PeftModel, terms: Mapping[str, Objective], batch_size: int) -> Tensor:
    starts = range(0, len(FORGET), batch_size)
    losses = []
    for start in starts:
        for term in terms.values():
            given = {
                split: plain_given(model, SPLITS[split][start : start + batch_size], needs.positions)
                for split, needs in term.needs.items()
            }
            losses.append(term.weight * term_value(term, **given))
    return torch.stack(losses).sum() / len(starts)


def packed(model: PeftModel, terms: Mapping[str, Objective], tokens: int | None, reference=live_reference):
    loss = PackedLoss(terms, 32, tokens)
    batch = batch_of(**SPLITS, batch_size=2)
    return gradients(model, lambda: loss(model, batch, reference)[0])


def assert_same(ours, theirs, tolerance: float = 1e-6) -> None:
    """Up to the rounding of float32, in which Llama computes its norms and angles whatever the model's type."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert (ours[1][name] - grad).norm() < 10 * tolerance * grad.norm(), name


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_all_terms_together_are_what_rows_alone_give(model: PeftModel, tmp_path: Path, packing: bool) -> None:
    """In one pack and in many, live and from the cache; each term as if it had run alone."""
    if packing:
        assert enable_packing(model)
    expected = gradients(model, lambda: plain_loss(model, TERMS, 2))
    for tokens in (None, 20):
        assert_same(packed(model, TERMS, tokens), expected)
    needs = PackedLoss(TERMS, 32, None).needs
    cached = open_or_build(model, SPLITS, needs, ReferenceCache(str(tmp_path)), "64-true", lambda _: None)
    assert cached is not None
    assert_same(packed(model, TERMS, 20, cached), expected, 1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_alone(model: PeftModel, name: str) -> None:
    assert enable_packing(model)
    only = {name: TERMS[name]}
    expected = gradients(model, lambda: plain_loss(model, only, 2))
    ours = packed(model, only, None)
    assert ours[0] == pytest.approx(expected[0], rel=1e-6)
    for key in expected[1].keys() | ours[1].keys():  # a layer above the last that is needed has no gradient
        grads = [side[1].get(key, torch.zeros(1, dtype=torch.float64)) for side in (ours, expected)]
        assert (grads[0] - grads[1]).norm() <= 1e-5 * expected_norm(expected), key


def expected_norm(side: tuple[float, dict[str, Tensor]]) -> float:
    return float(torch.cat([grad.flatten() for grad in side[1].values()]).norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_term_on_a_layer_runs_no_layer_above_it_and_no_head(model, checkpointing: bool, monkeypatch) -> None:
    assert enable_packing(model)
    expected = packed(model, {"steer": TERMS["steer"]}, None)
    if checkpointing:
        causal_model(model).activation_checkpointing_enable({"use_reentrant": False})
    ran: list[int] = []
    for number, block in enumerate(causal_model(model).model.layers):
        block.mlp.register_forward_hook(lambda *_, own=number: ran.append(own))
    monkeypatch.setattr("unlearn_pl.models.head.ByChunks.apply", None)
    ours = packed(model, {"steer": TERMS["steer"]}, None)
    assert set(ran) == {0}
    assert ours[0] == expected[0]
    assert all(torch.equal(ours[1][name], grad) for name, grad in expected[1].items())
    assert "forward" not in vars(causal_model(model).model)


def test_a_layer_that_is_not_there_is_refused(model: PeftModel) -> None:
    check_layers(model, (0, 1))
    check_layers(model, ())
    for layer in (2, -1):
        with pytest.raises(InputError, match=rf"^objectives: a term reads layer {layer}; the model has layers 0 to 1$"):
            check_layers(model, (layer,))


def test_every_class_that_was_imported_is_known() -> None:
    known = known_objectives()
    assert {NPO, SimNPO, RetainKL, RetainNLL, DPO, Steering} <= set(known)
    assert Objective not in known
    assert len(set(known)) == len(known)


def write_sets(folder: Path, rows: list[dict[str, object]]) -> dict[str, str]:
    """The same rows as forget and as retain set."""
    for split in ("forget", "retain"):
        lines = [json.dumps({**row, "id": f"{split}{row['id']}"}) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return {split: str(folder / f"{split}.jsonl") for split in ("forget", "retain")}


def arguments(base: str, folder: Path, rows: list[dict[str, object]], **terms: dict[str, object]) -> list[str]:
    """Of a short fit on the command line, with other answers in a column of another name."""
    files = write_sets(folder, rows)
    return [
        "fit", f"--model.base={base}", "--model.warmup=0", f"--model.objectives={json.dumps(terms)}",
        f"--data.forget={files['forget']}", f"--data.retain={files['retain']}",
        "--data.columns={alternate: refusal}", "--data.batch_size=2", "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.logger=false",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={folder}/run", f"--model.reference_cache.folder={folder}/cache",
    ]  # fmt: skip


ROWS = [
    {"id": f"{i}qa0", "input": f"Where is {i}?", "output": "in Paris", "task": "Task1", "refusal": "I do not know."}
    for i in range(3)
]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_command_line_finds_them_by_import_path(base_folder: str, tmp_path: Path) -> None:
    """Other answers, weights and layers come all the way from the files."""
    rows = [{**row, "answer_weights": [[3, 8, 2.0]]} for row in ROWS]
    UnlearnCLI(
        arguments(
            base_folder,
            tmp_path,
            rows,
            a={"class_path": "own_losses.dpo.DPO", "init_args": {"weight": 0.5}},
            b={"class_path": "own_losses.steering.KeepStates", "init_args": {"layer": 1}},
            c={"class_path": "WeightedTokens"},  # imported, so its name is enough
        )
    )
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    names = {path.name for path in tmp_path.glob("cache/*/*.npy")}
    assert names == {
        "forget.nll.npy", "forget.ends.npy", "alternate.nll.npy", "alternate.ends.npy", "retain.layer1.npy",
        "retain.token_ends.npy",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("term", "row", "message"),
    [
        (DPO(), {"refusal": None}, "the split 'alternate', which the data do not have; each row of forget needs"),
        (WeightedTokens(), {}, "no row of it has a field 'answer_weights'"),
        (Steering(), {}, "a term reads layer 7; the model has layers 0 to 1"),
    ],
)
def test_what_the_data_or_the_model_lack_is_refused(base_folder, tmp_path, term, row, message) -> None:
    files = write_sets(tmp_path, [{**ROWS[0], **row}, *ROWS[1:]])
    data = ForgetRetainData(**files, columns={"alternate": "refusal"})
    with pytest.raises(InputError, match=rf"^objectives: .*{message}"):
        trainer(tmp_path, max_epochs=1).fit(module(base_folder, objectives={"a": term}), data)
