r"""Priors over tokens: where a retrieval looks before it has compared a key with its query.

.. math:: a_i = -\frac{1}{2 w^2} \Big( \big(\tfrac{y_i}{h / 2}\big)^2
          + \big(\tfrac{x_i}{b / 2}\big)^2 \Big)

for the patch in the grid of h rows and b columns whose centre lies y_i rows and x_i columns from
the image's centre. It says that photographs show their object in the middle: an assumption about
the images and not something learned. It needs no data, so the statistics of a closed-form head stay
exact. This is this project's; ``examples/route_study.py`` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import By, Number, Whole, takes

__all__ = ["centre_prior"]


def _check_grid(name: str, value: Any) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UsageError(f"{name} must be two numbers of patches, rows and columns, not {value!r}.")
    for n in value:
        Whole().check(name, n)


@takes(grid=By(_check_grid), width=Number(above=0), num_prefix_tokens=Whole(least=0))
def centre_prior(grid: tuple[int, int], width: float, num_prefix_tokens: int = 1) -> Tensor:
    """Log-weights a [N] of the tokens of an image; class and register tokens get -inf.

    :param grid: rows and columns of patches; N is their product and the prefix tokens.
    :param width: w, the standard deviation in halves of a side, > 0; large is uniform.
    :param num_prefix_tokens: class token and registers, before the patches.
    :returns: [N] log-weights, 0 at the centre, up to a constant.
    :raises UsageError: if an argument is out of range, such as a width that is not positive.

    >>> centre_prior((2, 2), width=1.0)
    tensor([   -inf, -0.2500, -0.2500, -0.2500, -0.2500])
    """
    rows, columns = (((torch.arange(n) - (n - 1) / 2) / (n / 2)).square() for n in grid)
    patches = -(rows[:, None] + columns[None, :]).flatten() / (2 * width**2)
    return torch.cat([torch.full((num_prefix_tokens,), float("-inf")), patches])
