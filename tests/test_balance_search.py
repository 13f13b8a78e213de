"""The search on a made-up attack whose AUC along the path is known."""

import json
import math
import random

import pytest
from adapter_folders import write_adapter

from unlearn_pl.balance.documents import Documents
from unlearn_pl.balance.measurements import Measurements
from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.balance.path import OVER, UNDER, Point, Ray, open_path
from unlearn_pl.balance.scorer import Scores, measurement
from unlearn_pl.balance.search import search
from unlearn_pl.errors import InputError
from unlearn_pl.inference import batches
from unlearn_pl.merging.factors import Factors, inner
from unlearn_pl.metrics.roc import halves

COUNT = 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate(("over", "under"))]


@pytest.fixture(scope="module")
def path(pair, tiny_model):
    return open_path(tiny_model(), pair)


class MadeUp:
    """A scorer in whose model each member's loss grows by ``slope`` times how much of the over-forgetting adapter is
    in the merge (by projection, about (1 - coefficient) x scale), from 2 nats on; non-members are spread around 3."""

    def __init__(self, path, slope=2.0, count=COUNT):
        numbers = random.Random(0)
        self.documents = Documents(
            tuple(f"member {i}" for i in range(count)), tuple(f"other {i}" for i in range(count))
        )
        self.noise = [numbers.gauss(0, 0.3) for _ in range(2 * count)]
        self.count, self.slope, self.calls, self.generated = count, slope, 0, 0
        self.over = {m: Factors(p.a, p.b * path.over.scaling[m]) for m, p in path.over.factors.items()}
        self.under = {m: Factors(p.a, p.b * path.under.scaling[m]) for m, p in path.under.factors.items()}

    def share(self, deltas):
        """How much of the over-forgetting adapter is in the deltas, by least squares in the plane of the two."""

        def dot(x, y):
            return sum(inner(x[m], y[m]).item() for m in x)

        oo, uu, ou = dot(self.over, self.over), dot(self.under, self.under), dot(self.over, self.under)
        to_over, to_under = dot(deltas, self.over), dot(deltas, self.under)
        return (to_over * uu - to_under * ou) / (oo * uu - ou * ou)

    def losses(self, deltas):
        self.calls += 1
        raised = self.slope * self.share(deltas)
        levels = [2 + raised] * self.count + [3.0] * self.count
        return [level + noise for level, noise in zip(levels, self.noise, strict=True)]

    def scores(self, deltas, losses=None):
        self.generated += 1
        aggregate = 0.9 - 0.3 * abs(self.share(deltas) - 0.5)
        return Scores(losses or self.losses(deltas), aggregate, 0.7, {"term": aggregate})

    def measure(self, deltas):
        scores = self.scores(deltas)
        return measurement(self.documents, scores.losses, scores)

    def rounding(self, deltas):
        return 0.0


def run(path, scorer, log=None, **options):
    """The search as `balance.json` has it."""
    return search(path, scorer, BalanceOptions(**options), log).to_json()


def test_the_crossing_is_found_where_the_losses_meet(path):
    """Members' losses are 2 + 2 (1 - mix), the others' 3: they meet at a mix of one half."""
    scorer = MadeUp(path)
    found = run(path, scorer, methods=["cat"], scales=[1.0])
    assert found["crosses"]
    assert found["message"] == "the AUC crosses one half"
    assert abs(found["calibration_auc"] - 0.5) <= 0.01
    assert found["chosen"]["mix"] == pytest.approx(0.5, abs=0.1)
    low, high = found["holdout_interval"]
    assert low <= found["holdout_auc"] <= high
    assert abs(found["holdout_auc"] - 0.5) < 0.2
    assert len(found["path"]) == scorer.calls - 1  # plain ties is no point of the path
    assert scorer.generated == 2 + 1 + 1  # the ends, the crossing, plain ties
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_choice_is_made_on_the_calibration_half(path):
    """With the held-out half turned round, the same point is chosen and only the held-out figures change."""
    plain, turned = MadeUp(path), MadeUp(path)
    held = {
        (side, i)
        for side, texts in enumerate((turned.documents.members, turned.documents.nonmembers))
        for i in halves(texts)[1]
    }
    for side, i in held:
        turned.noise[side * COUNT + i] += 5 if side else -5
    one, other = (run(path, scorer, methods=["cat"], splits=1) for scorer in (plain, turned))
    for key in ("mix", "scale", "method", "calibration_auc", "task_aggregate", "aggregate_calibration"):
        assert one["chosen"][key] == other["chosen"][key]
    assert one["calibration_auc"] == other["calibration_auc"]
    assert other["holdout_auc"] == 1 > one["holdout_auc"]


def test_of_several_crossings_the_best_aggregate_is_taken(path):
    """At scale s the crossing is where (1 - mix) s = 1/2; all have the same Task Aggregate but for the tolerance."""
    found = run(path, MadeUp(path), methods=["cat"], scales=[0.75, 1.0, 1.5], splits=2)
    scored = [p for p in found["path"] if p["task_aggregate"] is not None and abs(p["calibration_auc"] - 0.5) <= 0.01]
    assert {point["scale"] for point in scored} == {0.75, 1.0, 1.5}
    assert found["chosen"]["aggregate_calibration"] == max(point["aggregate_calibration"] for point in scored)
    for point in scored:
        assert (1 - point["mix"]) * point["scale"] == pytest.approx(0.5, abs=0.1)


def test_without_a_crossing_it_says_so_and_takes_the_nearest(path):
    found = run(path, MadeUp(path, slope=0.2), methods=["cat"], scales=[1.0], splits=1)
    assert not found["crosses"]
    assert found["message"].startswith("no crossing: the calibration AUC went from ")
    ends = [point for point in found["path"] if point["mix"] in (0, 1)]
    nearest = min(found["path"], key=lambda point: abs(point["calibration_auc"] - 0.5))
    assert nearest["task_aggregate"] is not None
    assert found["chosen"] == max([*ends, nearest], key=lambda point: point["aggregate_calibration"])
    low, high = found["message"].split("from ")[1].split(" and never")[0].split(" to ")
    assert 0.5 < float(low) < float(high)


def test_splits_are_calibrated_each_on_its_own_half(path):
    balance = search(path, MadeUp(path), BalanceOptions(methods=["cat"], scales=[1.0], splits=3))
    found = balance.to_json()
    assert [split["seed"] for split in found["splits"]] == [0, 1, 2]
    assert all(abs(split["calibration_auc"] - 0.5) <= 0.01 for split in found["splits"])
    assert len({split["mix"] for split in found["splits"]}) > 1
    aucs = sorted(split["holdout_auc"] for split in found["splits"])
    assert found["ranges"]["holdout_auc"] == [aucs[0], aucs[-1]]
    text = balance.sentence()
    assert f"calibrated again on 2 other splits of the same documents, {aucs[0]:.3f} to {aucs[-1]:.3f} in all" in text
    assert "±" not in text  # the splits share documents: no standard error


def few(path, members=3, others=9, slope=2.0):
    """Made-up losses of 2 x 3 members and 2 x 9 others: the AUC of a half moves in steps of 1 / 27."""
    scorer = MadeUp(path, slope)
    scorer.documents = Documents(scorer.documents.members[: 2 * members], scorer.documents.nonmembers[: 2 * others])
    spread = random.Random(2)
    noise = [spread.gauss(0, 0.3) for _ in range(2 * members + 2 * others)]

    def losses(deltas):
        scorer.calls += 1
        level = 2 + slope * scorer.share(deltas)
        return [(level if i < 2 * members else 3.0) + value for i, value in enumerate(noise)]

    scorer.losses = losses
    return scorer


def test_the_result_holds_what_was_measured(path):
    """The chosen merge, its measurement and its delta; the crossings among which it is the best."""
    scorer = MadeUp(path)
    found = search(path, scorer, BalanceOptions(methods=["cat"], scales=[0.75, 1.5], splits=1))
    assert found.chosen in found.crossings
    assert len({point.ray.scale for point in found.crossings}) == 2
    best = max(found.points[point].aggregate("calibration") for point in found.crossings)
    assert found.points[found.chosen].aggregate("calibration") == best
    assert found.compared["over"] is not found.compared["balanced"] is found.points[found.chosen]
    share = scorer.share(found.merged.deltas)
    assert share == pytest.approx((1 - found.chosen.coefficient) * found.chosen.ray.scale, rel=1e-4)
    assert found.auc["calibration"] == found.to_json()["calibration_auc"]
    assert found.auc["all"] == scorer.documents.auc(scorer.losses(found.merged.deltas))


def test_few_documents_cross_where_they_can_tell_no_more(path):
    """13 / 27 and 14 / 27 lie .0185 from one half, on either side, and there is nothing between: a tolerance of .01
    would never be met. The search ends there, says so, and asks no merge twice."""
    scorer = few(path)
    assert scorer.documents.step() == 1 / 27
    asked = []
    losses = scorer.losses
    scorer.losses = lambda deltas: (asked.append(scorer.share(deltas)), losses(deltas))[1]
    told = []
    balance = search(path, scorer, BalanceOptions(methods=["cat"], scales=[1.0], splits=1), told.append)
    found = balance.to_json()
    assert found["crosses"]
    assert found["calibration_auc"] in (13 / 27, 14 / 27)
    assert found["documents"]["auc_step"] == [1 / 27, 1 / 27]
    assert "steps of 0.037" in balance.sentence()
    assert any("moves in steps of 0.0370" in line for line in told)
    assert len(asked) <= 5 + 4
    assert len({round(share, 9) for share in asked}) == len(asked)


@pytest.mark.parametrize(("members", "others"), [(3, 9), (12, 36)])
def test_the_search_costs_few_evaluations(path, members, others):
    """Two methods at three scales, which a grid of five and a bracket for each crossing measured 50 to 90 times: at
    most 43 and, as the losses are smooth, far fewer. All six paths have their crossing, on every split."""
    scorer = few(path, members, others)
    found = search(path, scorer, BalanceOptions())
    assert {(point.ray.method, point.ray.scale) for point in found.crossings} == {
        (method, scale) for method in ("cat", "ties") for scale in (0.75, 1.0, 1.25)
    }
    tolerance = max(0.01, scorer.documents.step() / 2 * 1.001)
    assert all(abs(found.points[point].auc["calibration"] - 0.5) <= tolerance for point in found.crossings)
    assert all(abs(split.calibration - 0.5) <= tolerance for split in found.splits)
    assert scorer.calls - 1 == len(found.points) <= 22  # plain TIES is no point of a path


def test_what_one_path_told_serves_the_others(path):
    """The search of one path alone costs more than each of three adds to another's."""
    counts = []
    for scales in ([1.0], [1.0, 0.75, 1.25, 1.5]):
        scorer = MadeUp(path)
        run(path, scorer, methods=["cat"], scales=scales, splits=1)
        counts.append(scorer.calls - 1)
    assert counts[1] - counts[0] <= 3 * 3 < 2 * counts[0]


def test_all_processes_go_where_the_first_one_expects_the_crossing(path, monkeypatch):
    """The last digit of a guess may differ between machines; measuring at different places would mix two merges."""
    monkeypatch.setattr(batches, "rank_and_count", lambda: (1, 2))
    monkeypatch.setattr(batches.distributed, "broadcast_object_list", lambda held: held.__setitem__(0, ["of rank 0"]))
    merges = Measurements(path, MadeUp(path))
    merges.losses(OVER)
    assert merges.guess([UNDER]) == ["of rank 0"]


def test_one_merge_in_other_words_is_measured_once(path):
    """Offsets that end at a coefficient of 0, and two groups of one coefficient."""
    scorer = MadeUp(path)
    merges = Measurements(path, scorer)
    first = merges.losses(Point(Ray(), 0.1, (-0.2, -0.3)))
    assert merges.losses(OVER) is first
    assert merges.losses(Point(Ray(), 0.05, (-0.1, -0.2))) is first
    assert scorer.calls == 1
    merges.losses(Point(Ray("ties"), 0.5, (0.0, 0.0)))
    merges.losses(Point(Ray("ties"), 0.5))  # not the same: each group is brought to its own norm
    assert scorer.calls == 3


def test_a_merge_that_breaks_the_model_is_no_crossing(path):
    """All losses NaN between shares of .2 and .8: ties of nothing would be an AUC of one half."""
    scorer = MadeUp(path)
    real = scorer.losses
    scorer.losses = lambda deltas: [
        math.nan if 0.2 < scorer.share(deltas) < 0.8 else loss for loss in real(deltas)
    ]  # fmt: skip
    told = []
    found = run(path, scorer, told.append, methods=["cat"], scales=[1.0], splits=1)
    assert not found["crosses"]
    assert any("losses are not finite, it is left out" in line for line in told)
    broken = [point for point in found["path"] if point["calibration_auc"] is None]
    assert len(broken) == 3
    assert {(point["auc"], point["task_aggregate"]) for point in broken} == {(None, None)}
    assert found["chosen"]["calibration_auc"] is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    scorer.losses = lambda deltas: [math.nan for _ in real(deltas)]
    with pytest.raises(InputError, match=r"^adapters: with the over-forgetting adapter alone the losses .* not finite"):
        run(path, scorer)
    facts = measurement(scorer.documents, [math.nan] * 2 * COUNT, Scores([], 0.5, None)).to_json()
    assert (facts["aggregate"], facts["membership_auc"], facts["membership_score"]) == (None, None, None)


def test_a_merge_without_answers_to_questions_breaks_the_model_too(path):
    """Its losses are finite, so that only scoring shows it: it is not chosen, and the adapters alone remain."""
    scorer = MadeUp(path)
    real = scorer.scores

    def scores(deltas, losses=None):
        found = real(deltas, losses)
        broken = 0.2 < scorer.share(deltas) < 0.8
        return Scores([math.nan] * 2 * COUNT, found.task_aggregate, None, found.terms) if broken else found

    scorer.scores = scores
    found = run(path, scorer, methods=["cat"], scales=[1.0], splits=1)
    assert not found["crosses"]
    assert found["chosen"]["mix"] in (0, 1)
    assert [point["aggregate_calibration"] for point in found["path"] if point["auc"] is None] == [None]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    scorer.scores = lambda deltas, losses=None: Scores([math.nan] * 2 * COUNT, 0.5, None)
    with pytest.raises(InputError, match=r"^adapters: with the over-forgetting adapter alone .* logits of questions"):
        run(path, scorer)


def test_methods_and_densities_make_paths_of_their_own(path):
    options = BalanceOptions(methods=["cat", "ties", "magnitude_prune"], scales=[1.0], densities=[0.5, 0.9])
    assert [(ray.method, ray.density) for ray in options.rays()] == [
        ("cat", None), ("ties", 0.5), ("ties", 0.9), ("magnitude_prune", 0.5), ("magnitude_prune", 0.9)
    ]  # fmt: skip
    found = search(path, MadeUp(path), options).to_json()
    assert {(point["method"], point["density"]) for point in found["path"]} >= {("ties", 0.5), ("ties", 0.9)}


def test_groups_are_moved_only_for_the_better(path):
    """The made-up Task Aggregate is best where half of the over-forgetting adapter is in, so no group can gain."""
    found = run(path, MadeUp(path), methods=["cat"], scales=[1.5], groups=2, splits=1)
    assert len(found["chosen"]["shifts"]) == 2
    assert any(point["shifts"] not in ([], [0, 0]) for point in found["path"])
    plain = run(path, MadeUp(path), methods=["cat"], scales=[1.5], splits=1)
    assert found["chosen"]["aggregate_calibration"] >= plain["chosen"]["aggregate_calibration"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["tie"]}, "^methods: must be one of .* did you mean ties"),
        ({"methods": ["ties_dense"]}, "^methods: ties_dense gives no adapter"),
        ({"methods": []}, "^methods: at least one is needed"),
        ({"scales": [0.0]}, "^scales: must be above 0 and finite, got 0"),
        ({"scales": [1.0, float("inf")]}, "^scales: must be above 0 and finite, got inf"),
        ({"scales": [float("nan"), 1.0]}, "^scales: must be above 0 and finite, got nan"),
        ({"grid": 1}, "^grid: must be at least 2, got 1"),
        ({"splits": 0}, "^splits: must be at least 1"),
        ({"tolerance": 0.5}, r"^tolerance: must be in \(0, 0.5\), got 0.5"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        BalanceOptions(**options)


def test_what_does_not_fit_the_adapters_or_documents_is_refused_before_any_loss(path):
    few = MadeUp(path, count=1)
    with pytest.raises(InputError, match=r"^membership: calibrating needs members and non-members in both halves"):
        run(path, few)
    scorer = MadeUp(path)
    with pytest.raises(InputError, match=r"^groups: must be at most 2, the adapted layers, got 3"):
        run(path, scorer, groups=3)
    with pytest.raises(InputError, match=r"^densities: must be in \(0, 1\], got 2\.0"):
        run(path, scorer, densities=[2.0])
    assert scorer.calls == 0
