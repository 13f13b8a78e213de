"""What was measured at some points, at all others: the guess that says where to measure next."""

import torch
from torch import Tensor


def interpolate(points: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """[M, K] at the points ``wanted`` [M, D], from K ``values`` [N, K] at ``points`` [N, D]; float64.

    The smoothest function through all values: a plane and, around each point, the cube of the distance (polyharmonic
    splines; Duchon 1977). N may be as small as one, and the points may lie on a line: of all planes that fit, that with
    the least coefficients is taken.
    """
    points, values, wanted = points.double(), values.double(), wanted.double()
    plane = _plane(points)
    corner = plane.new_zeros(plane.shape[1], plane.shape[1])
    system = torch.cat([torch.cat([_cubes(points, points), plane], dim=1), torch.cat([plane.T, corner], dim=1)])
    wished = torch.cat([values, values.new_zeros(len(corner), values.shape[1])])
    # The driver that takes systems without a full rank, on a CPU
    weights = torch.linalg.lstsq(system, wished, rcond=1e-10, driver="gelsd").solution
    return torch.cat([_cubes(wanted, points), _plane(wanted)], dim=1) @ weights


def _cubes(x: Tensor, y: Tensor) -> Tensor:
    """[N, M]: cubes of the distances of points [N, D] and [M, D]."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 3


def _plane(points: Tensor) -> Tensor:
    """[N, D + 1]: what the coefficients of a plane are multiplied with."""
    return torch.cat([points.new_ones(len(points), 1), points], dim=1)
