"""Merges scored in the weights of one model, against plain evaluation."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from adapter_folders import write_adapter
from samples import lume_inputs

from unlearn_pl.balance.documents import Documents
from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.balance.path import OVER, Point, Ray, open_path
from unlearn_pl.balance.scorer import MergeScorer, Scores
from unlearn_pl.balance.search import find_balance
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import read_inputs
from unlearn_pl.evaluation.membership import Membership, document_losses
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.metrics.roc import area_under_curve
from unlearn_pl.tasks.base import RowSet, documents_of
from unlearn_pl.tasks.lume import Lume

OPTIONS = EvaluationOptions(membership=Membership(nonmember="named"), generation=Generation(max_new_tokens=4))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate(("over", "under"))]


@pytest.fixture
def inputs():
    texts = [f"{name} was born in {place}" for name in ("Anna", "Ida", "Bo") for place in ("Rome", "Oslo", "Riga")]
    rows = [Record(f"r{i}", f"Who {i}?", f"Anna {i}", "Task1", "qa") for i in range(2)]
    return lume_inputs(rows, rows, texts[:5], texts[5:])


@pytest.fixture
def path(model, pair):
    return open_path(model, pair)


@pytest.fixture
def scorer(model, tokenizer, path, inputs):
    return MergeScorer(model, tokenizer, FoldedWeights(model, path.order), inputs, OPTIONS)


def test_losses_are_those_of_the_merged_model(scorer, path, tiny_model, tokenizer):
    """Folded into the weights, as PEFT computes them with the adapter beside the weights; and back again."""
    from row_by_row import sharpened

    point = Point(Ray(scale=1.2), 0.3)
    texts = [*scorer.documents.members, *scorer.documents.nonmembers]
    before = document_losses(LanguageModel(scorer.model, tokenizer), texts)
    with scorer.weights:
        got = scorer.losses(path.merge(point)[0])
        other = path.merged(point).open(sharpened(tiny_model()))
        assert got == pytest.approx(document_losses(LanguageModel(other, tokenizer), texts), rel=1e-4)
        assert got != pytest.approx(before, rel=1e-3)
    assert document_losses(LanguageModel(scorer.model, tokenizer), texts) == before


def test_scores_hold_what_evaluation_says(scorer, path):
    measured = scorer.measure(path.merge(Point(Ray(), 0.5))[0])
    scores = measured.scores
    assert 0 <= scores.task_aggregate <= 1
    assert scores.mmlu is None
    assert scores.aggregate(0.4) == pytest.approx((scores.task_aggregate + 0.8) / 2)
    assert Scores([], 0.6, 0.3).aggregate(0.5) == pytest.approx((0.6 + 1 + 0.3) / 3)
    assert measured.aggregate("heldout") == scores.aggregate(scorer.documents.auc(scores.losses, "heldout"))
    assert measured.to_json()["membership_auc"] == scorer.documents.auc(scores.losses) == measured.auc["all"]


def test_texts_whose_score_is_decided_are_not_finished(scorer, path):
    """The same scores as of plain evaluation, in fewer forwards: both questions are answered wrongly at once."""
    forwards = []
    hook = scorer.model.register_forward_hook(lambda *call: forwards.append(1))
    inner = scorer.model.model.register_forward_hook(lambda *call: forwards.append(1))
    deltas = path.merge(Point(Ray(), 0.5))[0]
    losses = scorer.losses(deltas)
    forwards.clear()
    short = scorer.scores(deltas, losses)
    fewer = len(forwards)
    forwards.clear()
    whole = evaluate(scorer.model, scorer.tokenizer, scorer.inputs, replace(OPTIONS, metrics=[]))
    hook.remove()
    inner.remove()
    assert (short.task_aggregate, short.mmlu, short.terms) == (whole.task_aggregate, whole.mmlu, whole.terms)
    assert fewer < len(forwards)


def test_the_base_is_as_it_was_after_a_search(model, tokenizer, pair, inputs):
    """Also after one that fails on its way: the second, told of its first merge, raises."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    few = BalanceOptions(methods=["cat"], scales=[1.0], grid=2, evaluations=1, splits=1)
    found = find_balance(model, tokenizer, pair, inputs, few, evaluation=OPTIONS)
    assert found.chosen in found.points
    assert 0 <= found.rounding < 1e-4
    wanted = open_path(model, pair).merge(found.chosen)[0]
    assert all(torch.equal(found.merged.deltas[name].b, pair.b) for name, pair in wanted.items())

    def interrupt(line):
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match=str(OVER)):
        find_balance(model, tokenizer, pair, inputs, few, evaluation=OPTIONS, log=interrupt)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_documents_are_told_apart_by_half():
    documents = Documents(tuple("abcdefgh"), tuple("ijklmnop"))
    losses = [float(i) for i in range(16)]  # every member is likelier
    assert documents.auc(losses) == documents.auc(losses, "calibration") == documents.auc(losses, "heldout") == 1
    members, others = documents.indices("heldout", split=2)
    assert sorted(members + documents.indices("calibration", split=2)[0]) == list(range(8))
    assert documents.attack_scores(losses, "heldout", 2) == (
        [-float(i) for i in members], [-float(8 + i) for i in others]
    )  # fmt: skip
    assert documents.counts("all") == (8, 8)
    assert documents.step("heldout", 2) == 1 / (len(members) * len(others))
    assert (
        documents.auc(losses[::-1]) == area_under_curve([-x for x in losses[:7:-1]], [-x for x in losses[7::-1]]) == 0
    )


def test_many_losses_at_once_have_the_auc_of_each():
    """Also with ties, which count one half."""
    documents = Documents(tuple("abcdefgh"), tuple("ijklmnopqrst"))
    losses = torch.randint(0, 9, (50, 20), generator=torch.Generator().manual_seed(0)).double()
    for half, split in (("all", 0), ("calibration", 0), ("heldout", 2)):
        wanted = [documents.auc(row, half, split) for row in losses.tolist()]
        assert documents.aucs(losses, half, split).tolist() == wanted


def test_an_attack_is_needed(model, tokenizer, pair):
    inputs = SimpleNamespace(members=[], nonmembers=[])
    with pytest.raises(InputError, match=r"^membership.nonmember: needed"):
        find_balance(model, tokenizer, pair, inputs)


class Attacked(Lume):
    """A benchmark with the documents of an attack among its sets."""

    def sets(self):
        documents = {"member": [f"Anna {n} was born" for n in range(8)], "nonmember": [f"Bo {n} was" for n in range(8)]}
        return [*super().sets(), *(RowSet(role, role, documents=texts) for role, texts in documents.items())]

    def members(self, sets, tasks=None):
        return documents_of(sets, "member")


def test_a_benchmark_is_as_good_as_what_was_read_of_it(model, tokenizer, pair):
    benchmark = Attacked([Record("fqa0", "Who?", "Anna", "Task1")], [Record("rqa0", "Where?", "Riga", "Task1")])
    few = BalanceOptions(methods=["cat"], scales=[1.0], grid=2, evaluations=1, splits=1)
    short = EvaluationOptions(generation=Generation(max_new_tokens=4))
    found = find_balance(model, tokenizer, pair, benchmark, few, evaluation=short)
    again = find_balance(model, tokenizer, pair, read_inputs(benchmark, short), few, evaluation=short)
    assert (found.chosen, found.documents) == (again.chosen, again.documents)
    with pytest.raises(InputError, match=r"^membership.nonmember: needed"):
        find_balance(
            model,
            tokenizer,
            pair,
            Lume([Record("fqa0", "Who?", "Anna", "Task1")], [Record("rqa0", "Where?", "Riga", "Task1")]),
        )
