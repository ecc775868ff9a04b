import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_rwf.models.blockwise import TokenPrompt, block_forward
from avalanche_rwf.routing.layer import TRAINABLE, RoutingLayer

D, N, B = 32, 17, 5


@pytest.fixture
def tokens():
    torch.manual_seed(2)
    return 3 * torch.randn(B, N, D) + torch.randn(D)


def randomise(layer, seed=0):
    g = torch.Generator().manual_seed(seed)
    for p in layer.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g)
    return layer


def slow(layer, tokens):
    """The equations of the module's docstring with loops over samples, heads and slots."""
    matrix = {n: getattr(layer, f"w_{n}") for n in "qkvo"}
    eye = torch.eye(layer.dim)
    wq, wk, wv, wo = (eye if matrix[n] is None else matrix[n] for n in "qkvo")
    H, d = layer.heads, layer.dim // layer.heads
    beta = float(layer.beta)
    out = torch.zeros(len(tokens), layer.num_prompts, layer.dim)
    for b, x in enumerate(tokens):
        spread = (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        normed = (x - x.mean(1, keepdim=True)) / spread
        values = x if layer.values == "raw" else normed
        for slot in range(layer.num_prompts):
            parts = []
            for h in range(H):
                part = slice(h * d, (h + 1) * d)
                q = (wq @ layer.queries[slot])[part]
                weights = torch.stack([beta * (q @ (wk @ n)[part]) for n in normed]).softmax(0)
                parts.append(sum(w * (wv @ v)[part] for w, v in zip(weights, values, strict=True)))
            out[b, slot] = wo @ torch.cat(parts)
    return out * (layer.scale if "scale" in layer.trainable else 1.0)


@pytest.mark.parametrize("values", ["raw", "normed"])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("trainable", [("queries",), ("queries", "o"), TRAINABLE])
def test_prompts_are_those_of_the_equations(tokens, heads, trainable, values):
    torch.manual_seed(0)
    layer = randomise(RoutingLayer(D, 4, heads=heads, trainable=trainable, values=values))
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), slow(layer, tokens), rtol=1e-4, atol=1e-4)


def test_no_sample_sees_another(tokens):
    layer = randomise(RoutingLayer(D, 4, heads=4, trainable=TRAINABLE))
    together = layer(tokens)
    for b in range(B):
        torch.testing.assert_close(layer(tokens[b : b + 1])[0], together[b], rtol=0, atol=1e-5)


def test_prompts_differ_at_the_start_and_attention_is_informative(tokens):
    torch.manual_seed(0)
    layer = RoutingLayer(D, 8)
    entropy = layer.diagnose(tokens).entropy / math.log(N)
    assert entropy.mean() < 0.93
    usual = RoutingLayer(D, 8, query_std=0.02)
    assert (usual.diagnose(tokens).entropy / math.log(N)).mean() > 0.99

    def similarity(rwf):
        found = F.normalize(rwf(tokens) - tokens.mean(1, keepdim=True), dim=-1)
        return (found @ found.transpose(1, 2))[:, ~torch.eye(8, dtype=torch.bool)].abs().mean()

    # Seen from the mean token the slots point in directions of their own.
    assert similarity(layer) < 0.5


@pytest.mark.parametrize("kind", TRAINABLE)
def test_only_what_is_trained_requires_a_gradient_and_gets_one(tokens, kind):
    torch.manual_seed(0)
    layer = RoutingLayer(D, 4, heads=2, trainable=(kind,), projections=("q", "k", "v", "o"))
    (layer(tokens) * torch.randn(B, 4, D)).sum().backward()
    for name, p in layer.named_parameters():
        trained = any(p is q for q in layer.parameter_groups().get(kind, []))
        assert p.requires_grad is trained, name
        assert (p.grad is not None and bool((p.grad != 0).any())) is trained, name
    assert list(layer.parameter_groups()) == [kind]


def test_all_kinds_together_get_gradients(tokens):
    layer = randomise(RoutingLayer(D, 4, heads=2, trainable=TRAINABLE, affine=True))
    (layer(tokens) * torch.randn(B, 4, D)).sum().backward()
    assert set(layer.parameter_groups()) == set(TRAINABLE)
    assert all(bool((p.grad != 0).any()) for p in layer.parameters())


def test_stop_gradient_cuts_the_tokens_only(tokens):
    for stop in (False, True):
        layer = RoutingLayer(D, 4, stop_gradient=stop)
        x = tokens.clone().requires_grad_()
        layer(x).square().sum().backward()
        assert (x.grad is None) is stop
        assert layer.queries.grad is not None


def test_diagnostics_are_those_of_the_retrieval_that_is_used(tokens):
    layer = randomise(RoutingLayer(D, 3, heads=2, trainable=("queries", "q", "k")))
    d = layer.diagnose(tokens)
    assert d.association.shape == (B, 2, 3, N)
    torch.testing.assert_close(d.association.sum(-1), torch.ones(B, 2, 3))
    values = tokens.unflatten(-1, (2, -1)).transpose(1, 2)
    found = (d.association @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, layer.patterns(tokens), rtol=1e-4, atol=1e-4)
    assert (d.entropy >= 0).all() and (d.entropy <= math.log(N) + 1e-5).all()
    beta = float(layer.beta)
    assert torch.isfinite(d.free_energy).all()
    # F(p*) = -<p*, s> - entropy / beta
    normed = layer.norm(tokens)
    q, k = layer._queries_and_keys(normed)
    s = q @ k.transpose(-2, -1)
    expected = -(d.association * s).sum(-1) - d.entropy / beta
    torch.testing.assert_close(d.free_energy, expected, rtol=1e-4, atol=1e-3)


def test_prefix_starts_as_the_inserted_token_itself(tools, tokens):
    vit = tools.vit(embed_dim=D)
    torch.manual_seed(0)
    token = RoutingLayer(D, 4, insert="token")
    prefix = RoutingLayer(D, 4, insert="prefix")
    prefix.queries.data.copy_(token.queries)
    block = vit.blocks[1]
    prefix.start_prefix_at(block)
    with torch.no_grad():
        a = block_forward(block, tokens, token.prompt(tokens))
        b = block_forward(block, tokens, prefix.prompt(tokens))
        plain = block(tokens)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert (a - plain).abs().max() > 1e-3


def test_controls_have_the_same_parameters_and_do_what_they_say(tokens):
    layers = {s: RoutingLayer(D, 4, source=s) for s in ("tokens", "mean", "static")}
    counts = {sum(p.numel() for p in layer.parameters()) for layer in layers.values()}
    assert len(counts) == 1
    mean = layers["mean"]
    mean.queries.data.zero_()
    torch.testing.assert_close(mean(tokens), tokens.mean(1, keepdim=True).expand(-1, 4, -1))
    static = layers["static"]
    assert torch.equal(static(tokens), static(torch.randn_like(tokens)))
    for source in ("mean", "static"):
        layers[source](tokens).square().sum().backward()
        assert all(bool((p.grad != 0).any()) for p in layers[source].parameters())
        with pytest.raises(ValueError, match="retrieves nothing"):
            layers[source].diagnose(tokens)
    assert isinstance(static.prompt(tokens), TokenPrompt)
    static.start_at(tokens)
    static.queries.data.zero_()
    torch.testing.assert_close(static(tokens)[0, 0], tokens.mean((0, 1)))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"heads": 5}, "heads must divide dim=32"),
        ({"source": "mean", "trainable": ("q",)}, "has no q, k or beta to train"),
        ({"source": "static", "trainable": ("v",)}, "has no v to train"),
        ({"source": "mean", "log_prior": torch.zeros(4)}, "nothing that log_prior could guide"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        RoutingLayer(**{"dim": D, **arguments})


def gradients(layer, tokens, twice=False):
    """What the prompts' squares give tokens and parameters, and how many bytes were kept for it."""
    x = tokens.clone().requires_grad_()
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    # PyTorch's own choice has no second derivative.
    with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext(), profile:
        out = layer(x)
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(out.square().sum(), wanted, create_graph=twice)
    if twice:
        found += torch.autograd.grad(sum(g.square().sum() for g in found), wanted)
    return found, kept


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"values": "normed", "affine": True},
        {"heads": 4, "trainable": TRAINABLE, "values": "normed"},
        {"trainable": ("queries", "k"), "projections": ("v",)},
    ],
)
def test_tokens_normed_again_give_the_same_gradients_to_the_last_bit(
    tokens, options, twice, monkeypatch
):
    torch.manual_seed(0)
    layer = randomise(RoutingLayer(D, 4, **options))
    found, kept = gradients(layer, tokens, twice)
    monkeypatch.setattr(layer, "_normed_again", lambda *_: nullcontext())
    expected, more = gradients(layer, tokens, twice)
    assert twice or more - kept == 4 * B * N * D  # the layer-normed tokens
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and bool(a.any())


def test_gradients_per_sample_by_torch_func_are_those_of_autograd(tokens):
    layer = randomise(RoutingLayer(D, 4))
    per_sample = torch.vmap(torch.func.grad(lambda x: layer(x[None]).square().sum()))(tokens)
    (found, *_), _ = gradients(layer, tokens)
    torch.testing.assert_close(per_sample, found)
