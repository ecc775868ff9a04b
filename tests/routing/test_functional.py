import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_rwf.errors import UsageError
from avalanche_rwf.routing.functional import (
    association,
    free_energy,
    minimum_free_energy,
    retrieve,
    scores,
)

BETAS = [0.01, 0.3, 1.0, 7.0]


def problem(dtype=torch.float64, seed=0, L=3, N=9, d=5, dv=4):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, w, generator=g, dtype=dtype) for n, w in ((L, d), (N, d), (N, dv)))
    return q, k, v


def random_simplex(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    # Sharp and flat points alike: powers of uniform numbers, normalised.
    p = torch.rand(*shape, generator=g, dtype=torch.float64) ** 6
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("beta", BETAS)
def test_energy_at_the_retrieved_point_is_the_minimum_by_the_kl_identity(beta):
    q, k, _ = problem()
    s = scores(q, k)
    best = association(s, beta)
    minimum = minimum_free_energy(s, beta)
    torch.testing.assert_close(free_energy(best, s, beta), minimum, rtol=0, atol=1e-10)
    for seed in range(50):
        p = random_simplex(s.shape, seed)
        gap = free_energy(p, s, beta) - minimum
        assert (gap >= -1e-12).all()
        kl = (p * (p.log() - best.log())).sum(-1)
        torch.testing.assert_close(gap, kl / beta, rtol=1e-6, atol=1e-6)


def test_energy_is_finite_at_the_corners_of_the_simplex():
    q, k, _ = problem()
    s = scores(q, k)
    corner = F.one_hot(torch.tensor(4), s.shape[-1]).double().expand_as(s)
    torch.testing.assert_close(free_energy(corner, s, 2.0), -s[..., 4])


@pytest.mark.parametrize("beta", BETAS)
def test_descent_on_the_simplex_arrives_at_the_closed_form(beta):
    q, k, _ = problem()
    s = scores(q, k)
    logits = torch.zeros_like(s, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = beta * free_energy(logits.softmax(-1), s, beta).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(-1), association(s, beta), rtol=0, atol=1e-3)


def test_a_small_beta_gives_the_mean_and_a_large_one_the_best_value():
    q, k, v = problem()
    cold = retrieve(q, k, v, 1e-12)
    torch.testing.assert_close(cold, v.mean(-2, keepdim=True).expand_as(cold))
    best = (q @ k.transpose(-2, -1)).argmax(-1)
    hot = retrieve(q, k, v, 1e6)
    torch.testing.assert_close(hot, torch.stack([v[b][best[b]] for b in range(2)]))


@pytest.mark.parametrize("beta", BETAS)
def test_fused_and_explicit_retrieval_agree_with_a_loop(beta):
    q, k, v = problem()
    found, p = retrieve(q, k, v, beta, need_association=True)
    torch.testing.assert_close(retrieve(q, k, v, beta), found)
    for b in range(2):
        for i in range(3):
            weights = [math.exp(beta * float(q[b, i] @ k[b, n])) for n in range(9)]
            total = sum(weights)
            expected = sum(w / total * v[b, n] for n, w in enumerate(weights))
            torch.testing.assert_close(found[b, i], expected)
            torch.testing.assert_close(
                p[b, i], torch.tensor(weights, dtype=torch.float64) / total
            )


def test_order_of_tokens_does_not_matter():
    q, k, v = problem()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(retrieve(q, k[:, order], v[:, order], 0.7), retrieve(q, k, v, 0.7))


def test_bfloat16_stays_within_its_rounding():
    q, k, v = problem(L=10, N=26, d=64, dv=64)
    exact = retrieve(q, k, v, 1 / 8)
    rough = retrieve(q.bfloat16(), k.bfloat16(), v.bfloat16(), 1 / 8)
    # Inputs are rounded to 2^-9 relative; scores have a standard deviation of one.
    assert (rough.double() - exact).abs().max() < 8 * 2**-8 * v.abs().max()


def test_large_scores_do_not_overflow():
    q, k, v = problem(torch.float32)
    found, p = retrieve(1e18 * q, 1e18 * k, v, 1.0, need_association=True)
    assert torch.isfinite(found).all() and torch.isfinite(p).all()
    s = scores(1e15 * q, k)
    assert torch.isfinite(minimum_free_energy(s, 1.0)).all()
    assert torch.isfinite(free_energy(association(s, 1.0), s, 1.0)).all()


def test_learned_beta_gets_the_gradient_of_the_explicit_form():
    q, k, v = problem()
    gradients = []
    for need in (False, True):
        beta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        found = retrieve(q, k, v, beta, need_association=need)
        (found[0] if need else found).square().sum().backward()
        gradients.append(beta.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs() > 1e-3


def test_beta_per_head_is_used_per_head():
    q, k, _ = problem()
    s = scores(q, k)
    beta = torch.tensor([0.1, 5.0], dtype=torch.float64).reshape(2, 1, 1)
    for b in range(2):
        single = float(beta[b])
        torch.testing.assert_close(association(s, beta)[b], association(s[b], single))
        torch.testing.assert_close(
            minimum_free_energy(s, beta)[b], minimum_free_energy(s[b], single)
        )
        torch.testing.assert_close(
            free_energy(association(s, beta), s, beta)[b], minimum_free_energy(s[b], single)
        )


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_out_of_range_is_named(beta):
    q, k, v = problem()
    for call in (lambda: retrieve(q, k, v, beta), lambda: association(q, beta),
                 lambda: minimum_free_energy(q, beta), lambda: free_energy(q, q, beta)):
        with pytest.raises(ValueError, match="beta must be a positive finite number"):
            call()


def test_shapes_that_do_not_fit_are_named():
    q, k, v = problem()
    with pytest.raises(ValueError, match="queries of width 4 do not fit keys of width 5"):
        retrieve(q[..., :4], k, v, 1.0)
    with pytest.raises(ValueError, match="9 keys do not fit 8 values"):
        retrieve(q, k, v[:, :8], 1.0)


@pytest.mark.parametrize("beta", BETAS)
def test_a_prior_takes_the_place_of_the_uniform_one(beta):
    q, k, v = problem()
    s = scores(q, k)
    prior = random_simplex((9,), 7)
    prior[4] = 0  # left out
    a = prior.log()
    found, best = retrieve(q, k, v, beta, need_association=True, log_prior=a)
    torch.testing.assert_close(retrieve(q, k, v, beta, log_prior=a), found)
    weights = prior * (beta * s).exp()
    torch.testing.assert_close(best, weights / weights.sum(-1, keepdim=True))
    assert bool((best[..., 4] == 0).all())
    minimum = minimum_free_energy(s, beta, a)
    torch.testing.assert_close(free_energy(best, s, beta, a), minimum, rtol=0, atol=1e-10)
    p = random_simplex(s.shape, 1)
    assert bool(torch.isinf(free_energy(p, s, beta, a)).all())
    p[..., 4] = 0
    p = p / p.sum(-1, keepdim=True)
    gap = free_energy(p, s, beta, a) - minimum
    kl = torch.where(p > 0, p * (p.log() - best.log()), torch.zeros_like(p)).sum(-1)
    torch.testing.assert_close(gap, kl / beta, rtol=1e-6, atol=1e-6)


def test_without_scores_the_prior_alone_weighs_the_values():
    q, k, v = problem()
    prior = random_simplex((9,), 2)
    found = retrieve(q, k, v, 1e-12, log_prior=prior.log())
    torch.testing.assert_close(found, (prior @ v).unsqueeze(1).expand_as(found))
    # The prior is known up to a constant only, and a constant one changes nothing.
    torch.testing.assert_close(retrieve(q, k, v, 0.7, log_prior=torch.full((9,), 3.0).double()),
                               retrieve(q, k, v, 0.7))


@pytest.mark.parametrize("beta", [None, "x", True, [1.0]])
def test_beta_of_another_kind_is_named(beta):
    q, k, v = problem()
    for call in (lambda: retrieve(q, k, v, beta), lambda: association(q, beta)):
        with pytest.raises(UsageError, match="beta must be a positive finite number"):
            call()


@pytest.mark.parametrize("value", [None, "x", 3, 0.5, [0.0]])
def test_what_is_no_tensor_is_named(value):
    q, k, v = problem()
    calls = {
        "queries": lambda: retrieve(value, k, v, 1.0),
        "keys": lambda: retrieve(q, value, v, 1.0),
        "values": lambda: retrieve(q, k, value, 1.0),
        "scores": lambda: association(value, 1.0),
        "p": lambda: free_energy(value, q, 1.0),
    }
    for name, call in calls.items():
        with pytest.raises(UsageError, match=f"^{name} must be a tensor, not "):
            call()
    with pytest.raises(UsageError, match="values must be "):
        retrieve(q, k, v[..., 0, 0], 1.0) if v.dim() == 2 else retrieve(q, k, torch.ones(3), 1.0)


def test_a_prior_of_another_length_is_named():
    q, k, v = problem()
    tokens = k.shape[-2]
    prior = torch.zeros(tokens + 1)
    for call in (
        lambda: retrieve(q, k, v, 1.0, log_prior=prior),
        lambda: association(scores(q, k), 1.0, prior),
        lambda: free_energy(association(scores(q, k), 1.0), scores(q, k), 1.0, prior),
        lambda: minimum_free_energy(scores(q, k), 1.0, prior),
    ):
        with pytest.raises(UsageError, match=f"each of the {tokens} tokens, not {tokens + 1}"):
            call()
