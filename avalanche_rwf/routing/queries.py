r"""Queries set from data in closed form: the leading directions in which a block's tokens vary.

For layer-normed tokens x of the first training batch with covariance C = E eigenvectors u_1, u_2,
..., the queries are the pairs

.. math:: \pm \sqrt{D} \, u_j , \qquad j = 1 .. L / 2 .

At a small beta a retrieval is the mean token tilted along u_j, mean + beta sqrt(D) C u_j + ...: it
reads second-order statistics of the image that mean pooling throws away. No label is used and
nothing is trained, so a closed-form head on top keeps exact statistics. This is this project's,
measured against mean pooling (``layers-lda``) in README.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import Instance, Whole, takes

__all__ = ["principal_queries"]


@takes(tokens=Instance(Tensor, "a tensor [B, N, D]"), num_queries=Whole())
@torch.no_grad()
def principal_queries(tokens: Tensor, num_queries: int) -> Tensor:
    """Queries: plus and minus the leading principal directions of layer-normed tokens.

    The sign of an eigenvector is arbitrary; the pairs make the set independent of it. For an odd L
    the last direction comes with one sign only.

    :param tokens: [B, N, D].
    :param num_queries: L.
    :returns: [L, D], each of norm sqrt(D).
    :raises UsageError: if L is no whole number from 1 to 2 D.

    >>> tokens = torch.tensor([[[3.0, 0, 0, 0], [-3, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]]])
    >>> queries = principal_queries(tokens, 2)
    >>> queries.norm(dim=1), torch.equal(queries[0], -queries[1])
    (tensor([2., 2.]), True)
    """
    if tokens.dim() < 2:
        raise UsageError(f"tokens must be a tensor [B, N, D], not one {list(tokens.shape)}.")
    dim = tokens.shape[-1]
    if num_queries > 2 * dim:
        raise UsageError(f"num_queries must be at most 2 D = {2 * dim}, not {num_queries}.")
    x = F.layer_norm(tokens.double(), (dim,)).flatten(0, -2)
    x = x - x.mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)  # ascending
    leading = vectors.T.flip(0)[: (num_queries + 1) // 2] * math.sqrt(dim)
    # A sign that does not depend on the solver: the largest entry is positive.
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    leading = leading * largest.sign()
    return torch.cat([leading, -leading])[:num_queries].to(tokens.dtype)
