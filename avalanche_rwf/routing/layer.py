r"""The routing layer: L prompts retrieved from a block's tokens in one closed-form step.

.. math::

    \hat X = \mathrm{LN}(X), \quad Q = W_q S, \quad K = W_k \hat X, \quad V = W_v X', \qquad
    P = s \, W_o \, \mathrm{concat}_h \, \mathrm{retrieve}(Q_h, K_h, V_h, \beta)

with learned state patterns S (the queries) and X' either the layer-normed or the raw tokens.
Source: Routing without Forgetting (arXiv 2603.09576); where it is silent the choice is ours and an
option here.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.blockwise import PrefixPrompt, Prompt, TokenPrompt
from avalanche_rwf.models.families import form_of
from avalanche_rwf.routing.functional import association, minimum_free_energy, retrieve
from avalanche_rwf.utils.validation import By, Choice, Flag, Number, Subset, Whole, shown, takes

__all__ = ["TRAINABLE", "RoutingDiagnostics", "RoutingLayer"]

Insert = Literal["token", "prefix"]
Source = Literal["tokens", "mean", "static"]
Values = Literal["raw", "normed"]
TRAINABLE = ("queries", "q", "k", "v", "o", "beta", "scale")


@dataclass(frozen=True)
class RoutingDiagnostics:
    """What a retrieval did, computed on request only.

    :param association: p*, [B, H, L, N].
    :param entropy: of p*, in nats, [B, H, L]; log N is uniform.
    :param free_energy: F(p*), [B, H, L].
    """

    association: Tensor
    entropy: Tensor
    free_energy: Tensor


def _check_prior(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dim() != 1:
        got = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
        raise UsageError(f"{name} must be a tensor of one dimension or None, not {got}.")
    if not bool((value < float("inf")).all()):
        raise UsageError(f"{name} must hold finite numbers or -inf, not NaN or inf.")


class RoutingLayer(nn.Module):
    """Retrieve L prompts from tokens.

    Parameters that are not trained are separate tensors with ``requires_grad=False``; a
    projection that is absent is the identity and has no tensor at all.

    :param dim: token width D.
    :param num_prompts: L.
    :param heads: H, dividing D.
    :param beta: inverse temperature; None is 1 / sqrt(D / H).
    :param trainable: a non-empty subset of {"queries", "q", "k", "v", "o", "beta", "scale"}.
    :param projections: of {"q", "k", "v", "o"}, those that are present though not trained.
    :param insert: "token" (L tokens inserted and dropped) or "prefix" (a learned map gives L keys
        and values; it takes the place of W_o).
    :param source: "tokens" retrieves; the same-parameter controls are "mean" (uniform association,
        the queries become offsets of the slots) and "static" (the prompts are the queries around
        one point); see :meth:`start_at`.
    :param values: "raw" tokens or "normed" ones.
    :param stop_gradient: whether the tokens are detached before retrieval.
    :param affine: whether the LayerNorm has a weight and bias (trained with the queries).
    :param query_std: standard deviation of the queries at the start. With N(0, 1) the scores have
        unit variance at the default beta and the slots differ; with the usual 0.02 all prompts
        are the same mean token.
    :param log_prior: log p0 [N] of a retrieval's tokens (:mod:`avalanche_rwf.routing.priors`);
        None is uniform.
    :raises ValueError: naming the argument that is out of range.

    Source: RwF, arXiv 2603.09576.

    >>> layer = RoutingLayer(dim=8, num_prompts=3, heads=2)
    >>> tokens = torch.randn(4, 10, 8)
    >>> layer(tokens).shape  # prompts [B, L, D]
    torch.Size([4, 3, 8])
    >>> sorted(layer.parameter_groups())  # what is trained by default
    ['o', 'queries']
    >>> layer.diagnose(tokens).association.sum(-1).allclose(torch.ones(4, 2, 3))
    True
    """

    w_q: nn.Parameter | None
    w_k: nn.Parameter | None
    w_v: nn.Parameter | None
    w_o: nn.Parameter | None
    centre: Tensor
    unit: Tensor
    log_prior: Tensor | None

    @takes(
        dim=Whole(),
        num_prompts=Whole(least=0),
        heads=Whole(),
        beta=Number(above=0, optional=True),
        trainable=Subset(TRAINABLE, empty=False),
        projections=Subset(("q", "k", "v", "o")),
        insert=Choice(get_args(Insert)),
        source=Choice(get_args(Source)),
        values=Choice(get_args(Values)),
        stop_gradient=Flag(),
        affine=Flag(),
        query_std=Number(least=0),
        log_prior=By(_check_prior),
    )
    def __init__(
        self,
        dim: int,
        num_prompts: int = 10,
        *,
        heads: int = 1,
        beta: float | None = None,
        trainable: Collection[str] = ("queries", "o"),
        projections: Collection[str] = (),
        insert: Insert = "token",
        source: Source = "tokens",
        values: Values = "raw",
        stop_gradient: bool = False,
        affine: bool = False,
        query_std: float = 1.0,
        log_prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim={dim}, and {heads} does not.")
        _check_control(source, trainable, log_prior)
        self.dim, self.num_prompts, self.heads = dim, num_prompts, heads
        self.insert, self.source, self.values = insert, source, values
        self.stop_gradient = stop_gradient
        self.trainable = tuple(t for t in TRAINABLE if t in trainable)
        # Given by the options and the images' size, so it is not part of the state.
        self.register_buffer("log_prior", log_prior, persistent=False)

        std = query_std if source == "tokens" else 0.1
        self.queries = nn.Parameter(std * torch.randn(num_prompts, dim))
        self.norm = nn.LayerNorm(dim, elementwise_affine=affine)
        if source != "tokens":
            # The controls' queries live among the tokens, in units of the tokens' own spread: a
            # rate of 1e-3 is then the same step in any backbone and block.
            self.register_buffer("centre", torch.zeros(dim))
            self.register_buffer("unit", torch.ones(()))
        present = {*trainable, *projections}
        for name in ("q", "k", "v", "o"):
            matrix = nn.Parameter(torch.eye(dim)) if name in present else None
            if name == "o" and insert == "prefix":
                matrix = None  # the prefix maps stand in its place
            self.register_parameter(f"w_{name}", matrix)
        if insert == "prefix":
            self.prefix_keys, self.prefix_values = nn.Linear(dim, dim), nn.Linear(dim, dim)
            for linear in (self.prefix_keys, self.prefix_values):
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)
        start = beta if beta is not None else 1 / math.sqrt(dim // heads)
        self.fixed_beta: float | None = start
        if "beta" in trainable:
            self.fixed_beta = None
            self.log_beta = nn.Parameter(torch.tensor(math.log(start)))
        if "scale" in trainable:
            self.scale = nn.Parameter(torch.ones(()))
        for kind, parameters in self.parameter_groups(trained_only=False).items():
            for parameter in parameters:
                parameter.requires_grad_(kind in self.trainable)

    @property
    def beta(self) -> float | Tensor:
        """Inverse temperature: a number, or exp(log_beta) where it is learned."""
        return self.fixed_beta if self.fixed_beta is not None else self.log_beta.exp()

    def parameter_groups(self, trained_only: bool = True) -> dict[str, list[nn.Parameter]]:
        """Parameters by kind ("queries", "q", "k", "v", "o", "beta", "scale").

        Each kind needs a learning rate of its own: Adam moves the output of a D x D map by up to
        about lr * |r|_1, hundreds of times as far as that of a vector.
        """
        groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in TRAINABLE}
        for name, parameter in self.named_parameters():
            if name.startswith("w_"):
                groups[name[2:]].append(parameter)
            elif name.startswith("prefix_"):
                groups["o"].append(parameter)
            elif name == "log_beta":
                groups["beta"].append(parameter)
            elif name == "scale":
                groups["scale"].append(parameter)
            else:
                groups["queries"].append(parameter)
        return {
            kind: parameters
            for kind, parameters in groups.items()
            if parameters and (not trained_only or parameters[0].requires_grad)
        }

    @torch.no_grad()
    def start_prefix_at(self, block: Any) -> None:
        """Let the prefix maps start at the block's own norm1 and K/V projection.

        Then a prefix equals the inserted token at the start: K = W_k (gamma * n + delta) + b_k with
        the block's own gamma and delta folded into the map.
        """
        weight_k, bias_k, weight_v, bias_v = form_of(block).maps(block.attn)
        # A block with its norms behind has none before the projection.
        norm = block.norm1 if form_of(block).enter_normed else nn.Identity()
        gamma, delta = getattr(norm, "weight", None), getattr(norm, "bias", None)
        self._prefix_eps = float(getattr(norm, "eps", self._prefix_eps))
        for linear, weight, bias in (
            (self.prefix_keys, weight_k, bias_k),
            (self.prefix_values, weight_v, bias_v),
        ):
            linear.weight.copy_(weight if gamma is None else weight * gamma)
            linear.bias.zero_() if delta is None else linear.bias.copy_(weight @ delta)
            if bias is not None:
                linear.bias.add_(bias)

    _prefix_eps: float = 1e-6

    @torch.no_grad()
    def start_at(self, tokens: Tensor) -> None:
        """Let a control's prompts start at the mean of tokens [B, N, D], in units of their spread.

        A static prompt that starts away from where tokens lie spoils the features before it has
        learned anything, which would make the control weaker than it is.
        """
        self.centre.copy_(tokens.mean((0, 1)))
        self.unit.copy_(tokens.std(-1).mean())

    def _split(self, x: Tensor) -> Tensor:
        """[..., T, D] -> [..., H, T, D / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _queries_and_keys(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [1, H, L, d'] and keys [B, H or 1, N, d'] with the paper's inner products.

        W_k is absorbed into the queries, <W_q s, W_k x> = <W_k^T W_q s, x>: no D x D product per
        token is needed for the keys.
        """
        queries = self.queries if self.w_q is None else self.queries @ self.w_q.T
        if self.w_k is None:
            return self._split(queries).unsqueeze(0), self._split(normed)
        per_head = self.w_k.unflatten(0, (self.heads, -1))  # [H, d, D]
        return (self._split(queries) @ per_head).unsqueeze(0), normed.unsqueeze(1)

    def _tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.stop_gradient:
            tokens = tokens.detach()
        normed = self.norm(tokens)
        return normed, tokens if self.values == "raw" else normed

    def patterns(self, tokens: Tensor) -> Tensor:
        """The retrieved patterns before W_o: tokens [B, N, D] -> [B, L, D]."""
        normed, values = self._tokens(tokens)
        batch = tokens.shape[0]
        with self._normed_again(normed, tokens):
            if self.w_v is not None:
                values = values @ self.w_v.T
            queries, keys = self._queries_and_keys(normed)
            found = retrieve(
                queries.expand(batch, -1, -1, -1),
                keys.expand(-1, self.heads, -1, -1),
                self._split(values),
                self.beta,
                log_prior=self.log_prior,
            )
        return found.transpose(1, 2).flatten(2)

    def _normed_again(self, normed: Tensor, tokens: Tensor) -> AbstractContextManager[Any]:
        """Within it, the backward pass keeps no layer-normed tokens: it norms the tokens again.

        The block keeps the tokens themselves anyway. The gradients are the same to the last bit.
        """
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if not torch.is_grad_enabled() or transformed or torch.compiler.is_compiling():
            return nullcontext()  # such as torch.func.grad: it takes no hooks
        where, entered = normed.untyped_storage().data_ptr(), tokens.detach()
        dtype = normed.dtype  # autocast's, which is off in the backward pass

        def pack(kept: Tensor) -> Any:
            if kept.untyped_storage().data_ptr() != where:
                return kept
            return kept.size(), kept.stride(), kept.storage_offset()

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            with torch.no_grad():
                return self.norm(entered.to(dtype)).as_strided(*packed)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def forward(self, tokens: Tensor) -> Tensor:
        """Prompts P: tokens [B, N, D] -> [B, L, D] ([1, L, D] for the static control)."""
        if self.source == "tokens":
            found = self.patterns(tokens)
        elif self.source == "mean":
            _, values = self._tokens(tokens)
            if self.w_v is not None:
                values = values @ self.w_v.T
            found = values.mean(1, keepdim=True) + self.unit * self.queries
        else:
            found = (self.centre + self.unit * self.queries).unsqueeze(0)
        if self.w_o is not None:
            found = found @ self.w_o.T
        if "scale" in self.trainable:
            found = found * self.scale
        return found

    def prompt(self, tokens: Tensor) -> Prompt:
        """The prompts in the form in which the block takes them."""
        found = self(tokens)
        if self.insert == "token":
            return TokenPrompt(found)
        found = F.layer_norm(found, (self.dim,), eps=self._prefix_eps)
        return PrefixPrompt(self.prefix_keys(found), self.prefix_values(found))

    @torch.no_grad()
    def diagnose(self, tokens: Tensor) -> RoutingDiagnostics:
        """Association, entropy and free energy of the retrieval from tokens [B, N, D].

        :raises ValueError: for a control that retrieves nothing.
        """
        if self.source != "tokens":
            raise ValueError(f"A routing layer with source={self.source!r} retrieves nothing.")
        normed, _ = self._tokens(tokens)
        queries, keys = self._queries_and_keys(normed)
        inner = queries @ keys.transpose(-2, -1)
        p = association(inner, self.beta, self.log_prior)
        return RoutingDiagnostics(
            association=p,
            entropy=-torch.special.xlogy(p, p).sum(-1),
            free_energy=minimum_free_energy(inner, self.beta, self.log_prior),
        )

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return (
            f"dim={self.dim}, num_prompts={self.num_prompts}, heads={self.heads}, "
            f"insert={self.insert!r}, source={self.source!r}, trainable={self.trainable}"
        )


def _check_control(source: str, trainable: Collection[str], log_prior: Tensor | None) -> None:
    """Check what is asked of a control, which has less to train and retrieves nothing."""
    if source == "tokens":
        return
    if {"q", "k", "beta"} & set(trainable):
        raise ValueError(f"source={source!r} has no q, k or beta to train, but got {trainable!r}.")
    if source == "static" and "v" in trainable:
        raise ValueError(f"source='static' has no v to train, but got {trainable!r}.")
    if log_prior is not None:
        raise ValueError(f"source={source!r} retrieves nothing that log_prior could guide.")
