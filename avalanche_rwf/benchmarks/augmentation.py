"""Training augmentation by name: what happens to image i at seed s is a function of (s, i) alone.

So it is the same for every method of a comparison, whatever the batch size, the number of loading
processes or the order in which images are asked for, and a run is repeated to the last bit.

- ``none``: the image as it is.
- ``flip``: half of the images, chosen by seed, are mirrored (in :mod:`.splits`).
- ``flip-crop``: the image is padded by 4 pixels of black and a window of its own size is cut out
  at random, then mirrored with probability 1/2: the common online protocol's RandomCrop(padding 4)
  and horizontal flip, at the size that the backbone sees.
- ``autoaug``: ``flip-crop``, then AutoAugment (Cubuk et al., arXiv 1805.09501) as torchvision has
  it, with the CIFAR-10 policy for CIFAR-100 and the ImageNet policy otherwise.

What differs from the code that published numbers come from: there one crop, flip and policy is
drawn for a whole batch (the official MVP code and most that descend from it) and anew for each of
the several gradient steps on it; here each sample has its own, and it keeps it: with more than one
gradient step per mini-batch all steps see the same augmented image. CUB-200 is trained without
AutoAugment there; here it is what ``--augment`` says.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PADDING = 4


def create_augmentation(
    name: str, seed: int, policy: str = "imagenet"
) -> Callable[[Tensor, int], Tensor]:
    """The augmentation `name` at a seed: (pixels uint8 [3, S, S], position) -> uint8 [3, S, S].

    It can be pickled, for processes that load images.

    :param name: "flip-crop" or "autoaug".
    :param policy: of AutoAugment, "imagenet" or "cifar10".
    :raises ValueError: for another name or policy.
    """
    if name not in ("flip-crop", "autoaug"):
        raise ValueError(f"augment of single images is flip-crop or autoaug, not {name!r}.")
    if policy not in ("imagenet", "cifar10"):
        raise ValueError(f"policy is imagenet or cifar10, not {policy!r}.")
    return functools.partial(_augment, seed=seed, policy=policy if name == "autoaug" else None)


def _augment(image: Tensor, index: int, *, seed: int, policy: str | None) -> Tensor:
    """One image; nothing is drawn from a generator that anything else draws from."""
    digest = hashlib.blake2b(f"augment {seed} {index}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest[:7], "big")
    random = np.random.RandomState([draw % 2**32, draw >> 32])
    top, left = random.randint(0, 2 * PADDING + 1, 2).tolist()
    side_h, side_w = image.shape[-2:]
    padded = F.pad(image, (PADDING,) * 4)
    image = padded[:, top : top + side_h, left : left + side_w]
    if random.rand() < 0.5:
        image = image.flip(-1)
    if policy is None:
        return image.contiguous()
    # By PIL in whole numbers: sums over a tensor could depend on a process's number of threads.
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    # AutoAugment draws from PyTorch's own generator, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw)
        picture = _auto_augment(policy)(picture)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


@functools.lru_cache(maxsize=2)
def _auto_augment(policy: str) -> Any:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    return AutoAugment(AutoAugmentPolicy[policy.upper()])
