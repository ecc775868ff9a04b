r"""Retrieval as energy minimisation: the mathematics of Routing without Forgetting.

For one query q and keys k_1..k_N, with p on the probability simplex and inverse temperature
beta > 0,

.. math::

    F(p; q) = -\sum_i p_i \langle q, k_i \rangle + \frac{1}{\beta} \sum_i p_i \log p_i .

F is strictly convex in p (its Hessian is diag(1 / (beta p_i))), so its minimiser is unique and
reached in one step:

.. math::

    p^* = \operatorname{softmax}(\beta K q), \qquad
    F(p^*) = -\frac{1}{\beta} \log \sum_i e^{\beta \langle q, k_i \rangle}, \qquad
    F(p) - F(p^*) = \frac{1}{\beta} \mathrm{KL}(p \,\|\, p^*) .

The retrieved pattern sum_i p*_i v_i is one update of a Modern Hopfield network (Ramsauer et al.,
arXiv 2008.02217); the use for prompts is Routing without Forgetting (arXiv 2603.09576).

A prior p0 over the tokens enters as KL(p || p0) in the entropy's place; with a_i = log p0_i, up to
a constant,

.. math::

    F(p; q) = -\sum_i p_i \langle q, k_i \rangle + \frac{1}{\beta} \sum_i p_i (\log p_i - a_i) ,
    \qquad p^* = \operatorname{softmax}(\beta K q + a) .

Convexity is in p for given q and K only: the closed form is that of the retrieval. The queries
themselves are learned by gradient.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import is_finite

__all__ = ["association", "free_energy", "minimum_free_energy", "retrieve", "scores"]

Beta = float | Tensor


def _check_beta(beta: Beta) -> None:
    if isinstance(beta, Tensor):
        return  # a check of a tensor's value would wait for the device at each call
    if not (is_finite(beta) and beta > 0):
        raise UsageError(f"beta must be a positive finite number, not {beta!r}.")


def _check_tensors(**tensors: Tensor) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} must be a tensor, not {value!r}.")


def _check_prior(log_prior: Tensor | None, tokens: int) -> None:
    """By the shape alone: a look at the values would wait for the device at each call."""
    if log_prior is None:
        return
    _check_tensors(log_prior=log_prior)
    if log_prior.dim() and log_prior.shape[-1] not in (1, tokens):
        raise UsageError(
            f"log_prior must have one entry for each of the {tokens} tokens, not "
            f"{log_prior.shape[-1]}."
        )


def scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Inner products <q, k_i>.

    :param queries: [..., L, d].
    :param keys: [..., N, d].
    :returns: [..., L, N], in the unit of queries times keys.

    >>> scores(torch.eye(2), torch.tensor([[3.0, 1.0], [0.0, 2.0], [1.0, 1.0]]))
    tensor([[3., 0., 1.],
            [1., 2., 1.]])
    """
    return queries @ keys.transpose(-2, -1)


def association(scores: Tensor, beta: Beta, log_prior: Tensor | None = None) -> Tensor:
    """The minimiser p* = softmax(beta * scores + log_prior) over the last dimension.

    :param scores: inner products [..., N].
    :param beta: inverse temperature, > 0; a tensor must broadcast with `scores`.
    :param log_prior: a [N], up to a constant; -inf leaves a token out; None is uniform.
    :returns: weights [..., N], non-negative, summing to one. Scores of any finite size are safe.
    :raises UsageError: if beta is a number that is not positive and finite, or the rest no tensor.

    Source: RwF, arXiv 2603.09576; Ramsauer et al., arXiv 2008.02217, equation 3.

    >>> association(torch.tensor([1000.0, 1000.0, 0.0]), beta=1.0)
    tensor([0.5000, 0.5000, 0.0000])
    >>> association(torch.zeros(2), beta=1.0, log_prior=torch.tensor([0.25, 0.75]).log())
    tensor([0.2500, 0.7500])
    """
    _check_beta(beta)
    _check_tensors(scores=scores)
    _check_prior(log_prior, scores.shape[-1])
    logits = scores * beta
    return torch.softmax(logits if log_prior is None else logits + log_prior, dim=-1)


def free_energy(p: Tensor, scores: Tensor, beta: Beta, log_prior: Tensor | None = None) -> Tensor:
    """F(p; q) = -<p, scores> + (1 / beta) sum_i p_i (log p_i - a_i), over the last dimension.

    :param p: points of the probability simplex [..., N]; 0 log 0 counts as 0.
    :param scores: inner products [..., N].
    :param beta: inverse temperature, > 0.
    :param log_prior: a [N]; None is 0. The energy of a point on a token that is left out is inf.
    :returns: energies [...], in the unit of the scores.
    :raises UsageError: if beta is a number that is not positive and finite, or the rest no tensor.

    Source: RwF, arXiv 2603.09576. What lies above the minimum is KL(p || p*) / beta:

    >>> s, p = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    >>> above = free_energy(p, s, beta=2.0) - minimum_free_energy(s, beta=2.0)
    >>> best = association(s, beta=2.0)
    >>> torch.allclose(above, (p * (p / best).log()).sum() / 2)
    True
    """
    _check_beta(beta)
    _check_tensors(p=p, scores=scores)
    _check_prior(log_prior, scores.shape[-1])
    negative_entropy = torch.special.xlogy(p, p).sum(-1)
    if log_prior is not None:
        # 0 times a token that is left out counts as 0, as in 0 log 0.
        outside = torch.where(p > 0, p * log_prior, torch.zeros_like(p))
        negative_entropy = negative_entropy - outside.sum(-1)
    energy = -(p * scores).sum(-1)
    if isinstance(beta, Tensor) and beta.dim() > 0:
        beta = beta.squeeze(-1)
    return energy + negative_entropy / beta


def minimum_free_energy(scores: Tensor, beta: Beta, log_prior: Tensor | None = None) -> Tensor:
    """F(p*) = -(1 / beta) logsumexp(beta * scores + log_prior), over the last dimension.

    :param scores: inner products [..., N].
    :param beta: inverse temperature, > 0.
    :param log_prior: a [N]; None is 0.
    :returns: energies [...], in the unit of the scores.
    :raises UsageError: if beta is a number that is not positive and finite, or the rest no tensor.

    Source: the energy of a Modern Hopfield network, arXiv 2008.02217, equation 2.

    >>> round(float(minimum_free_energy(torch.zeros(4), beta=2.0)), 4)  # -log(4) / 2
    -0.6931
    """
    _check_beta(beta)
    _check_tensors(scores=scores)
    _check_prior(log_prior, scores.shape[-1])
    logits = scores * beta
    value = torch.logsumexp(logits if log_prior is None else logits + log_prior, dim=-1)
    if isinstance(beta, Tensor) and beta.dim() > 0:
        beta = beta.squeeze(-1)
    return -value / beta


@overload
def retrieve(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Beta,
    need_association: Literal[False] = False,
    log_prior: Tensor | None = None,
) -> Tensor: ...


@overload
def retrieve(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Beta,
    need_association: Literal[True],
    log_prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


def retrieve(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Beta,
    need_association: bool = False,
    log_prior: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Patterns z_l = sum_i p*_li v_i, each at the minimum of its own free energy.

    :param queries: [..., L, d].
    :param keys: [..., N, d].
    :param values: [..., N, d_v].
    :param beta: inverse temperature, > 0; a tensor must broadcast with [..., L, N].
    :param need_association: also return p* [..., L, N]; without it, PyTorch's fused attention is
        used and p* is never stored.
    :param log_prior: log p0 [N], up to a constant; -inf leaves a token out; None is uniform.
    :returns: patterns [..., L, d_v], and p* if asked for.
    :raises UsageError: if beta is a number that is not positive and finite, or the widths of
        queries and keys, or the lengths of keys, values and prior, differ.

    Source: RwF, arXiv 2603.09576. A small beta gives the mean of the values, a large one the value
    of the key nearest to the query:

    >>> keys, values = torch.eye(2), torch.tensor([[1.0], [3.0]])
    >>> retrieve(keys[:1], keys, values, beta=1e-6).round(decimals=4)
    tensor([[2.]])
    >>> retrieve(keys[:1], keys, values, beta=1e3)
    tensor([[1.]])
    """
    _check_beta(beta)
    _check_tensors(queries=queries, keys=keys, values=values)
    for name, tensor in (("queries", queries), ("keys", keys), ("values", values)):
        if tensor.dim() < 2:
            raise UsageError(f"{name} must be [..., length, width], not {tuple(tensor.shape)}.")
    if queries.shape[-1] != keys.shape[-1]:
        raise UsageError(
            f"queries of width {queries.shape[-1]} do not fit keys of width {keys.shape[-1]}."
        )
    if keys.shape[-2] != values.shape[-2]:
        raise UsageError(f"{keys.shape[-2]} keys do not fit {values.shape[-2]} values.")
    _check_prior(log_prior, keys.shape[-2])
    if need_association:
        p = association(scores(queries, keys), beta, log_prior)
        return p @ values, p
    if isinstance(beta, Tensor):
        # A learned beta must stay in the graph: it goes into the queries, not into `scale`.
        queries, beta = queries * beta, 1.0
    if log_prior is not None:
        log_prior = log_prior.to(queries.dtype).expand(queries.shape[-2], -1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=log_prior, scale=beta)
