"""``layup``, ``f-oal``, ``klda``, ``randumb`` and ``fecam`` against slow versions of their papers'
equations, from the images on: NumPy, loops, all samples at once."""

import numpy as np
import pytest
import torch

from avalanche_rwf.strategies.description import state_bytes
from avalanche_rwf.strategies.registry import create_strategy


def images_of(scenario):
    pairs = [e.dataset[i][:2] for e in scenario.train_stream for i in range(len(e.dataset))]
    return torch.stack([x for x, _ in pairs]), np.array([int(y) for _, y in pairs])


def trained(tools, scenario, name, **options):
    torch.manual_seed(0)
    s = create_strategy(
        name, backbone=tools.vit(init_values=None, depth=5), num_classes=6,
        loop={"train_mb_size": 8, "evaluator": tools.silent()}, **options,
    )  # fmt: skip
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[], shuffle=False)
    s.model.eval()
    return s


def class_tokens(vit, images):
    """The class token after each block, by hooks on timm's own forward; the last also normed."""
    found = []
    hooks = [b.register_forward_hook(lambda m, i, o: found.append(o[:, 0])) for b in vit.blocks]
    with torch.no_grad():
        normed = vit.forward_features(images)[:, 0]
    for hook in hooks:
        hook.remove()
    return [f.double().numpy() for f in found], normed.double().numpy()


def logits(s, images):
    with torch.no_grad():
        return s.model(images).double().numpy()


NEW = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def test_layup_is_ridge_on_the_last_class_tokens_with_the_penalty_of_least_gcv(tools, scenario):
    s = trained(tools, scenario, "layup", blocks="last 3")
    x, y = images_of(scenario)

    def features(images):
        each, normed = class_tokens(s.model.backbone, images)
        return np.concatenate([*each[2:4], normed], axis=1)

    f, targets, errors = features(x), np.eye(6)[y], {}
    gram, n = f.T @ f, len(f)
    for share in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        shift = share * np.trace(gram) / len(gram) * np.eye(len(gram))
        hat = f @ np.linalg.solve(gram + shift, f.T)
        left = np.square(targets - hat @ targets).sum() / n
        errors[share] = left / (1 - np.trace(hat) / n) ** 2
    best = min(errors, key=errors.get)
    shift = best * np.trace(gram) / len(gram) * np.eye(len(gram))
    expected = features(NEW) @ np.linalg.solve(gram + shift, f.T @ targets)
    np.testing.assert_allclose(s.model.head.errors(), list(errors.values()), rtol=1e-4)
    assert s.model.head.penalty == best
    np.testing.assert_allclose(logits(s, NEW), expected, rtol=1e-3, atol=1e-4)


def test_f_oal_is_recursive_least_squares_sample_by_sample(tools, scenario):
    s = trained(tools, scenario, "f-oal", projections=40, penalty=0.01)
    x, y = images_of(scenario)
    vit, random = s.model.backbone, s.model.head.random.double().numpy()

    def mapped(images):
        each, _ = class_tokens(vit, images)
        mean = torch.from_numpy(np.mean(each, 0)).float()
        with torch.no_grad():
            f = vit.norm(mean).double().numpy()
        f = f / np.sqrt(np.square(f).mean(1, keepdims=True))
        return 1 / (1 + np.exp(-f @ random))

    h = mapped(x)
    inverse = np.eye(40) / (0.01 * np.square(h).sum() / 40)
    weight = np.zeros((40, 6))
    for row, c in zip(h, y, strict=True):
        row = row[None]
        gain = inverse @ row.T / (1 + row @ inverse @ row.T)
        inverse = inverse - gain @ row @ inverse
        weight = weight + inverse @ row.T @ (np.eye(6)[c][None] - row @ weight)
    np.testing.assert_allclose(logits(s, NEW), mapped(NEW) @ weight, rtol=1e-3, atol=1e-4)


def test_klda_has_the_kernel_s_products_and_one_covariance(tools, scenario):
    s = trained(tools, scenario, "klda", projections=4000, gamma=0.02, shrinkage=0.1)
    x, y = images_of(scenario)

    def features(images):
        f = class_tokens(s.model.backbone, images)[1]
        f = f - f.mean(1, keepdims=True)
        return f / f.std(1, keepdims=True)

    with torch.no_grad():
        phi = s.model.head._map(s.model.features(x)).double().numpy()
    f = features(x)
    kernel = np.exp(-0.02 * np.square(f[:, None] - f[None]).sum(-1))
    np.testing.assert_allclose(phi @ phi.T, kernel, atol=0.1)
    means = np.stack([phi[y == c].mean(0) for c in range(6)])
    within = (phi - means[y]).T @ (phi - means[y]) / len(phi)
    shrunk = 0.9 * within + 0.1 * np.trace(within) / len(within) * np.eye(len(within))
    weight = np.linalg.solve(shrunk, means.T)
    with torch.no_grad():
        new = s.model.head._map(s.model.features(NEW)).double().numpy()
    expected = new @ weight - 0.5 * (means * weight.T).sum(1)
    got = logits(s, NEW)
    centred = [v - v.mean(1, keepdims=True) for v in (got, expected)]
    np.testing.assert_allclose(*centred, rtol=1e-3, atol=1e-3 * np.abs(centred[1]).max())


def test_randumb_learns_from_each_image_and_its_mirror_image(tools, scenario):
    s = trained(tools, scenario, "randumb", projections=50)
    x, y = images_of(scenario)
    moments = s.model.head.moments
    assert moments.samples == 2 * len(x)
    with torch.no_grad():
        both = torch.cat([x, x.flip(-1)])
        phi = s.model.head._map(torch.cat([s.model.features(i) for i in both.split(8)]))
    expected = torch.stack([phi[np.tile(y, 2) == c].double().mean(0) for c in range(6)])
    torch.testing.assert_close(moments.means(), expected, rtol=1e-4, atol=1e-5)


def test_fecam_has_a_distance_for_each_class(tools, scenario):
    s = trained(tools, scenario, "fecam", diagonal=1.5, rest=0.5)
    x, y = images_of(scenario)
    f, new = (class_tokens(s.model.backbone, images)[1] for images in (x, NEW))
    expected, width = np.zeros((len(new), 6)), f.shape[1]
    for c in range(6):
        own = f[y == c]
        mean = own.mean(0)
        sigma = sum(np.outer(row - mean, row - mean) for row in own) / len(own)
        v1 = np.mean([sigma[i, i] for i in range(width)])
        v2 = np.mean([sigma[i, j] for i in range(width) for j in range(width) if i != j])
        sigma = sigma + 1.5 * v1 * np.eye(width) + 0.5 * v2 * (1 - np.eye(width))
        size = np.sqrt(np.diag(sigma))
        inverse = np.linalg.pinv(sigma / np.outer(size, size))
        for i, row in enumerate(new):
            apart = row / np.linalg.norm(row) - mean / np.linalg.norm(mean)
            expected[i, c] = -apart @ inverse @ apart
    np.testing.assert_allclose(logits(s, NEW), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["layup", "f-oal"])
def test_with_balance_a_rare_class_counts_as_much_as_the_others(tools, scenario, name):
    """Class 0 has many more images: its logits fall where classes count alike."""
    plain, balanced = (trained(tools, scenario, name, balance=b) for b in (False, True))
    x, y = images_of(scenario)
    more = x[y == 0].repeat(5, 1, 1, 1)
    for s in (plain, balanced):
        with torch.no_grad():
            s.model.observe(s.model.features(more), torch.zeros(len(more)).long())
    gap = [logits(s, NEW)[:, 0] - logits(s, NEW)[:, 1:].mean(1) for s in (plain, balanced)]
    assert (gap[1] < gap[0]).all()


def test_the_state_s_size_is_that_of_the_sums_and_does_not_grow_with_the_stream(tools, scenario):
    s = trained(tools, scenario, "slda")
    sizes = []
    for _ in range(2):
        with torch.no_grad():
            for images in torch.randn(10, 8, 3, 32, 32):
                s.model.observe(s.model.features(images), torch.arange(8) % 6)
        sizes.append(state_bytes(s))
    # Counts, sums and second moment in float64, and which classes have been seen.
    assert sizes[0] == sizes[1] == 8 * (6 + 6 * 32 + 32 * 32) + 6
