"""The guess between measurements: exact at them, right for planes, and without conditions on the points."""

import pytest
import torch

from unlearn_pl.balance.interpolation import interpolate


def points(count, width=2, seed=0):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_measured_values_come_back(count):
    at, values = points(count), points(count, 5, seed=1)
    torch.testing.assert_close(interpolate(at, values, at), values)


def test_a_plane_is_met_everywhere():
    at, wanted, slopes = points(6), points(9, seed=1) * 3, torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(interpolate(at, at @ slopes + 7, wanted), wanted @ slopes + 7)


def test_a_smooth_surface_is_met_nearly_between_its_points():
    """sin of the sum of two coordinates, over [0, 1], from 7 x 7 points."""
    axis = torch.linspace(0, 1, 7, dtype=torch.float64)
    at, wanted = torch.cartesian_prod(axis, axis), points(50, seed=2)
    found = interpolate(at, at.sum(1, keepdim=True).sin(), wanted)
    torch.testing.assert_close(found, wanted.sum(1, keepdim=True).sin(), atol=2e-3, rtol=0)


def test_points_on_a_line_and_a_single_one_do():
    """1 - x along the line y = 1 - x, also a little beside its ends; one point says the same of all."""
    line = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    wanted = torch.tensor([[0.25, 0.75], [1.5, -0.5]])
    torch.testing.assert_close(interpolate(line, 1 - line[:, :1], wanted), 1 - wanted[:, :1].double())
    assert interpolate(torch.zeros(1, 2), torch.tensor([[3.0]]), wanted)[0].item() == pytest.approx(3)


def test_as_a_second_way_to_compute_it():
    """The textbook system by plain inversion, for points in general position."""
    at, values, wanted = points(8), points(8, 3, seed=1), points(4, seed=2)
    one = torch.ones(8, 1, dtype=torch.float64)
    cubes = torch.stack([(at - point).norm(dim=1) ** 3 for point in at])
    side = torch.cat([one, at], dim=1)
    system = torch.zeros(11, 11, dtype=torch.float64)
    system[:8, :8], system[:8, 8:], system[8:, :8] = cubes, side, side.T
    weights = system.inverse() @ torch.cat([values, torch.zeros(3, 3, dtype=torch.float64)])
    for number, point in enumerate(wanted):
        row = torch.cat([(at - point).norm(dim=1) ** 3, torch.ones(1, dtype=torch.float64), point])
        torch.testing.assert_close(interpolate(at, values, wanted)[number], row @ weights)
