r"""Replay: a buffer of earlier images for any strategy, and the losses ER, ER-ACE and DER++.

With B the incoming mini-batch, M a sample of the buffer (M' a second one), CE a mean cross-entropy
over the classes that its mask allows, and z the raw logits (all C of them, nothing at -inf):

- ER (Chaudhry et al., arXiv 1902.10486): CE over the images of B and M together;
- ER-ACE (Caccia et al., arXiv 2104.05025): CE(B) + CE(M), the incoming images over the batch's own
  classes and those never seen, the replayed ones over all seen. So a new class does not push the
  old ones' logits down, while the classes of the future are held down from the start;
- DER++ (Buzzega et al., arXiv 2004.07211): CE(B) + alpha MSE(z(M), z stored with M) + beta CE(M').
  An image's stored logits are those of the step in which it came; classes that the head did not
  have at that time are left out of the mean.

Masks. For ER and DER++ the strategy's `mask` is that of the incoming images ("batch": B's classes
alone, whatever is replayed); replayed images compete among all seen classes, or among all with
"none". With "decoupled" the head learns so with "seen", and prompts learn from B and from the
replayed images each under the classes of its own sample. ER-ACE's masks are its definition
(`mask` is then "ace"); with "decoupled" they are the head's, and prompts learn as above.

The buffer takes each mini-batch in after its step, from images and labels alone: no experience,
boundary or task is read. Which images stay is decided by Avalanche's storage policies.

Written from the equations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.classifier import FrozenViT, Selection
from avalanche_rwf.models.masks import batch_classes
from avalanche_rwf.utils.device import on_host, to_device
from avalanche_rwf.utils.validation import Choice, Number, Whole, takes

if TYPE_CHECKING:
    from avalanche.training.storage_policy import ExemplarsBuffer

REPLAY_LOSSES = ("er", "er-ace", "der")
POLICIES = ("reservoir", "class-balanced")


class Learner(Protocol):
    """What the losses of replay use of a strategy."""

    model: FrozenViT
    mask: str

    def classification_loss(
        self,
        features: Tensor,
        targets: Tensor,
        mask: str | Tensor | None = None,
        selection: Selection | None = None,
    ) -> Tensor:
        """The loss of features [B, F] and their classes [B] under a mask."""


class _Numbers(Dataset[int]):
    """What the policies are given in place of images: numbers of samples."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]


def _dataset(numbers: list[int], classes: list[int]) -> AvalancheDataset:
    """Sample numbers with what the policies look at: classes, and task labels that are all 0."""
    return AvalancheDataset(
        [_Numbers(numbers)],
        data_attributes=[
            DataAttribute(classes, "targets"),
            DataAttribute([0] * len(numbers), "targets_task_labels", use_in_getitem=True),
            DataAttribute(numbers, "number"),
        ],
    )


class _Ordered(set[int]):
    """A set that is iterated in ascending order.

    The class-balanced policy gives places to classes in the order of a set, which may depend on
    how it was filled: a restored buffer would go on differently.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(super().__iter__()))


class Replay:
    """A buffer of earlier training images, and the loss that learns from them.

    Give it to a :class:`FrozenBackboneStrategy`, one object per strategy. Each training step draws
    from the buffer without replacement within a sample, and the images drawn go through the model
    with the mini-batch, in one forward: 2 passes per training image where the buffer is filled, 3
    for "der", which draws twice. They enter no statistics of a head or a pool a second time.

    It draws from a random state of its own (set from PyTorch's when the object is made, which
    stays as it is): with a buffer or without, the rest of the training sees the same numbers.

    Memory: images are kept as the model gets them, on the host, 4 bytes a value; at 3 x 224 x 224
    that is 0.6 MB each and 0.3 GB for 500, in a checkpoint too. With several epochs an image may
    be held more than once.

    :param buffer: images to keep at most, at least 1.
    :param replay: the loss: "er", "er-ace" or "der" (DER++), see the module's text.
    :param replay_batch: images per sample of the buffer; None is as many as the mini-batch has.
    :param buffer_policy: which images stay: "reservoir" (each of the stream with the same
        probability) or "class-balanced" (a reservoir for each class met, all of the same size).
        Neither reads a boundary.
    :param alpha: weight of DER++'s squared error of logits.
    :param beta: weight of DER++'s cross-entropy of replayed images.
    :raises ValueError: naming the argument that is out of range.
    """

    @takes(
        buffer=Whole(),
        replay=Choice(REPLAY_LOSSES),
        replay_batch=Whole(optional=True),
        buffer_policy=Choice(POLICIES),
        alpha=Number(least=0),
        beta=Number(least=0),
    )
    def __init__(
        self,
        buffer: int = 500,
        replay: str = "er",
        *,
        replay_batch: int | None = None,
        buffer_policy: str = "reservoir",
        alpha: float = 0.2,
        beta: float = 0.5,
    ) -> None:
        self.buffer, self.replay, self.replay_batch = buffer, replay, replay_batch
        self.buffer_policy, self.alpha, self.beta = buffer_policy, alpha, beta
        self._policy: ExemplarsBuffer
        if buffer_policy == "reservoir":
            self._policy = ReservoirSamplingBuffer(buffer)
        else:
            self._policy = ClassBalancedBuffer(buffer)
            self._policy.seen_classes = _Ordered()
        self._came = 0
        # By number: image [3, H, W], class, and for DER++ logits [C].
        self._store: dict[int, tuple[Tensor, int, Tensor | None]] = {}
        self._order: list[int] = []  # the numbers of the store in the policy's order
        # What each of the policy's reservoirs has: made plain, the numbers in it, their weights.
        self._flat: dict[int, tuple[AvalancheDataset, list[int], Tensor]] = {}
        self._drawn: list[list[int]] = []
        self._logits: Tensor | None = None
        self._fetched: tuple[Tensor, Tensor, Tensor | None] | None = None
        with torch.random.fork_rng(devices=[]):
            seed = int(torch.randint(2**62, ()))
        self._random = torch.Generator().manual_seed(seed).get_state()

    def __len__(self) -> int:
        """Images held now."""
        return len(self._order)

    @property
    def targets(self) -> list[int]:
        """Classes of the images held."""
        return [self._store[number][1] for number in self._order]

    @property
    def numbers(self) -> list[int]:
        """The images held, by their place in the training stream from 0."""
        return list(self._order)

    # -- what the strategy calls ----------------------------------------------------------------

    def mask(self, mask: str) -> str:
        """The name of the mask that ER-ACE trains under when a strategy is asked for `mask`.

        :raises ValueError: for a mask that is not ER-ACE's.
        """
        if mask in ("ace", "seen"):  # "seen" is what a strategy has if nothing is said
            return "ace"
        if mask != "decoupled":
            raise ValueError(
                f"mask must be 'ace' or 'decoupled' with replay 'er-ace', not {mask!r}."
            )
        return mask

    def extend(self, images: Tensor) -> Tensor:
        """Draw for one step: images [B, 3, H, W] -> [B + R, 3, H, W], the drawn ones at the end."""
        wanted = min(self.replay_batch or len(images), len(self))
        self._drawn = []
        if not wanted:
            return images
        with self._own_random():
            for _ in range(2 if self.replay == "der" else 1):
                places = torch.randperm(len(self))[:wanted].tolist()
                self._drawn.append([self._order[place] for place in places])
        drawn = [self._store[number][0] for sample in self._drawn for number in sample]
        return torch.cat([images, to_device(torch.stack(drawn), images.device)])

    def loss_of(self, learner: Learner) -> Callable[..., Tensor]:
        """:meth:`loss` in the place of a strategy's own ``classification_loss``."""
        return functools.partial(self.loss, learner)

    def loss(
        self,
        learner: Learner,
        features: Tensor,
        targets: Tensor,
        selection: Selection | None = None,
    ) -> Tensor:
        """The training loss of the forward for which :meth:`extend` drew.

        :param learner: the strategy.
        :param features: [B + R, F].
        :param targets: classes [B] of the mini-batch.
        :param selection: what the model's ``encode`` gave with the features.
        """
        n, model = len(targets), learner.model
        incoming: Tensor | None = None
        if self.replay == "er-ace":
            incoming = batch_classes(targets, len(model.seen)) | ~model.seen
        replayed = "none" if learner.mask == "none" else "seen"
        if self.replay == "der":
            raw = full_precision(model.training_logits(features, selection=selection))
            self._logits = raw[:n].detach()
        loss = learner.classification_loss(
            features[:n], targets, incoming, selection and selection.rows(0, n)
        )
        if not self._drawn:
            return loss
        size = len(self._drawn[0])
        if self.replay == "der":
            stored = [self._stored_logits(number) for number in self._drawn[0]]
            loss = loss + self.alpha * _squared_error(raw[n : n + size], stored)
        start = len(features) - size  # the only sample, or DER++'s second
        classes = [self._store[number][1] for number in self._drawn[-1]]
        again = learner.classification_loss(
            features[start:],
            to_device(torch.tensor(classes), targets.device),
            replayed,
            selection and selection.rows(start, len(features)),
        )
        if self.replay == "er":  # one mean over all images
            return (n * loss + size * again) / (n + size)
        return loss + (self.beta if self.replay == "der" else 1.0) * again

    @torch.no_grad()
    def fetch(self, images: Tensor) -> None:
        """Begin to copy a mini-batch from a GPU; whoever calls it waits for the GPU afterwards.

        So the wait is for the copy too: what is on the GPU's stream before has been done by then.
        """
        if images.device.type == "cuda":
            logits = self._logits
            self._fetched = (
                images,
                images.to("cpu", non_blocking=True),
                None if logits is None else logits.to("cpu", non_blocking=True),
            )

    @torch.no_grad()
    def take_in(self, images: Tensor, targets: Tensor) -> None:
        """Offer the buffer a mini-batch that has been learned: images [B, 3, H, W], targets [B]."""
        first, classes = self._came, on_host(targets)
        self._came += len(classes)
        numbers = list(range(first, self._came))
        with self._own_random():
            self._policy.update_from_dataset(_dataset(numbers, classes))
        self._flatten({**{n: self._store[n][1] for n in self._order},
                       **dict(zip(numbers, classes, strict=True))})
        kept = set(self._order)
        for number in self._store.keys() - kept:
            del self._store[number]
        fetched = self._fetched
        if fetched is None or fetched[0] is not images:
            mine = self._logits
            fetched = images, images.detach().cpu(), None if mine is None else mine.cpu()
        pixels, logits = fetched[1], fetched[2]
        for row, number in enumerate(numbers):
            if number in kept:
                # Copies: a row of the batch would keep all of it in memory.
                of_it = None if logits is None else logits[row].clone()
                self._store[number] = pixels[row].clone(), classes[row], of_it
        self._logits = self._fetched = None
        self._drawn = []

    # -- saving ---------------------------------------------------------------------------------

    def state_dict(self, images: bool = True) -> dict[str, Any]:
        """The buffer as tensors and plain values; :meth:`load_state_dict` goes on from there.

        :param images: False leaves "images" out, [n, 3, H, W] in the order of the numbers in
            "groups"; they must be put in again before the state can be loaded.
        """
        held = [self._store[number] for number in self._order]
        pixels = {}
        if images:
            stacked = torch.stack([image for image, _, _ in held]) if held else torch.zeros(0)
            pixels = {"images": stacked}
        return {
            **pixels,
            "settings": [self.buffer, self.replay, self.buffer_policy],
            "came": self._came,
            "random": self._random.clone(),
            "groups": [
                [
                    key,
                    group.max_size,
                    list(self._flat[key][1]),
                    group._buffer_weights.clone(),
                ]
                for key, group in self._groups().items()
                if len(group.buffer)
            ],
            "targets": [target for _, target, _ in held],
            # A head that grows makes them of different lengths.
            "logits": [logits.clone() for _, _, logits in held if logits is not None],
            "classes": sorted(getattr(self._policy, "seen_classes", ())),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave.

        :raises ValueError: if it is of a buffer of another size, loss or policy.
        """
        mine = [self.buffer, self.replay, self.buffer_policy]
        if list(state["settings"]) != mine:
            raise ValueError(f"The saved buffer is of {list(state['settings'])}, not of {mine}.")
        self._came = int(state["came"])
        self._random = state["random"].clone()
        self._flat, self._drawn, self._logits, self._fetched = {}, [], None, None
        saved = {int(key): group for key, *group in state["groups"]}
        if isinstance(self._policy, ClassBalancedBuffer):
            self._policy.seen_classes = _Ordered(state["classes"])
            # A class without an image has a place in the policy too.
            self._policy.buffer_groups = {
                key: ReservoirSamplingBuffer(0) for key in [*saved, *state["classes"]]
            }
        groups = self._groups()
        targets = iter(state["targets"])
        self._order = []
        for key, (size, numbers, weights) in saved.items():
            group = groups[key]
            group.max_size = int(size)
            group.buffer = _dataset(list(numbers), [next(targets) for _ in numbers])
            group._buffer_weights = weights.clone()
            self._flat[key] = group.buffer, list(numbers), weights.clone()
            self._order += numbers
        logits = state["logits"] or [None] * len(self._order)
        self._store = {
            number: (image.clone(), int(target), None if z is None else z.clone())
            for number, image, target, z in zip(
                self._order, state["images"], state["targets"], logits, strict=True
            )
        }

    # -- inside ---------------------------------------------------------------------------------

    def _groups(self) -> dict[int, Any]:
        """The policy's reservoirs: one, or one per class."""
        if isinstance(self._policy, ClassBalancedBuffer):
            return self._policy.buffer_groups
        return {0: self._policy}

    def _flatten(self, classes: Mapping[int, int]) -> None:
        """Read what the policy kept, and make its datasets plain again.

        Avalanche's concatenation keeps every dataset that ever was a part, one more for each
        mini-batch: steps would take longer and longer.

        :param classes: the class of each number.
        """
        self._order = []
        for key, group in self._groups().items():
            if not len(group.buffer):
                continue
            weights = group._buffer_weights
            # A sample keeps the weight drawn for it: the same weights are the same samples.
            if key not in self._flat or not torch.equal(weights, self._flat[key][2]):
                numbers = [int(number) for number in group.buffer.number]
                plain = _dataset(numbers, [classes[number] for number in numbers])
                self._flat[key] = plain, numbers, weights.clone()
            group.buffer = self._flat[key][0]
            self._order += self._flat[key][1]

    def _stored_logits(self, number: int) -> Tensor:
        logits = self._store[number][2]
        assert logits is not None
        return logits

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()


def _squared_error(logits: Tensor, stored: list[Tensor]) -> Tensor:
    """Mean over images and over the classes that each had when it was stored: [R, C] -> scalar."""
    target, known = (torch.zeros(logits.shape, dtype=logits.dtype) for _ in range(2))
    for row, values in enumerate(stored):
        target[row, : len(values)] = values
        known[row, : len(values)] = 1
    target, known = to_device(target, logits.device), to_device(known, logits.device)
    return ((logits - target).square() * known).sum() / known.sum()
