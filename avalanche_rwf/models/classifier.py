"""A frozen ViT, prompts in some of its blocks, a read-out and a head: what every method shares.

Read-outs (`readout`):

- ``"cls"``: the class token after the last block, normalised as the backbone does;
- ``"cls+mean"``: the same with the mean patch token;
- ``"layers"``: class token and mean patch of several blocks, each layer-normed;
- ``"routes"``: as ``"layers"``, with the patterns that a routing layer retrieved in those blocks.

The read-out is worth more than most methods' ideas, so it is a field of every result and the same
choices are open to every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.models.blockwise import Forwarded, Prompt, forward_blocks
from avalanche_rwf.models.heads import Head, create_head

__all__ = ["READOUTS", "FrozenViT", "parse_blocks"]

# What remembered test features may take in memory.
_ANSWERS_BYTES = 256 * 2**20

READOUTS = ("cls", "cls+mean", "layers", "routes")


def parse_blocks(blocks: str | Collection[int], depth: int) -> tuple[int, ...]:
    """Block indices from "first 3", "last 5", "all", "none", "0,2,4" or a collection of integers.

    Negative indices count from the end. The result is sorted and has no duplicates.

    :raises ValueError: if it cannot be read or an index is not a block of the backbone.
    """
    takes = f"'first N', 'last N', 'all', 'none' or indices from 0 to {depth - 1}"
    if isinstance(blocks, str):
        words = blocks.replace("first", "first ").replace("last", "last ").split()
        try:
            if blocks in ("all", "none"):
                indices = list(range(depth)) if blocks == "all" else []
            elif len(words) == 2 and words[0] in ("first", "last"):
                n = int(words[1])
                if not 0 <= n <= depth:
                    raise ValueError
                indices = list(range(n)) if words[0] == "first" else list(range(depth - n, depth))
            else:
                indices = [int(word) for word in blocks.split(",")]
        except ValueError:
            raise ValueError(f"Blocks are {takes}, not {blocks!r}.") from None
    else:
        indices = list(blocks)
    if any(not -depth <= i < depth for i in indices):
        raise ValueError(f"Blocks are {takes}, not {blocks!r}.")
    return tuple(sorted({i % depth for i in indices}))


class FrozenViT(nn.Module):
    """A classifier on a frozen timm ViT; the base of every prompt method.

    ``model(images)`` gives raw logits [B, C]; which classes have been seen is the buffer ``seen``
    and the strategy masks by it. The backbone stays in eval mode whatever ``train()`` is called
    with, and none of its parameters has a gradient, unless ``frozen=False`` (fine-tuning).

    :param backbone: a timm ``VisionTransformer`` with a class token.
    :param num_classes: C.
    :param head: a name of ``HEADS``, or a head.
    :param readout: see the module's text.
    :param readout_blocks: for "layers" and "routes": whose entering tokens are read, besides the
        final ones ("last 3", indices, ...).
    :param head_options: for a head by name.
    :param frozen: False trains the backbone too.
    """

    seen: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        *,
        head: str | Head = "linear",
        readout: str = "cls",
        readout_blocks: str | Collection[int] = "none",
        head_options: dict[str, Any] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise ValueError(f"readout must be one of {', '.join(READOUTS)}, not {readout!r}.")
        self.backbone = backbone
        self.frozen = frozen
        self.readout = readout
        self.depth = len(backbone.blocks)
        self.dim = int(backbone.embed_dim)
        self.num_prefix_tokens = int(backbone.num_prefix_tokens)
        self.readout_blocks = parse_blocks(readout_blocks, self.depth)
        backbone.requires_grad_(not frozen)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.head = (
            head
            if isinstance(head, Head)
            else create_head(head, self.feature_width(), num_classes, **(head_options or {}))
        )
        # A closed form has no gradient with which prompts could learn: they learn through a head
        # of their own, and predictions come from the closed form.
        self.training_head: Head | None = None
        self._answers: dict[bytes, Tensor] = {}
        self.train(self.training)

    def add_training_head(self) -> None:
        """Give a model with trained prompts and a closed-form head a head for the prompts' loss."""
        if self.head.closed_form and self.training_head is None:
            self.training_head = create_head("white", self.feature_width(), self.num_classes)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.head.num_classes

    # -- what a method overrides ------------------------------------------------------------

    def prompted_blocks(self) -> Sequence[int]:
        """Blocks that take prompts; none here."""
        return ()

    def prompt(self, block: int, tokens: Tensor) -> Prompt | None:
        """The prompt for one block, from the tokens [B, N, D] that enter it."""
        return None

    def retrieved(self, forwarded: Forwarded) -> list[Tensor]:
        """What "routes" adds: patterns [B, L, D] of the read-out blocks; none here."""
        return []

    def route_width(self) -> int:
        """Width that ``retrieved`` adds to the features."""
        return 0

    def prompt_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of the prompts by kind; none here."""
        return {}

    # -- the shared path ----------------------------------------------------------------------

    def feature_width(self) -> int:
        """Width F of the features that the head gets."""
        if self.readout == "cls":
            return self.dim
        width = 2 * self.dim * (1 + len(self.readout_blocks))
        if self.readout == "cls+mean":
            return 2 * self.dim
        return width + (self.route_width() if self.readout == "routes" else 0)

    def _cls(self, tokens: Tensor) -> Tensor:
        fc_norm = getattr(self.backbone, "fc_norm", None)
        cls = tokens[:, 0]
        return cls if fc_norm is None else fc_norm(cls)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, F] for the head.

        Without trained prompts a test batch has the same features after each experience: in
        evaluation on the CPU they are computed once and found again by the images' own bytes.
        """
        if self.frozen and not self.prompted_blocks():
            return self.remembered(images, self._features)
        return self._features(images)

    def remembered(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(images)``, which must be a function of the images and frozen weights alone."""
        usual = images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if self.training or torch.is_grad_enabled() or not usual:
            return compute(images)
        # A tensor counts its changes in place: weights that were changed answer anew.
        changes = sum(p._version for p in self.parameters())
        key = hashlib.blake2b(images.numpy().tobytes(), digest_size=16).digest() + b"%d" % changes
        if key not in self._answers:
            answer = compute(images)
            size = answer.numel() * answer.element_size() * (len(self._answers) + 1)
            if size > _ANSWERS_BYTES:
                self._answers.clear()
            self._answers[key] = answer
        return self._answers[key]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._answers.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_answers": {}}

    def _features(self, images: Tensor) -> Tensor:
        multi = self.readout in ("layers", "routes")
        forwarded = forward_blocks(
            self.backbone,
            images,
            self.prompt,
            self.prompted_blocks(),
            collect=self.readout_blocks if multi else (),
            frozen=self.frozen,
        )
        return self.read(forwarded)

    def read(self, forwarded: Forwarded) -> Tensor:
        """The read-out of a forward: [B, F]."""
        tokens = forwarded.tokens
        cls = self._cls(tokens)
        if self.readout == "cls":
            return cls
        p = self.num_prefix_tokens
        parts = [cls, tokens[:, p:].mean(1)]
        if self.readout in ("layers", "routes"):
            for index in self.readout_blocks:
                normed = F.layer_norm(forwarded.collected[index], (self.dim,))
                parts += [normed[:, 0], normed[:, p:].mean(1)]
            if self.readout == "routes":
                for found in self.retrieved(forwarded):
                    parts.append(F.layer_norm(found, (self.dim,)).flatten(1))
        return torch.cat(parts, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> raw logits [B, C]; mask them by ``seen``."""
        return self.head(self.features(images))

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in a training batch: mark its classes as seen, give the heads their statistics."""
        self.seen[targets] = True
        self.head.observe(features.detach(), targets)
        if self.training_head is not None:
            self.training_head.observe(features.detach(), targets)

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes in all."""
        if num_classes > self.num_classes:
            seen = torch.zeros(num_classes, dtype=torch.bool, device=self.seen.device)
            seen[: len(self.seen)] = self.seen
            self.seen = seen
            self.head.grow(num_classes)
            if self.training_head is not None:
                self.training_head.grow(num_classes)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by kind: the prompts' kinds, "head" and, if trained, "backbone"."""
        groups = dict(self.prompt_groups())
        heads = [self.head] + ([self.training_head] if self.training_head is not None else [])
        head = [p for h in heads for p in h.parameters() if p.requires_grad]
        if head:
            groups["head"] = head
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        if backbone:
            groups["backbone"] = backbone
        return groups

    def trainable_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for group in self.parameter_groups().values() for p in group)

    def train(self, mode: bool = True) -> FrozenViT:
        """As in PyTorch, except that the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def state_without_backbone(self) -> dict[str, Tensor]:
        """The state dict less the frozen backbone's tensors (all of it when fine-tuning)."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not (self.frozen and name.startswith("backbone."))
        }
