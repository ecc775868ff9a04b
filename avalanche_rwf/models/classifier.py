"""A frozen ViT, prompts in some of its blocks, a read-out and a head: what every method shares.

Read-outs (`readout`):

- ``"cls"``: the class token after the last block, normalised as the backbone does;
- ``"mean"``: the mean patch token, normalised as the backbone normalises what it pools;
- ``"cls+mean"``: both;
- ``"layers"``: also class token and mean patch of several blocks, each layer-normed;
- ``"routes"``: as ``"layers"``, with the patterns that a routing layer retrieved in those blocks.

In a backbone without a class token its own pooling stands in the class token's place, and inside it
nothing does: "cls" is what the model itself gives. Where that is the mean patch, "cls+mean" is it
once.

The read-out is worth more than most methods' ideas, so it is a field of every result and the same
choices are open to every method.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import check_architecture
from avalanche_rwf.models.blocks import FitWarning, parse_blocks
from avalanche_rwf.models.blockwise import Forwarded, Prompt, forward_blocks
from avalanche_rwf.models.families import ViT, final_norm, pooling, summary
from avalanche_rwf.models.feature_cache import (
    MEMORY,
    fingerprint,
    image_digests,
    is_watched,
    settings,
)
from avalanche_rwf.models.heads import Head, create_head, held
from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.utils.validation import (
    check_choice,
    check_flag,
    check_mapping,
    check_number,
    check_whole,
)

__all__ = ["READOUTS", "FrozenViT"]

READOUTS = ("cls", "mean", "cls+mean", "layers", "routes")
_NAMES = itertools.count()
# The functions that make features of images.
_READING = ("_features", "read", "retrieved", "extra_tokens", "_mean_patch", "prompt")


def _check_head(head: Head, width: int, num_classes: int) -> None:
    """Refuse a head that was made for other features or classes."""
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.shape[-1] != width:
        raise UsageError(f"head must take {width} features, and it takes {weight.shape[-1]}.")
    if head.num_classes != num_classes:
        raise UsageError(
            f"head must have num_classes={num_classes} classes, and it has {head.num_classes}."
        )


def _bytes(tensor: Tensor) -> bytes:
    """A tensor's values as bytes; NumPy has no bfloat16."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.detach().contiguous().view(torch.int16)
    return tensor.numpy(force=True).tobytes()


class FrozenViT(nn.Module):
    """A classifier on a frozen timm ViT; the base of every prompt method.

    ``model(images)`` gives raw logits [B, C]; which classes have been seen is the buffer ``seen``
    and the strategy masks by it. The backbone stays in eval mode whatever ``train()`` is called
    with, and none of its parameters has a gradient, unless ``frozen=False`` (fine-tuning).

    :param backbone: a timm transformer of one of the :mod:`.families`.
    :param num_classes: C.
    :param head: a name of ``HEADS``, or a head.
    :param readout: see the module's text.
    :param readout_blocks: for "layers" and "routes": whose entering tokens are read, besides the
        final ones ("last 3", indices, ...).
    :param head_options: for a head by name.
    :param frozen: False trains the backbone too.
    :param mean_centre: width of :func:`centre_prior`, with which the mean patch is weighed; None
        weighs all patches alike.
    """

    seen: Tensor
    patch_weights: Tensor | None
    # What a subclass offers; a method may have a read-out of its own besides the common ones.
    readouts: ClassVar[tuple[str, ...]] = READOUTS
    # Whether test features may be looked up; a strategy that evaluates inside training says no.
    remembers = True
    # Attributes that a forward leaves for the loss; None between batches and in copies.
    transient: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        head: str | Head = "linear",
        readout: str = "cls",
        readout_blocks: str | Collection[int] = "none",
        head_options: dict[str, Any] | None = None,
        frozen: bool = True,
        mean_centre: float | None = None,
    ) -> None:
        super().__init__()
        if readout == "routes" and type(self).retrieved is FrozenViT.retrieved:
            raise ValueError("readout='routes' needs routing layers, which are not here.")
        check_architecture(backbone)
        check_whole("num_classes", num_classes)
        check_choice("readout", readout, self.readouts)
        check_mapping("head_options", head_options)
        check_flag("frozen", frozen)
        check_number("mean_centre", mean_centre, above=0, optional=True)
        self.backbone = backbone
        self.frozen = frozen
        self.readout = readout
        self.depth = len(backbone.blocks)
        self.dim = int(backbone.embed_dim)
        self.num_prefix_tokens = int(backbone.num_prefix_tokens)
        self.pooling = pooling(backbone)
        if self.pooling != "token" and (readout != "mean" or hasattr(self, "query")):
            how = {"avg": "the mean patch", "map": "its attention pooling"}
            warnings.warn(
                "The backbone has no class token: where a method reads one or asks by it, "
                f"{how.get(self.pooling, self.pooling)} stands in its place",
                FitWarning,
                stacklevel=2,
            )
        self.readout_blocks = parse_blocks(readout_blocks, self.depth, "readout_blocks")
        self.mean_centre = mean_centre
        weights = None
        if mean_centre is not None:
            weights = centre_prior(backbone.patch_embed.grid_size, mean_centre, 0).softmax(0)
        # Given by an option and the images' size, so it is not part of the state.
        self.register_buffer("patch_weights", weights, persistent=False)
        backbone.requires_grad_(not frozen)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.head = (
            head
            if isinstance(head, Head)
            else create_head(head, self.feature_width(), num_classes, **(head_options or {}))
        )
        _check_head(self.head, self.feature_width(), num_classes)
        # A closed form has no gradient with which prompts could learn: they learn through a head
        # of their own, and predictions come from the closed form.
        self.training_head: Head | None = None
        self._name = next(_NAMES)
        self._digest: tuple[int, str] | None = None
        self._earlier: set[int] = set()  # numbers of classes that it had before it grew
        self.train(self.training)

    def add_training_head(self) -> None:
        """Give a model with trained prompts and a closed-form head a head for the prompts' loss.

        The strategy calls it; a model that trains nothing but its head needs none.
        """
        learns = not self.frozen or any(self.prompt_groups().values())
        if learns and self.head.closed_form and self.training_head is None:
            head = create_head("white", self.feature_width(), self.num_classes)
            self.training_head = head.to(self.seen.device).train(self.training)

    def training_logits(self, features: Tensor, held_fixed: bool = False) -> Tensor:
        """What the loss is taken of: :meth:`logits`, through the head that the prompts learn by.

        :param features: [B, F].
        :param held_fixed: whether the head gets no gradient.
        :returns: [B, C].
        """
        own = self.head
        self.head = self.training_head or own
        try:
            with held(self.head) if held_fixed else nullcontext():
                return self.logits(features)
        finally:
            self.head = own

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

    def extra_tokens(self) -> Tensor | None:
        """Tokens [B or 1, E, D] that go through all blocks with the image's own; none here."""
        return None

    def prompt_loss(self) -> Tensor | None:
        """What the last training forward adds to the loss (a scalar), such as L2P's key term."""
        return None

    def logits(self, features: Tensor) -> Tensor:
        """Features [B, F] -> raw logits [B, C], through ``self.head``."""
        return self.head(features)

    def retrieved(self, forwarded: Forwarded) -> list[Tensor]:
        """What "routes" adds: patterns [B, L, D] of the read-out blocks; none here."""
        return []

    def route_width(self) -> int:
        """Width that ``retrieved`` adds to the features."""
        return 0

    def prompt_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of the prompts by kind: all but the backbone's and the heads'."""
        other = ("backbone", "head", "training_head")
        parts = [part for name, part in self.named_children() if name not in other]
        own = dict.fromkeys([*self.parameters(False), *nn.ModuleList(parts).parameters()])
        trained = [p for p in own if p.requires_grad]
        return {"prompt": trained} if trained else {}

    # -- the shared path ----------------------------------------------------------------------

    def feature_width(self) -> int:
        """Width F of the features that the head gets."""
        if self.readout in ("cls", "mean"):
            return self.dim
        width = self.dim * (1 if self._pools_the_mean() else 2)
        if self.readout == "cls+mean":
            return width
        width += len(self.readout_blocks) * self.dim * (2 if self.pooling == "token" else 1)
        return width + (self.route_width() if self.readout == "routes" else 0)

    def _pools_the_mean(self) -> bool:
        """Whether the backbone's own pooling is the mean patch as it is read here."""
        with_prefix = getattr(self.backbone, "pool_include_prefix", False)
        return self.pooling == "avg" and not with_prefix and self.mean_centre is None

    def _mean_patch(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, self.num_prefix_tokens :]
        if self.patch_weights is None:
            return patches.mean(1)
        return self.patch_weights.to(patches.dtype) @ patches

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, F] for the head.

        Without trained prompts a test batch has the same features after each experience: in
        evaluation on the CPU they are computed once and found again by the images' own bytes.
        Weights changed in place are noticed, unless it was through ``.data``: PyTorch does not
        count that, so :meth:`renew_name` has to be called after it.
        """
        if self.frozen and not self.prompted_blocks() and not self.prompt_groups():
            kind = f"{self.readout} {self.readout_blocks} {self.mean_centre or ''}".rstrip()
            # What a subclass reads in its own way is its own.
            own = any(getattr(type(self), f) is not getattr(FrozenViT, f) for f in _READING)
            return self.remembered(images, self._features, "" if own else kind)
        return self._features(images)

    def frozen_query(self, images: Tensor) -> Tensor:
        """What stands for an image [B, D] in the plain backbone, without gradient: L2P's query.

        It is the class token, or the backbone's own pooling where there is none.

        A second forward pass in training; test batches are looked up (:mod:`.feature_cache`).
        """
        return self.remembered(images, self._frozen_query, "cls ()")

    @torch.no_grad()
    def _frozen_query(self, images: Tensor) -> Tensor:
        return summary(self.backbone, forward_blocks(self.backbone, images).tokens)

    def remembered(
        self, images: Tensor, compute: Callable[[Tensor], Tensor], kind: str = ""
    ) -> Tensor:
        """``compute(images)``, which must be a function of the images and frozen weights alone.

        :param kind: names what is computed from the images and the backbone; every model on the
            same backbone that gives the same name shares it. "" if the model's other tensors
            enter too.
        """
        usual = images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        learns = self.training or torch.is_grad_enabled()
        usual = usual and self.remembers and not MEMORY.off
        if not usual or (learns and not (kind and MEMORY.training)):
            return compute(images)
        who = None if is_watched(images) else self._who(shared=bool(kind))
        if who is None:
            return compute(images)
        digests = image_digests(images)
        if not kind:
            key = hashlib.blake2b(b"".join(digests), digest_size=16, key=who.encode()[:64])
            return MEMORY.get(key.hexdigest(), lambda: compute(images))
        with_cls = kind.startswith(("cls+mean ", "layers ")) and not self._pools_the_mean()
        return MEMORY.rows(
            digests,
            f"{who} {kind}",
            lambda: compute(images),
            # The class token comes first: methods that read it alone have it too.
            part=(f"{who} cls ()", self.dim) if with_cls else None,
            charge=self.training,
        )

    def _who(self, shared: bool) -> str | None:
        """What tells two backbones apart, or else two models at two times of their training.

        A tensor counts its changes in place: weights that were changed answer anew. None if more
        than tensors and settings decides the features, or somebody looks at how they are made.
        """
        backbone = self.backbone
        if self.frozen and any(p.requires_grad for p in backbone.parameters()):
            return None
        if not shared:
            own = (module for module in self.modules() if module is not self)
            now = fingerprint(own, itertools.chain(self.parameters(), backbone.buffers()))
            return None if now is None else f"{self._name} {now}"
        tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
        now = fingerprint(backbone.modules(), tensors.values())
        if now is None:
            return None
        if self._digest is None or self._digest[0] != now:
            digest = hashlib.blake2b(f"{backbone} {settings(backbone)}".encode(), digest_size=16)
            for name, tensor in tensors.items():
                digest.update(name.encode() + _bytes(tensor))
            self._digest = now, digest.hexdigest()
        return self._digest[1]

    def renew_name(self) -> None:
        """What was remembered of this model is out of date."""
        self._name = next(_NAMES)
        self._digest = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.renew_name()
        seen = state_dict.get(prefix + "seen")
        if isinstance(seen, Tensor) and len(seen) in self._earlier:
            self._fill_up(state_dict, prefix, len(seen))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _fill_up(self, state_dict: dict[str, Any], prefix: str, classes: int) -> None:
        """Give a state from before the model grew the classes that have come since, as unseen.

        Early stopping goes back to such a state. The optimizer holds the rows of those classes, so
        they stay, as they are; what was counted of them is nothing.
        """
        parameters = dict(self.named_parameters())
        for name, own in {**parameters, **dict(self.named_buffers())}.items():
            value = state_dict.get(prefix + name)
            if not isinstance(value, Tensor) or not own.dim() or len(own) != self.num_classes:
                continue
            if value.shape == (classes, *own.shape[1:]):
                filled = own.detach().clone() if name in parameters else torch.zeros_like(own)
                filled[:classes] = value
                state_dict[prefix + name] = filled

    def forget(self) -> None:
        """Drop what the last forward left for the loss, with its graph."""
        for name in self.transient:
            setattr(self, name, None)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with a graph cannot be copied, and plugins copy the model while training.
        return {**self.__dict__, **dict.fromkeys(self.transient), "_digest": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.renew_name()

    def _features(self, images: Tensor) -> Tensor:
        multi = self.readout in ("layers", "routes")
        forwarded = forward_blocks(
            self.backbone,
            images,
            self.prompt,
            self.prompted_blocks(),
            collect=self.readout_blocks if multi else (),
            frozen=self.frozen,
            extra=self.extra_tokens(),
        )
        return self.read(forwarded)

    def read(self, forwarded: Forwarded) -> Tensor:
        """The read-out of a forward: [B, F]."""
        vit, tokens = self.backbone, forwarded.tokens
        if self.readout == "cls":
            return summary(vit, tokens)
        mean = final_norm(vit, self._mean_patch(tokens))
        if self.readout == "mean":
            return mean
        parts = [mean] if self._pools_the_mean() else [summary(vit, tokens), mean]
        if self.readout in ("layers", "routes"):
            for index in self.readout_blocks:
                normed = F.layer_norm(forwarded.collected[index], (self.dim,))
                if self.pooling == "token":
                    parts.append(normed[:, 0])
                parts.append(self._mean_patch(normed))
            if self.readout == "routes":
                for found in self.retrieved(forwarded):
                    parts.append(F.layer_norm(found, (self.dim,)).flatten(1))
        return torch.cat(parts, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> raw logits [B, C]; mask them by ``seen``."""
        return self.logits(self.features(images))

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
            self._earlier.add(self.num_classes)
            self.head.grow(num_classes)
            if self.training_head is not None:
                self.training_head.grow(num_classes)

    def check_method(self) -> None:
        """Refuse a model whose prompts would silently not be used, not be trained or not be saved.

        :raises UsageError: naming the class and what it lacks.
        """
        kind, name = type(self), type(self).__name__
        gives = kind.prompt is not FrozenViT.prompt
        if gives is not (kind.prompted_blocks is not FrozenViT.prompted_blocks):
            has, lacks = ("prompt", "prompted_blocks")[:: 1 if gives else -1]
            raise UsageError(f"{name} has {has} and no {lacks}: no block would get a prompt.")
        grouped = {id(p) for group in self.parameter_groups().values() for p in group}
        for key, parameter in self.named_parameters():
            if parameter.requires_grad and id(parameter) not in grouped:
                raise UsageError(
                    f"prompt_groups of {name} must have every trained parameter, and {key!r} is in "
                    "none of its lists."
                )
        for key, value in vars(self).items():
            several = value if isinstance(value, (list, tuple)) else [value]
            if isinstance(value, dict) and not key.startswith("_"):
                several = list(value.values())
            if key not in self.transient and any(isinstance(v, Tensor) for v in several):
                raise UsageError(
                    f"{name}.{key} is a tensor that is neither saved nor moved to a device: make "
                    "it a parameter or a buffer, or name it in transient."
                )

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

    def own_gradient_steps(self) -> int | None:
        """Gradient steps that the model made by itself; None leaves them to the strategy."""
        return None

    def max_experiences(self) -> int | None:
        """For how many experiences it has room, if it follows them; None is any number."""
        return None

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
