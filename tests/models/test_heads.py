import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import oas

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.heads import (
    HEADS,
    CosineHead,
    Head,
    LinearHead,
    StreamingMoments,
    closed_form,
    create_head,
    held,
    list_heads,
)

from ..wrong_values import NO_NAME

C, W, NUM = 4, 12, 200


def data(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(C).repeat(NUM // C)
    mix = torch.randn(W, W, generator=g, dtype=dtype)
    means = 2 * torch.randn(C, W, generator=g, dtype=dtype)
    x = means[y] + torch.randn(NUM, W, generator=g, dtype=dtype) @ mix + 3
    order = torch.randperm(NUM, generator=g)
    return x[order], y[order]


def feed(head, x, y, batch):
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        head.observe(a, b)
    return head


NAMES = list_heads()
CLOSED = [name for name in NAMES if HEADS[name].closed_form]


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_do_not_depend_on_order_or_batches(name):
    x, y = data(dtype=torch.float64)
    order = torch.argsort(y, stable=True)  # class after class: the hardest stream
    torch.manual_seed(0)
    a, b = create_head(name, W, C), create_head(name, W, C)
    b.load_state_dict(a.state_dict())  # random projections are part of a head's state
    feed(a, x, y, 16)
    feed(b, x[order], y[order], 7)
    (wa, ba), (wb, bb) = a.solve(), b.solve()
    torch.testing.assert_close(wa, wb, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ba, bb, rtol=1e-6, atol=1e-6)


def test_ridge_on_random_projections_against_a_direct_solve_on_all_data():
    x, y = data(dtype=torch.float64)
    for projections in (300, 40):  # wider and narrower than the number of samples
        head = feed(create_head("rp-ridge", W, C, penalty=0.1, projections=projections), x, y, 16)
        h = np.maximum(x.numpy() @ head.random.double().numpy(), 0)
        gram = h.T @ h
        gram += 0.1 * np.trace(gram) / projections * np.eye(projections)
        expected = np.linalg.solve(gram, h.T @ np.eye(C)[y.numpy()])
        torch.testing.assert_close(
            head.solve()[0], torch.from_numpy(expected.T), rtol=1e-6, atol=1e-6
        )


def test_slda_against_a_direct_solve_on_all_data():
    x, y = data(dtype=torch.float64)
    head = feed(create_head("slda", W, C, shrinkage=0.1), x, y, 16)
    X, Y = x.numpy(), y.numpy()
    means = np.stack([X[c == Y].mean(0) for c in range(C)])
    within = (X - means[Y]).T @ (X - means[Y]) / NUM
    shrunk = 0.9 * within + 0.1 * np.trace(within) / W * np.eye(W)
    precision = np.linalg.inv(shrunk)
    scores = X @ precision @ means.T - 0.5 * np.einsum("cf,fg,cg->c", means, precision, means)
    got = head(x).double()
    expected = torch.from_numpy(scores)
    # The same up to a constant per image, which changes no prediction.
    torch.testing.assert_close(
        got - got.mean(1, keepdim=True),
        expected - expected.mean(1, keepdim=True),
        rtol=1e-5,
        atol=1e-4,
    )


def test_ridge_against_a_direct_solve_on_all_data():
    x, y = data(dtype=torch.float64)
    head = feed(create_head("ridge", W, C, penalty=0.05), x, y, 16)
    X, Q = x.numpy(), np.eye(C)[y.numpy()]
    G = X.T @ X
    expected = np.linalg.solve(G + 0.05 * np.trace(G) / W * np.eye(W), X.T @ Q).T
    torch.testing.assert_close(head.solve()[0], torch.from_numpy(expected), rtol=1e-6, atol=1e-8)
    projected = feed(create_head("ridge", W, C, projections=64), x, y, 16)
    assert projected(x).shape == (NUM, C)
    assert (projected(x).argmax(1) == y).float().mean() > 0.8


def test_ncm_is_the_nearest_mean_by_cosine():
    x, y = data()
    head = feed(create_head("ncm", W, C), x, y, 16)
    means = torch.stack([x[y == c].mean(0) for c in range(C)])
    expected = F.normalize(x, dim=1) @ F.normalize(means, dim=1).T
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CLOSED)
def test_a_class_without_a_sample_cannot_win(name):
    x, y = data()
    keep = y != 2
    head = feed(create_head(name, W, C), x[keep] - 50, y[keep], 16)
    assert (head(x - 50)[:, 2] == float("-inf")).all()
    assert not (head(x - 50).argmax(1) == 2).any()


@pytest.mark.parametrize("name", CLOSED)
def test_asking_for_an_answer_changes_no_bit(name):
    x, y = data()
    a, b = create_head(name, W, C), create_head(name, W, C)
    b.load_state_dict(a.state_dict())
    for i in range(0, NUM, 16):
        a.observe(x[i : i + 16], y[i : i + 16])
        b.observe(x[i : i + 16], y[i : i + 16])
        b(x[:3])
        b.in_training(x[:3])
    for (n, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), n
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_head_learns_saves_copies_and_grows(name):
    x, y = data()
    torch.manual_seed(0)
    head = create_head(name, W, 3)
    keep = y < 3
    optimizer = None if head.closed_form else torch.optim.Adam(head.parameters(), lr=0.05)

    def train(x, y):
        for a, b in zip(x.split(16), y.split(16), strict=True):
            head.observe(a, b)
            if optimizer is not None:
                optimizer.zero_grad()
                F.cross_entropy(head(a), b).backward()
                optimizer.step()

    train(x[keep], y[keep])
    before = head(x).detach()
    assert (before[keep].argmax(1) == y[keep]).float().mean() > 0.5
    twin = create_head(name, W, 3)
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(x), before)
    assert torch.equal(copy.deepcopy(head)(x), before)
    head.grow(C)
    assert head.num_classes == C and head(x).shape == (NUM, C)
    torch.testing.assert_close(head(x)[:, :3], before)
    head.grow(2)
    assert head.num_classes == C
    optimizer = None if head.closed_form else torch.optim.Adam(head.parameters(), lr=0.05)
    train(x, y)
    assert (head(x).argmax(1) == y).float().mean() > 0.45


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_can_be_moved_between_batches(name):
    x, y = data()
    a, b = create_head(name, W, C), create_head(name, W, C)
    for head in (a, b):
        feed(head, x[:40], y[:40], 8)
        head.in_training(x[:3])
    a.to("meta").to_empty(device="cpu")  # every tensor is replaced
    a.load_state_dict(b.state_dict())
    b.to(torch.device("cpu"))
    for head in (a, b):
        feed(head, x[40:], y[40:], 8)
    assert torch.equal(a(x), b(x))
    assert torch.equal(a.in_training(x), b.in_training(x))


def test_whitening_is_that_of_the_stream_and_new_rows_are_prototypes():
    x, y = data()
    head = create_head("white", W, C, shrinkage=0.1, refresh=1.0)
    feed(head, x, y, 20)
    X = x.double()
    mean = X.mean(0)
    cov = (X - mean).T @ (X - mean) / NUM
    shrunk = 0.9 * cov + 0.1 * cov.diagonal().mean() * torch.eye(W, dtype=torch.float64)
    white = head.whiten(x).double()
    # T (f - mu) has the covariance T cov T; with T = shrunk^(-1/2) that is solved back here.
    transform = head.transform.double()
    torch.testing.assert_close(
        transform @ shrunk @ transform, torch.eye(W, dtype=torch.float64), rtol=1e-3, atol=1e-3
    )
    zeros = torch.zeros(W, dtype=torch.float64)
    torch.testing.assert_close(white.mean(0), zeros, rtol=0, atol=1e-4)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.full((C,), 0.4), rtol=1e-4, atol=1e-4)
    # Without one gradient step the imprinted rows classify well above chance.
    assert (head(x).argmax(1) == y).float().mean() > 0.6


@pytest.mark.parametrize("n", [5, 8, 9, 60])
def test_whitening_is_the_same_from_the_samples_and_from_the_features(n):
    """Below 0.7 F samples the eigenvectors come from the samples' products."""
    x, y = data(dtype=torch.float64)
    head = create_head("white", W, C, refresh=1.0).double()
    feed(head, x[:n], y[:n], 3)
    assert (len(head.gram) > 0) is (n > 0.7 * W)
    mean = x[:n].mean(0)
    cov = (x[:n] - mean).T @ (x[:n] - mean) / n
    shrunk = 0.9 * cov + 0.1 * cov.diagonal().mean() * torch.eye(W, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(shrunk)
    torch.testing.assert_close(
        head.transform, (vectors * values.rsqrt()) @ vectors.T, rtol=1e-9, atol=1e-9
    )
    twin = create_head("white", W, C, refresh=1.0).double()
    twin.load_state_dict(head.state_dict())
    for h in (head, twin):
        feed(h, x[n : n + 20], y[n : n + 20], 4)
    assert torch.equal(head(x), twin(x))


def test_white_head_carries_rows_over_when_the_whitening_changes():
    torch.manual_seed(0)
    x, y = data()
    head = create_head("white", W, C)
    head.observe(x[:40], y[:40])
    prototype = F.normalize(head.weight[0].double(), dim=0) * W**0.5
    raw = torch.linalg.solve(head.transform.double(), prototype) + head.mean.double()
    head.observe(x[40:], y[40:])
    moved = F.normalize((raw - head.mean.double()) @ head.transform.double(), dim=0)
    torch.testing.assert_close(
        F.normalize(head.weight[0].double(), dim=0), moved, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("n", [5, 7, 11, 12, 13, 200])
@pytest.mark.parametrize("kind", ["lda", "ridge", "balanced"])
def test_moments_solve_the_same_before_and_after_folding(n, kind):
    """Fewer samples than features are solved in the samples' space, more in the features'."""
    x, y = data(dtype=torch.float64)
    x, y = x[:n], y[:n]
    moments = StreamingMoments(W, C)
    for i in range(0, n, 5):
        moments.add(x[i : i + 5], y[i : i + 5])
    torch.testing.assert_close(moments.second_moment(), x.T @ x)
    seen = y.unique()
    means = torch.stack([x[y == c].mean(0) for c in seen])
    torch.testing.assert_close(moments.means()[seen], means)
    assert moments.samples == n and moments.by_samples is (n < W)
    assert (len(moments.gram) > 0) is (n > W / 4)
    place = torch.searchsorted(seen, y)
    centred, eye = x - means[place], torch.eye(W, dtype=torch.float64)
    if kind == "lda":
        S, right = 0.9 * centred.T @ centred / n, means - means.mean(0)
        A = S + 0.1 / 0.9 * S.trace() / W * eye
    else:
        G, right = x.T @ x, torch.stack([x[y == c].sum(0) for c in seen])
        if kind == "balanced":  # each class has the same weight; they share their covariance
            G, right = len(seen) / n * centred.T @ centred + means.T @ means, means
        A = G + 0.1 * G.trace() / W * eye

    def solved(of):
        if kind == "lda":
            return of.lda(0.1)[0][seen]
        return of.ridge(0.1, balance=kind == "balanced")[seen]

    got = solved(moments)
    expected = torch.linalg.solve(A, right.T).T
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10 * expected.abs().max())
    twin = StreamingMoments(W, C)
    twin.load_state_dict(moments.state_dict())
    assert torch.equal(solved(twin), got)
    twin.add(x[:3], y[:3])
    moments.add(x[:3], y[:3])
    assert torch.equal(twin.second_moment(), moments.second_moment())


@pytest.mark.parametrize("n", [9, 300])
def test_shrinkage_that_is_found_is_that_of_scikit_learn(n):
    x, y = data(dtype=torch.float64)
    x, y = x.repeat(2, 1)[:n], y.repeat(2)[:n]
    means = torch.stack([x[y == c].mean(0) for c in range(C)])
    centred = (x - means[y]).numpy()
    share = oas(centred, assume_centered=True)[1]
    S = centred.T @ centred / n
    t, t2 = np.trace(S), np.trace(S @ S)
    other = ((n - 2) / n * t2 + t**2) / ((n + 2) * (t2 - t**2 / W))
    for rule, expected in (("oas", share), ("ledoit-wolf", min(other, 1))):
        found = feed(create_head("slda", W, C, shrinkage=rule), x, y, 16)
        fixed = feed(create_head("slda", W, C, shrinkage=float(expected)), x, y, 16)
        torch.testing.assert_close(found.solve()[0], fixed.solve()[0], rtol=1e-7, atol=1e-9)


def test_no_batch_adds_twice_its_rows_to_the_second_moment():
    """What a batch costs does not jump where the features' space becomes the smaller one."""
    moments, folded = StreamingMoments(64, C), [0]
    x = torch.randn(160, 64)
    for n in range(4, 161, 4):
        moments.add(x[n - 4 : n], torch.zeros(4, dtype=torch.long))
        done = moments.samples if not moments.by_samples else moments._folded
        folded.append(done)
        seen = x[:n].double()
        if n % 8:  # asking puts the batches that wait into one tensor
            torch.testing.assert_close(moments.second_moment(), seen.T @ seen)
            torch.testing.assert_close(moments.class_sums()[0], seen.sum(0))
        if n % 12 == 0:
            moments = copy.deepcopy(moments)
    assert max(b - a for a, b in itertools.pairwise(folded)) <= 6
    assert folded[-1] == 160 and not len(moments.rows)


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("kind", ["lda", "ridge", "balanced"])
def test_a_solution_costs_what_the_classes_that_have_come_need(n, kind, monkeypatch):
    """Neither a column for a class without a sample nor a copy of a large matrix."""
    solved, in_place = [], closed_form._solve_

    def solve(matrix, right):
        expected = torch.linalg.solve(matrix, right.T).T
        found = in_place(matrix, right)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        assert found.data_ptr() == right.data_ptr()
        assert not matrix.mT.triu(1).any()  # the factor lies where the matrix was
        solved.append(len(right))
        return found

    x, y = data(dtype=torch.float64)
    moments = StreamingMoments(W, 100)
    moments.add(x[:n], y[:n] % 2)
    monkeypatch.setattr(closed_form, "_solve_", solve)
    weights = moments.lda(0.1)[0] if kind == "lda" else moments.ridge(0.1, kind == "balanced")
    assert solved == [2] and weights.shape == (100, W) and not weights[2:].any()


def test_files_from_before_rows_were_folded_one_by_one_go_on():
    """Earlier versions kept sums from the start and the last rows until F more had come."""
    x, y = data(dtype=torch.float64)
    for n in (9, 31):
        new, older = StreamingMoments(W, C), StreamingMoments(W, C)
        new.add(x[:n], y[:n])
        kept = n % W if n >= W else n
        state = {
            "counts": new.counts, "sums": new.class_sums(), "rows": x[n - kept : n],
            "row_targets": y[n - kept : n],
            "gram": x[: n - kept].T @ x[: n - kept] if n >= W else torch.zeros(0, W),
        }  # fmt: skip
        older.load_state_dict(state)
        for moments in (new, older):
            moments.add(x[n : n + 4], y[n : n + 4])
        torch.testing.assert_close(older.second_moment(), new.second_moment())
        torch.testing.assert_close(older.means(), new.means())
    torch.testing.assert_close(older.lda(0.1)[0], new.lda(0.1)[0])


def test_fewer_samples_than_classes_are_solved_in_the_samples_space():
    x, y = data(dtype=torch.float64)
    few, many = (create_head("ridge", W, c) for c in (100, C))
    for head in (few, many):
        feed(head, x[:10], y[:10], 4)
    assert few.solve()[0].shape == (100, 10) and many.solve()[0].shape == (C, W)
    torch.testing.assert_close(few(x)[:, :C], many(x))


def test_a_head_that_there_is_not_is_named():
    for value in NO_NAME:
        with pytest.raises(UsageError, match=r"^head must be one of linear, .*slda, ridge, "):
            create_head(value, 8, 3)


class Scaled(CosineHead):
    """A user's head: the forward alone is written, over a head that has a linear form."""

    def forward(self, features):
        return 3 * super().forward(features).tanh()


class Alone(Head):
    """A user's head with nothing but a forward, not linear in anything."""

    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes)
        self.hidden = torch.nn.Linear(in_features, 2 * num_classes)

    def forward(self, features):
        return self.hidden(features).unflatten(1, (2, -1)).amax(1)


class Doubled(Head):
    """A user's head with nothing but a linear form."""

    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes)
        self.rows = torch.nn.Parameter(torch.randn(num_classes, in_features))

    def linear_form(self, features):
        return 2 * features, self.rows, None


OWN = {"forward over cosine": Scaled, "forward alone": Alone, "linear form alone": Doubled}
EVERY = {**HEADS, **OWN}
NOT_LINEAR = ("forward over cosine", "forward alone")


@pytest.mark.parametrize("name", EVERY)
def test_a_head_is_one_map_however_it_is_asked(name):
    """Held fixed, in training and by its linear form a head is the function that its forward is."""
    x, y = data()
    head = feed(EVERY[name](W, C), x, y, 16)
    features = x.clone().requires_grad_()
    expected = head(features)
    with held(head):
        fixed = head(features)
    assert torch.equal(fixed, expected)
    assert torch.equal(head.in_training(x), expected)
    (of_held,) = torch.autograd.grad(fixed.square().sum(), features, retain_graph=True)
    (of_head,) = torch.autograd.grad(expected.square().sum(), features, retain_graph=True)
    assert torch.equal(of_held, of_head)
    fixed.sum().backward()
    assert all(p.grad is None and p.requires_grad for p in head.parameters())
    assert head.is_linear() is (name not in (*NOT_LINEAR, "fecam"))
    if head.is_linear():
        inputs, weight, bias = head.linear_form(x)
        torch.testing.assert_close(F.linear(inputs, weight, bias).float(), expected)


def test_of_a_forward_and_a_linear_form_the_one_written_last_counts():
    class Again(Scaled):
        def linear_form(self, features):
            return features, self.weight, None

    head, x = Again(W, C), data()[0]
    assert torch.equal(head(x), F.linear(x, head.weight)) and head.is_linear()

    class Tanh:  # a mixin counts as what mixes it in
        def forward(self, features):
            return super().forward(features).tanh()

    class Mixed(Tanh, LinearHead):
        pass

    assert not Mixed(W, C).is_linear() and bool((Mixed(W, C)(100 * x).abs() <= 1).all())

    class Later(Mixed):
        def linear_form(self, features):
            return super().linear_form(features)

    assert Later.is_linear() and bool((Later(W, C)(1e4 * x).abs() > 1).any())


def test_a_head_that_has_no_map_is_refused_where_it_is_made():
    class Empty(Head):
        pass

    with pytest.raises(UsageError, match="Empty must have a forward or a linear_form"):
        Empty(W, C)


@pytest.mark.parametrize("name", ["linear", "cosine", "white"])
def test_a_row_that_comes_later_depends_on_the_head_and_its_class_alone(name):
    """In one step or in several, whatever draws in between, and from a saved state."""

    def head():
        torch.manual_seed(7)
        return create_head(name, W, 2)

    at_once, in_steps, saved = head(), head(), create_head(name, W, 2)
    before = torch.get_rng_state()
    at_once.grow(10)
    assert torch.equal(torch.get_rng_state(), before)
    for n in (5, 6, 10):
        torch.rand(n)
        in_steps.grow(n)
    saved.load_state_dict(head().state_dict())
    saved.grow(10)
    assert torch.equal(at_once.weight, in_steps.weight)
    assert torch.equal(at_once.weight, saved.weight)
    assert len(at_once.weight.unique(dim=0)) == 10  # no two rows alike
    assert 0.01 < float(at_once.weight[2:].std()) < 0.04
    older = head().state_dict()
    del older["seed"]  # files of earlier versions
    create_head(name, W, 2).load_state_dict(older)


def without_spread(kind, n):
    """Features [n, W] and classes of which some or all have no spread."""
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(n, W, generator=g), torch.randperm(n, generator=g)
    return {
        "one image a class": lambda: (x, y),
        "two equal images a class": lambda: (x[y // 2], y // 2),
        "equal images": lambda: (x[:1].expand(n, W), y % 3),
        "constant features": lambda: (torch.ones(n, W), y % 3),
        "features that are zero": lambda: (torch.zeros(n, W), y % 3),
        "features in copies": lambda: (x[:, :3].repeat(1, W // 3), y % 3),
        "one class": lambda: (x, torch.zeros_like(y)),
    }[kind]()


FLAT = ["one image a class", "two equal images a class", "equal images", "constant features",
        "features that are zero", "features in copies", "one class"]  # fmt: skip


@pytest.mark.parametrize("scale", [1e4, 1.0, 1e-4])
@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("name", [*CLOSED, "white"])
def test_classes_without_spread_are_no_error(name, kind, scale):
    """Fewer images than features, as many and more, with the extremes of the options."""
    extremes = {"slda": {"shrinkage": 1e-12}, "ridge": {"penalty": 1e-12}}
    for n in (1, 2, W - 1, W, W + 1, 40):
        x, y = without_spread(kind, n)
        for options in ({}, extremes.get(name, {})):
            head = feed(create_head(name, W, n, **options), scale * x, y, 5)
            logits = head(scale * x)
            assert torch.isfinite(logits[:, y.unique()]).all()
            predicted = logits.argmax(1)
            assert torch.isin(predicted, y.unique()).all() or name == "white"
            if name == "slda" and "class" in kind:  # distinct classes are told apart
                assert torch.equal(predicted, y)


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("name", ["slda", "ridge"])
def test_both_forms_of_the_solution_agree_where_classes_have_no_spread(name, kind, monkeypatch):
    """The samples' form (n < F) and the features' (taken at any n) to 1e-6 of the logits."""
    for n in (2, W - 1):
        for scale in (1e4, 1.0, 1e-4):
            x, y = without_spread(kind, n)
            a, b = (feed(create_head(name, W, n), scale * x, y, 5) for _ in range(2))
            in_samples = a(scale * x)[:, y.unique()]
            with monkeypatch.context() as patch:
                patch.setattr(StreamingMoments, "by_samples", False)
                in_features = b(scale * x)[:, y.unique()]
            size = max(float(in_samples.abs().max()), 1e-20)  # logits have no unit
            torch.testing.assert_close(in_features, in_samples, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("name", CLOSED)
def test_predictions_do_not_depend_on_the_scale_of_the_features(name):
    x, y = data()
    heads = {}
    for scale in (2.0**14, 1.0, 2.0**-14, 2.0**-40):
        torch.manual_seed(0)
        heads[scale] = feed(create_head(name, W, C), scale * x, y, 16)(scale * x).argmax(1)
    assert all(torch.equal(heads[1.0], predicted) for predicted in heads.values())
