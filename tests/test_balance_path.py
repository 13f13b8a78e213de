"""Points between two adapters, by dense deltas computed in the test."""

import json

import pytest
import torch
from adapter_folders import tensors, write_adapter
from peft import PeftModel

from unlearn_pl.balance.path import LEAST_COEFFICIENT, Point, Ray, open_path
from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import Factors, factors_of, norm
from unlearn_pl.merging.methods import METHODS

SCALING = 2.0  # alpha 8 / rank 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate(("over", "under"))]


@pytest.fixture(scope="module")
def path(pair, tiny_model):
    return open_path(tiny_model(), pair)


def dense(deltas):
    return {name: d.b @ d.a if isinstance(d, Factors) else d for name, d in deltas.items()}


def parent(folder):
    return {name: SCALING * pair.b @ pair.a for name, pair in factors_of(tensors(folder)).items()}


def close(got, wanted, **tolerance):
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize(("coefficient", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.3, 1.0), (0.3, 1.7)])
def test_cat_is_the_exact_interpolation(path, pair, coefficient, scale):
    over, under = map(parent, pair)
    deltas, scales = path.merge(Point(Ray(scale=scale), coefficient))
    close(dense(deltas), {name: scale * ((1 - coefficient) * over[name] + coefficient * under[name]) for name in over})
    assert scales == [scale]


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.form != "dense"])
def test_other_methods_get_the_norm_of_the_interpolation(path, method):
    exact, _ = path.merge(Point(Ray(scale=1.3), 0.4))
    deltas, _ = path.merge(Point(Ray(method, 1.3), 0.4))
    assert norm(deltas) == pytest.approx(norm(exact), rel=1e-5)
    if method not in ("cat", "task_arithmetic", "average", "slerp"):
        assert any(not torch.allclose(dense(deltas)[name], value) for name, value in dense(exact).items())


def test_methods_that_elect_signs_never_get_a_weight_of_zero():
    assert Point(Ray("ties"), 0.0).coefficients() == [LEAST_COEFFICIENT]
    assert Point(Ray("ties"), 1.0).coefficients() == [1 - LEAST_COEFFICIENT]
    assert Point(Ray(), 0.0).coefficients() == [0.0]


def test_groups_are_neighbouring_layers_and_move_by_themselves(path, pair):
    """Two layers, two groups: coefficients 0.4 + 0.1 and 0.4 - 0.6, which ends at 0."""
    first, second = path.groups(2)
    assert {name.split(".")[4] for name in first} == {"0"}
    assert {name.split(".")[4] for name in second} == {"1"}
    assert sorted(first + second) == sorted(path.order)
    over, under = map(parent, pair)
    point = Point(Ray(), 0.4, (0.1, -0.6))
    assert point.coefficients() == [0.5, 0.0]
    wanted = {name: 0.5 * over[name] + 0.5 * under[name] for name in first} | {name: over[name] for name in second}
    close(dense(path.merge(point)[0]), wanted)


@pytest.mark.parametrize(
    "point", [Point(Ray(scale=1.2), 0.3), Point(Ray("ties", 0.8, 0.5), 0.6), Point(Ray(), 0.4, (0.1, -0.1))]
)
def test_a_written_point_opens_with_peft_and_says_what_it_is(path, tiny_model, tmp_path, point):
    merged = path.merged(point)
    merged.save(tmp_path / "adapter")
    opened = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))
    got = {
        f"base_model.model.{name}".replace(
            "base_model.model.base_model.model.", "base_model.model."
        ): layer.get_delta_weight("default")
        for name, layer in opened.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    close(got, dense(path.merge(point)[0]))
    facts = json.loads((tmp_path / "adapter/unlearn_pl.json").read_text())["merge"]
    assert facts["balance"]["mix"] == point.coefficient
    assert facts["method"] == point.ray.method
    if point.offsets:
        assert [group["weights"] for group in facts["groups"]] == [[0.5, 0.5], [pytest.approx(0.7), pytest.approx(0.3)]]
    else:
        assert "groups" not in facts
        assert facts["weights"] == [1 - point.coefficient, point.coefficient]


def test_two_adapters_that_fit(pair, tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"^adapters: two are needed, .* got 3"):
        open_path(tiny_model(), [*pair, pair[0]])
    with pytest.raises(InputError, match=r"^adapters: each only once, got .* twice"):
        open_path(tiny_model(), [pair[0], f"{pair[0]}/../over"])
    stranger = write_adapter(tmp_path / "stranger", tiny_model(), 5, r=2)
    path = open_path(tiny_model(), [pair[0], stranger])
    path.check(Ray())
    with pytest.raises(InputError, match="ties needs equal ranks"):
        path.check(Ray("ties"))
    with pytest.raises(InputError, match="density"):
        path.check(Ray(density=0.5))
