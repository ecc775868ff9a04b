"""What should rwf-lda's routes be? Candidates on held-out training images, paired by split.

    python examples/route_study.py                                     # the embedded digits
    python examples/route_study.py --benchmark folder:PATH --experiences 8 --backbone NAME ...
    python examples/route_study.py --part pools                        # routes against pools

``--part pools`` gives pools and routes the same number of looks: each family below with every prior
around the centre, shrinkage, and with or without the class tokens. With m the mean patch of a
block, m_w that under the prior and X its patches, an image's own query is q = m_w - m (foreground
less background) and its route is X^T softmax(20 / D X q + log prior).

Test images are never read. About a quarter of each class is held out, by ``--hold-out``:

- ``quarter``: images at random. Photographs come in near-duplicates, so that nearly all are right;
- ``scenes``: whole clusters of alike images (Ward's method, mean patch entering block 2).

The seed orders classes and samples as well. Queries come from the first 16 samples; learned ones
from the first 160. Differences: mean ± sample standard deviation over the splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from avalanche_rwf.benchmarks.splits import class_order, experience_sizes, stratified_part
from avalanche_rwf.cli import backbone_args
from avalanche_rwf.experiments.build import build_benchmark, load_backbone
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.models.blockwise import forward_blocks
from avalanche_rwf.models.heads import SLDAHead
from avalanche_rwf.routing.functional import retrieve
from avalanche_rwf.routing.held import lda_loss
from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.routing.queries import principal_queries

BETA, SHRINKAGE, FIRST = 0.025, 0.2, 160
CONTRAST = 20.0  # times 1 / D: the inverse temperature of an image's own query
WIDTHS, SHRINKAGES = (None, 0.5, 0.35), (0.05, 0.2, 0.6)
UNIFORM = 1e4  # the width of a prior that leaves all patches alike
EARLY = 2  # the block whose entering tokens tell scenes apart


class Images(NamedTuple):
    """Layer-normed tokens [n, depth + 1, N, D] entering each block (last: the final ones)."""

    tokens: Tensor
    labels: Tensor
    grid: tuple[int, int]
    prefix: int
    blocks: list[int]

    def pooled(self, at: Tensor, prior: Tensor) -> Tensor:
        """Class token and weighted mean patch of the blocks and of the end."""
        tokens = self.tokens[at][:, [*self.blocks, -1]].float()
        mean = prior[self.prefix :].softmax(0) @ tokens[:, :, self.prefix :]
        return torch.cat([tokens[:, :, 0], mean], 2).flatten(1)

    def centre(self, width: float) -> Tensor:
        return centre_prior(self.grid, width, self.prefix)


class Split(NamedTuple):
    """One seed: the training part in the order of the stream, and the held-out part."""

    stream: Tensor
    held: Tensor


def load_images(args: argparse.Namespace) -> Images:
    config = RunConfig(
        benchmark=args.benchmark, method="slda", backbone=args.backbone, weights=args.weights,
        backbone_args=backbone_args(args.backbone_arg), image_size=args.image_size,
    )  # fmt: skip
    network = cast(VisionTransformer, load_backbone(config))
    found: list[Tensor] = []
    labels: list[int] = []
    depth = len(network.blocks)
    for experience in build_benchmark(config).train_stream:
        items = range(0, len(experience.dataset), 4 if args.smoke else 1)
        for part in torch.tensor(items).split(64):
            x, y, _ = zip(*(experience.dataset[int(i)] for i in part), strict=True)
            with torch.no_grad():
                forwarded = forward_blocks(network, torch.stack(x), collect=range(depth))
            entering = torch.stack([forwarded.collected[b] for b in range(depth)], 1)
            entering = F.layer_norm(entering, entering.shape[-1:])
            found.append(torch.cat([entering, forwarded.tokens.unsqueeze(1)], 1).half())
            labels += [int(label) for label in y]
    return Images(
        torch.cat(found), torch.tensor(labels), network.patch_embed.grid_size,
        network.num_prefix_tokens, list(range(depth - 5, depth)),
    )  # fmt: skip


def scenes(images: Images) -> np.ndarray:
    """Per image, the number of its cluster within its class, one of six."""
    patch = images.tokens[:, EARLY, images.prefix :].float().mean(1)
    labels, out = images.labels.numpy(), np.zeros(len(images.labels), dtype=int)
    for c in np.unique(labels):
        mine = labels == c
        out[mine] = AgglomerativeClustering(min(6, mine.sum())).fit_predict(patch.numpy()[mine])
    return out


def hold_out_scenes(labels: np.ndarray, scene: np.ndarray, seed: int) -> np.ndarray:
    """True for about a quarter of each class: scenes drawn by the seed, one at least."""
    draw, held = np.random.RandomState([901, seed]), np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        mine = np.flatnonzero(labels == c)
        sizes = np.bincount(scene[mine])
        size, picked = 0, [int(sizes.argmin())]
        for s in draw.permutation(len(sizes)):
            if size < 0.19 * len(mine) and size + sizes[s] <= 0.375 * len(mine) + 1:
                picked, size = [*picked, s] if size else [s], size + sizes[s]
        held[mine[np.isin(scene[mine], picked)]] = True
    return held


def splits(images: Images, how: str, seeds: int, experiences: int) -> Iterator[Split]:
    labels = images.labels.numpy()
    scene, classes = scenes(images) if how == "scenes" else None, int(labels.max()) + 1
    for seed in range(seeds):
        if scene is not None:
            mask = hold_out_scenes(labels, scene, seed)
            rest, held = np.flatnonzero(~mask), np.flatnonzero(mask)
        else:
            rest, held = stratified_part(labels, 0.25, [900 + seed])
        place = np.argsort(class_order(classes, seed))
        ends = np.cumsum(experience_sizes(classes, experiences))
        number = np.searchsorted(ends, place[labels[rest]], side="right")
        draw = np.random.RandomState([77, seed])
        parts = [draw.permutation(rest[number == e]) for e in range(experiences)]
        yield Split(torch.tensor(np.concatenate(parts)), torch.tensor(held))


Parameters = list[tuple[Tensor, Tensor | None]]  # per block: queries and log-prior


def principal(images: Images, split: Split, count: int, prior: Tensor | None) -> Parameters:
    first = images.tokens[split.stream[:16]].float()
    return [(principal_queries(first[:, b], count), prior) for b in images.blocks]


def routes(images: Images, at: Tensor, parameters: Parameters) -> Tensor:
    parts = [images.pooled(at, images.centre(UNIFORM))]
    for b, (queries, prior) in zip(images.blocks, parameters, strict=True):
        tokens = images.tokens[at, b].float()
        found = retrieve(queries.expand(len(at), -1, -1), tokens, tokens, BETA, log_prior=prior)
        parts.append(F.layer_norm(found, found.shape[-1:]).flatten(1))
    return torch.cat(parts, 1)


def accuracy(train: Tensor, test: Tensor, images: Images, split: Split) -> float:
    head = SLDAHead(train.shape[1], int(images.labels.max()) + 1, shrinkage=SHRINKAGE)
    head.observe(train, images.labels[split.stream])
    return 100 * float((head(test).argmax(1) == images.labels[split.held]).float().mean())


def contrast(images: Images, at: Tensor, width: float) -> Tensor:
    """Per block, the patches that are like the centre and unlike the whole: [n, blocks x D]."""
    prior = images.centre(width)[images.prefix :]
    parts = []
    for b in [*images.blocks, -1]:
        patches = images.tokens[at, b][:, images.prefix :].float()
        patches = F.layer_norm(patches, patches.shape[-1:])
        query = prior.softmax(0) @ patches - patches.mean(1)
        beta = CONTRAST / patches.shape[-1]
        found = retrieve(query[:, None], patches, patches, beta, log_prior=prior)
        parts.append(F.layer_norm(found, found.shape[-1:])[:, 0])
    return torch.cat(parts, 1)


def families(images: Images, split: Split, smoke: bool) -> Iterator[tuple[str, float]]:
    """Name and held-out accuracy of pools and routes, each with the same choices."""

    def pool(at: Tensor, width: float | None) -> tuple[Tensor, Tensor]:
        dim = images.tokens.shape[-1]
        prior = images.centre(UNIFORM if width is None else width)
        both = images.pooled(at, prior).unflatten(1, (-1, 2 * dim))
        return both[:, :, :dim].flatten(1), both[:, :, dim:].flatten(1)

    def normed(pooled: Tensor) -> Tensor:  # as retrieved patterns are
        dim = images.tokens.shape[-1]
        return F.layer_norm(pooled.unflatten(1, (-1, dim)), (dim,)).flatten(1)

    def parts(at: Tensor, width: float | None) -> dict[str, list[Tensor]]:
        prior = None if width is None else images.centre(width)
        routed = routes(images, at, principal(images, split, 4, prior))
        routed = routed[:, images.pooled(at[:1], images.centre(UNIFORM)).shape[1] :]
        own = contrast(images, at, UNIFORM if width is None else width)
        mean = pool(at, width)[1]
        return {
            "pool": [mean], "pool, routes": [pool(at, None)[1], routed],
            "normed pool": [normed(mean)], "own query": [own], "pool, own query": [mean, own],
        }  # fmt: skip

    for width in WIDTHS[: 2 if smoke else 3]:
        train, test = (parts(at, width) for at in (split.stream, split.held))
        tokens = [pool(at, None)[0] for at in (split.stream, split.held)]
        for name in train:
            for with_class in (True, False):
                x, y = (
                    torch.cat([*[cls] * with_class, *found[name]], 1)
                    for cls, found in zip(tokens, (train, test), strict=True)
                )
                head = SLDAHead(x.shape[1], int(images.labels.max()) + 1)
                head.observe(x, images.labels[split.stream])
                for shrinkage in SHRINKAGES:
                    weight, bias = head.moments.lda(shrinkage)
                    right = (y @ weight.T.to(y) + bias.to(y)).argmax(1) == images.labels[split.held]
                    tokens_too = "class token, " * with_class
                    yield (
                        f"{tokens_too}{name}; centre {width or 'none'}, shrinkage {shrinkage}",
                        100 * float(right.float().mean()),
                    )


def learn(images: Images, pool: Tensor, start: Parameters, what: str, steps: int) -> Parameters:
    """Adam on the LDA loss; each step solves on half of a draw of `pool` and asks the other."""
    queries = [q.clone().requires_grad_(what != "prior") for q, _ in start]
    priors = [None if p is None else p.clone().requires_grad_(what == "prior") for _, p in start]
    trained = [p for p in [*queries, *priors] if p is not None and p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1 if what == "prior" else 0.03)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        at = pool[torch.randperm(len(pool), generator=draw)[:200]]
        features = routes(images, at, list(zip(queries, priors, strict=True)))
        labels, half = images.labels[at], len(at) // 2
        known = torch.isin(labels[half:], labels[:half])
        classes, mine = labels[:half].unique(return_inverse=True)
        targets = torch.searchsorted(classes, labels[half:][known])
        loss = lda_loss(features[:half], mine, features[half:][known], targets, SHRINKAGE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = zip(queries, priors, strict=True)
    return [(q.detach(), None if p is None else p.detach()) for q, p in pairs]


def candidates(images: Images, split: Split, smoke: bool) -> Iterator[tuple[str, float]]:
    """Name and held-out accuracy of every candidate; the first two are the references."""

    def plain(width: float) -> float:
        prior = images.centre(width)
        train, test = (images.pooled(at, prior) for at in (split.stream, split.held))
        return accuracy(train, test, images, split)

    def closed(count: int, prior: Tensor | None) -> float:
        parameters = principal(images, split, count, prior)
        train, test = (routes(images, at, parameters) for at in (split.stream, split.held))
        return accuracy(train, test, images, split)

    yield "layers-lda", plain(UNIFORM)
    yield "rwf-lda, L=4, no prior", closed(4, None)
    for width in (0.5, 0.35):
        yield f"layers-lda, mean patch -> centre {width}", plain(width)
    for count, width in [(4, 0.7), (4, 0.5), (4, 0.35), (4, 0.25), (8, 0.35)][: 2 if smoke else 5]:
        yield f"L={count}, centre {width}", closed(count, images.centre(width))
    for count in (8, 16)[: 0 if smoke else 2]:
        yield f"L={count}, no prior", closed(count, None)
    # Learned from the first samples, then held. rwf-lda-held is the third of these, read anew.
    n = 48 if smoke else FIRST
    for name, held_prior in [("queries", None), ("prior", UNIFORM), ("queries, centre 0.5", 0.5)]:
        prior = None if held_prior is None else images.centre(held_prior)
        start = principal(images, split, 4, prior)
        held = learn(images, split.stream[:n], start, name.split(",")[0], 3 if smoke else 40)
        train, test = (routes(images, at, held) for at in (split.stream, split.held))
        yield f"learned {name}; first ones read anew", accuracy(train, test, images, split)
        train[:n] = routes(images, split.stream[:n], start)
        yield f"learned {name}; first ones as they were", accuracy(train, test, images, split)
        last = split.stream[n - 16 : n]
        moved = (routes(images, last, held) - routes(images, last, start)).mean(0)
        train[:n] += moved
        yield f"learned {name}; first ones shifted", accuracy(train, test, images, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", default="split-digits")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument("--backbone", default="rwf_vit_mini_patch8_32")
    parser.add_argument("--backbone-arg", action="append", default=[])
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--hold-out", choices=("scenes", "quarter"), default="scenes")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--part", choices=("routes", "pools"), default="routes")
    parser.add_argument("--smoke", action="store_true", help="a quarter of the images, 2 seeds")
    args = parser.parse_args()
    images = load_images(args)
    found: dict[str, list[float]] = {}
    for split in splits(images, args.hold_out, 2 if args.smoke else args.seeds, args.experiences):
        part = families if args.part == "pools" else candidates
        for name, value in part(images, split, args.smoke):
            found.setdefault(name, []).append(value)
    rows = {name: np.array(values) for name, values in found.items()}
    references = list(rows.values())[:2]
    print(f"{args.benchmark}, hold-out {args.hold_out}, n = {len(references[0])}")
    print(f"{'differences to the first two rows':50} {'accuracy':>8}")
    for name, values in rows.items():
        gaps = [f"{(values - r).mean():+6.2f} ± {(values - r).std(ddof=1):.2f}" for r in references]
        print(f"{name:50} {values.mean():8.2f} {gaps[0]:>14} {gaps[1]:>14}")


if __name__ == "__main__":
    main()
