"""Angles between displacements, against dense matrices and the identity that total = before + after implies."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.analysis.angles import angle_report
from unlearn_pl.analysis.layers import layer_of
from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import angle_degrees

MODULES = (
    "model.layers.0.mlp.up",
    "model.layers.0.mlp.down",
    "model.layers.10.q_proj",
    "model.layers.2.q_proj",
    "head",
)
SPACES = ("factors", "delta")


def states(seed, sizes=(1.0, 1.0), modules=MODULES, rank=3, start_b=0.0):
    """Three snapshots: start (B is ``start_b`` times noise), then two random moves of the given sizes."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    first = {f"{m}.lora_A.weight": noise(rank, 7) for m in modules}
    first |= {f"{m}.lora_B.weight": start_b * noise(5, rank) for m in modules}
    path = [first]
    for size in sizes:
        path.append({name: value + size * noise(*value.shape) for name, value in path[-1].items()})
    return path


def dense_vector(state, module, space, scaling):
    a, b = state[f"{module}.lora_A.weight"].double(), state[f"{module}.lora_B.weight"].double()
    return torch.cat([a.flatten(), b.flatten()]) if space == "factors" else (scaling * b @ a).flatten()


def dense_geometry(path, modules, space, scaling=1.0):
    """The same by building every matrix, and the angle by Kahan's formula on unit vectors."""
    start, pivot, end = (torch.cat([dense_vector(s, m, space, scaling) for m in modules]) for s in path)
    moves = {"before": pivot - start, "after": end - pivot, "total": end - start}

    def angle(x, y):
        x, y = moves[x] / moves[x].norm(), moves[y] / moves[y].norm()
        return math.degrees(2 * math.atan2((x - y).norm().item(), (x + y).norm().item()))

    pairs = (("before", "after"), ("before", "total"), ("after", "total"))
    return {
        "norms": {name: move.norm().item() for name, move in moves.items()},
        "angles": {f"{x}_{y}": angle(x, y) for x, y in pairs},
    }


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("start_b", [0.0, 0.7])
def test_norms_and_angles_are_those_of_the_dense_vectors(space, start_b):
    path = states(0, start_b=start_b)
    report = angle_report(path, [0, 165, 700], scaling=2.0)
    assert report["steps"] == [0, 165, 700]
    assert list(report[space]["layers"]) == ["0", "2", "10", "other"]
    groups = {"overall": MODULES, "0": MODULES[:2], "2": MODULES[3:4], "10": MODULES[2:3], "other": MODULES[4:]}
    for group, modules in groups.items():
        got = report[space]["overall"] if group == "overall" else report[space]["layers"][group]
        wanted = dense_geometry(path, modules, space, 2.0)
        assert got["norms"] == pytest.approx(wanted["norms"], rel=1e-10)
        assert got["angles"] == pytest.approx(wanted["angles"], abs=1e-8)


def test_three_four_five_by_hand():
    """B moves (0, 0) -> (3, 0) -> (3, 4) with A = 1: norms 3, 4, 5; 90, acos .6 = 53.13 and acos .8 = 36.87 degrees.

    The scaling of 2 doubles the deltas and leaves the factors.
    """
    path = [
        {"m.lora_A.weight": torch.ones(1, 1), "m.lora_B.weight": torch.tensor(b).reshape(2, 1)}
        for b in ([0.0, 0.0], [3.0, 0.0], [3.0, 4.0])
    ]
    report = angle_report(path, [0, 1, 2], scaling={"m": 2.0})
    angles = {"before_after": 90, "before_total": 53.13010235, "after_total": 36.86989765}
    for space, scale in (("factors", 1), ("delta", 2)):
        assert report[space]["overall"]["norms"] == {"before": 3 * scale, "after": 4 * scale, "total": 5 * scale}
        assert report[space]["overall"]["angles"] == pytest.approx(angles)
        assert report[space]["layers"] == {"other": report[space]["overall"]}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([0.0, 1.0]))
def test_the_parts_of_the_angle_add_up(seed, first, second, start_b):
    report = angle_report(states(seed, (first, second), modules=MODULES[2:4], rank=1, start_b=start_b), [0, 1, 2])
    for space in SPACES:
        for group in (report[space]["overall"], *report[space]["layers"].values()):
            angles = group["angles"]
            assert angles["before_total"] + angles["after_total"] == pytest.approx(angles["before_after"], abs=2e-5)
            assert all(0 <= angle <= 180 for angle in angles.values())


@pytest.mark.parametrize("space", SPACES)
def test_a_move_of_a_billionth_keeps_its_angle(space):
    """Taken from the inner products of whole deltas, a difference of 1e-9 of them would be rounding only."""
    path = states(4, (1e-9, 1e-9), start_b=1.0)
    start = path[0]
    if space == "factors":
        moves = [[later[n] - earlier[n] for n in start] for earlier, later in ((path[0], path[1]), (path[1], path[2]))]
    else:
        # to first order in 1e-9: dB A + B dA
        moves = [
            [
                (later[f"{m}.lora_B.weight"] - earlier[f"{m}.lora_B.weight"]) @ start[f"{m}.lora_A.weight"]
                + start[f"{m}.lora_B.weight"] @ (later[f"{m}.lora_A.weight"] - earlier[f"{m}.lora_A.weight"])
                for m in MODULES
            ]
            for earlier, later in ((path[0], path[1]), (path[1], path[2]))
        ]
    before, after = (torch.cat([part.flatten() for part in move]) for move in moves)
    wanted = math.degrees(math.acos(before @ after / before.norm() / after.norm()))
    got = angle_report(path, [0, 1, 2])[space]["overall"]
    assert got["angles"]["before_after"] == pytest.approx(wanted, abs=1e-5)
    assert got["norms"]["before"] == pytest.approx(before.norm().item(), rel=1e-6)


def test_delta_angles_see_through_the_factors_and_factor_angles_do_not():
    """(A, B) -> (-A, -B) at the pivot alone leaves every delta."""
    path = states(1, start_b=1.0)
    flipped = [path[0], {name: -value for name, value in path[1].items()}, path[2]]
    one, other = (angle_report(p, [0, 1, 2]) for p in (path, flipped))
    assert other["delta"]["overall"]["angles"] == pytest.approx(one["delta"]["overall"]["angles"])
    assert other["factors"]["overall"]["angles"] != pytest.approx(one["factors"]["overall"]["angles"], abs=1)


def test_an_angle_with_a_zero_vector_is_none_and_the_report_is_json():
    path = states(2)
    still = angle_report([path[0], path[0], path[2]], [0, 0, 9])
    back = angle_report([path[0], path[1], path[0]], [0, 4, 9])
    for space in SPACES:
        assert still[space]["overall"]["norms"]["before"] == 0
        angles = still[space]["overall"]["angles"]
        assert (angles["before_after"], angles["before_total"]) == (None, None)
        assert angles["after_total"] == pytest.approx(0, abs=1e-5)
        assert back[space]["overall"]["norms"]["total"] == 0
        assert back[space]["overall"]["angles"]["before_after"] == pytest.approx(180, abs=1e-5)
    assert json.loads(json.dumps(still, allow_nan=False)) == still


def test_names_of_a_model_and_half_precision_do():
    path = [{n.replace(".weight", ".default.weight"): v.bfloat16() for n, v in s.items()} for s in states(3)]
    plain = [{n.replace(".default", ""): v for n, v in s.items()} for s in path]
    got = angle_report(path, [0, 1, 2])
    assert got == angle_report(plain, [0, 1, 2])
    assert got["delta"]["overall"]["angles"] == pytest.approx(dense_geometry(plain, MODULES, "delta")["angles"])


def test_rounding_never_leaves_the_range():
    assert angle_degrees(1 + 1e-9, 1.0, 1.0) == 0
    assert angle_degrees(-1 - 1e-9, 1.0, 1.0) == 180
    assert angle_degrees(1e-320, 1e-160, 1e-160) is not None
    assert angle_degrees(0.0, 0.0, 1.0) is None


def test_layers_are_the_first_number_of_a_name():
    assert layer_of("base_model.model.model.layers.3.mlp.experts.12.up") == "3"
    assert layer_of("transformer.h.11") == "11"
    assert layer_of("lm_head2") == "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.pop(), "need 3 snapshots and 3 steps, got 2 and 3"),
        (lambda path: path[1].pop("head.lora_A.weight"), "snapshot at step 165: head has lora_B but not its partner"),
        (lambda path: [path[2].pop(f"head.lora_{s}.weight") for s in "AB"], "differ in modules or shapes"),
        (lambda path: path[2].update({"head.lora_A.weight": torch.ones(3, 8)}), "differ in modules or shapes"),
        (lambda path: path[1].update({"head.lora_B.weight": torch.full((5, 3), math.nan)}), "step 165 has NaN or inf"),
    ],
)
def test_snapshots_that_do_not_fit_are_refused(change, message):
    path = states(0)
    change(path)
    with pytest.raises(InputError, match=message):
        angle_report(path, [0, 165, 700])
