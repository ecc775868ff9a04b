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
import inspect
import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blocks import FitWarning, parse_blocks
from avalanche_rwf.models.blockwise import Forwarded, Prompt, forward_blocks, full_precision
from avalanche_rwf.models.families import ViT, final_norm, pooling, summary
from avalanche_rwf.models.feature_cache import (
    MEMORY,
    arithmetic,
    fingerprint,
    image_digests,
    is_watched,
    settings,
)
from avalanche_rwf.models.heads import Head, create_head, held
from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.utils.device import to_device
from avalanche_rwf.utils.validation import Choice, Flag, Number, Options, Whole, takes

__all__ = ["READOUTS", "FrozenViT", "Selection", "optional"]

READOUTS = ("cls", "mean", "cls+mean", "layers", "routes")
_NAMES = itertools.count()
# The functions that make features of images.
_READING = (
    *("_encode", "query", "select", "read", "retrieved", "extra_tokens", "_mean_patch", "prompt"),
)
# Methods that subclasses override: earlier name -> present name.
_RENAMED = {"features": "encode", "prompt_loss": "auxiliary_loss", "transient": "Selection"}
_S = TypeVar("_S", bound="Selection")


@dataclass(frozen=True)
class Selection:
    """What a model selected for the images of one forward, which its loss and statistics need.

    A method subclasses it with tensors as fields, each with one row per image: [B, ...]. A scalar
    is of the whole batch.
    """

    def rows(self: _S, start: int, stop: int) -> _S:
        """The selection of some of the images."""
        return self._mapped(lambda value: value[start:stop] if value.dim() else value)

    def detach(self: _S) -> _S:
        """The selection without its graph."""
        return self._mapped(Tensor.detach)

    def _mapped(self: _S, change: Callable[[Tensor], Tensor]) -> _S:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if isinstance(v, Tensor)})


def optional(selection: Selection | None) -> tuple[Selection, ...]:
    """The argument for a method that a model without :meth:`FrozenViT.select` may not have."""
    return () if selection is None else (selection,)


def _check_head(head: Head, width: int, num_classes: int) -> None:
    """Refuse a head that was made for other features or classes."""
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.shape[-1] != width:
        raise UsageError(f"head must take {width} features, and it takes {weight.shape[-1]}.")
    if head.num_classes != num_classes:
        raise UsageError(
            f"head must have num_classes={num_classes} classes, and it has {head.num_classes}."
        )


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all below it, in a tenth of the time of ``modules()``."""
    left: list[nn.Module | None] = [module]
    while left:
        if (one := left.pop()) is not None:
            yield one
            left.extend(one._modules.values())


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
    :param head: a name of ``avalanche-rwf list heads``, or a :class:`Head`.
    :param readout: "cls", "mean", "cls+mean", "layers" or "routes": what of the tokens the head
        gets.
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
    use_cache = True
    # Whether the backward pass computes blocks again, see :func:`forward_blocks`.
    recompute = False
    # Whether the prompts stay as they are, so that test features may be looked up.
    prompts_held = False
    # Whether training follows the experiences; such a model has `begin_experience`.
    uses_boundaries = False

    @takes(
        backbone=A_BACKBONE,
        num_classes=Whole(),
        head_options=Options(optional=True),
        frozen=Flag(),
        mean_centre=Number(above=0, optional=True),
    )
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
        Choice(self.readouts).check("readout", readout)
        self.backbone = backbone
        self.frozen = frozen
        self.readout = readout
        self.depth = len(backbone.blocks)
        self.dim = int(backbone.embed_dim)
        self.num_prefix_tokens = int(backbone.num_prefix_tokens)
        self.pooling = pooling(backbone)
        if self.pooling != "token" and (readout != "mean" or self._selects()):
            how = {"avg": "the mean patch", "map": "its attention pooling"}
            warnings.warn(
                "The backbone has no class token: where a method reads one or asks by it, "
                f"{how.get(self.pooling, self.pooling)} stands in its place",
                FitWarning,
                stacklevel=3,
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

    def training_logits(
        self, features: Tensor, freeze_head: bool = False, selection: Selection | None = None
    ) -> Tensor:
        """What the loss is taken of: :meth:`logits`, through the head that the prompts learn by.

        :param features: [B, F].
        :param freeze_head: whether the head gets no gradient.
        :param selection: what :meth:`encode` gave with them.
        :returns: [B, C].
        """
        own = self.head
        self.head = self.training_head or own
        try:
            with held(self.head) if freeze_head else nullcontext():
                return self.logits(features, *optional(selection))
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

    def query(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> what :meth:`select` asks by, [B, D], without gradient.

        Here the plain backbone's class token: a second forward pass in training.
        """
        return self.frozen_query(images)

    def select(self, query: Tensor, training: bool) -> Selection | None:
        """Choose or mix the prompts of a batch by its queries [B, D]; nothing here.

        What it returns is given to all that follows in the same step: :meth:`prompt`,
        :meth:`extra_tokens`, :meth:`logits`, :meth:`observe` and :meth:`auxiliary_loss`.
        """
        return None

    def prompt(self, block: int, tokens: Tensor, *args: Any, **kwargs: Any) -> Prompt | None:
        """The prompt for one block, from the tokens [B, N, D] that enter it.

        It is ``prompt(block, tokens, selection)`` where :meth:`select` gives a selection, and
        ``prompt(block, tokens)`` otherwise.
        """
        return None

    def extra_tokens(self, selection: Any) -> Tensor | None:
        """Tokens [B or 1, E, D] that go through all blocks with the image's own; none here."""
        return None

    def auxiliary_loss(self, selection: Any) -> Tensor | None:
        """What a training step adds to the loss (a scalar), such as L2P's key term."""
        return None

    def logits(self, features: Tensor, selection: Any = None) -> Tensor:
        """Features [B, F] -> raw logits [B, C], through ``self.head``."""
        return self.head(features)

    def retrieved(self, forwarded: Forwarded) -> list[Tensor]:
        """What "routes" adds: patterns [B, L, D] of the read-out blocks; none here."""
        return []

    def collected_blocks(self) -> Sequence[int]:
        """Blocks whose entering tokens ``read`` needs; the depth: what leaves the last block."""
        return self.readout_blocks if self.readout in ("layers", "routes") else ()

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
        """Images [B, 3, H, W] -> features [B, F] for the head; :meth:`encode` does the work."""
        return self.encode(images)[0]

    def encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Images [B, 3, H, W] -> features [B, F] and what was selected for them.

        Without trained prompts a test batch has the same features after each experience: in
        evaluation on the CPU they are computed once and found again by the images' own bytes.
        Weights changed in place are noticed, unless it was through ``.data``: PyTorch does not
        count that, so :meth:`invalidate_cache` has to be called after it.
        """
        if not self._stays():
            return self._encode(images)
        selection = None

        def compute(images: Tensor) -> Tensor:
            nonlocal selection
            features, selection = self._encode(images)
            return features

        return self.cached(images, compute, self._shared()), selection

    def _stays(self) -> bool:
        """Whether an image has the same features throughout."""
        changing = self.prompt_groups() or (self.prompted_blocks() and not self.prompts_held)
        return self.frozen and not changing and not self._selects()

    def _shared(self) -> str:
        """What names the features for every model on this backbone; "" if they are its own."""
        if any(getattr(type(self), f) is not getattr(FrozenViT, f) for f in _READING):
            return ""
        return f"{self.readout} {self.readout_blocks} {self.mean_centre or ''}".rstrip()

    def shared_width(self) -> int:
        """Width of the features that other models on this backbone find; 0 if there are none."""
        return self.feature_width() if self._stays() and self._shared() else 0

    def frozen_query(self, images: Tensor) -> Tensor:
        """What stands for an image [B, D] in the plain backbone, without gradient: L2P's query.

        It is the class token, or the backbone's own pooling where there is none.

        A second forward pass in training; test batches are looked up (:mod:`.feature_cache`).
        """
        return self.cached(images, self._frozen_query, "cls ()")

    @torch.no_grad()
    def _frozen_query(self, images: Tensor) -> Tensor:
        return summary(self.backbone, forward_blocks(self.backbone, images).tokens)

    def cached(
        self, images: Tensor, compute: Callable[[Tensor], Tensor], kind: str = ""
    ) -> Tensor:
        """``compute(images)``, which must be a function of the images and frozen weights alone.

        :param kind: names what is computed from the images and the backbone; every model on the
            same backbone that gives the same name shares it. "" if the model's other tensors
            enter too.
        """
        learns = self.training or torch.is_grad_enabled()
        usual = self.use_cache and not MEMORY.off and images.device.type in ("cpu", "cuda")
        if not usual or (learns and not (kind and MEMORY.training)):
            return compute(images)
        who = None if is_watched(images) else self._cache_key(shared=bool(kind))
        if who is None:
            return compute(images)
        who = f"{who} {arithmetic(images.device)}"
        digests = image_digests(images)
        if not kind:
            key = hashlib.blake2b(b"".join([who.encode(), *digests]), digest_size=16)
            return MEMORY.get(key.hexdigest(), lambda: compute(images))
        with_cls = kind.startswith(("cls+mean ", "layers ")) and not self._pools_the_mean()
        rows = MEMORY.rows(
            digests,
            f"{who} {kind}",
            lambda: compute(images),
            # The class token comes first: methods that read it alone have it too.
            part=(f"{who} cls ()", self.dim) if with_cls else None,
            charge=self.training,
        )
        return rows if rows.device == images.device else to_device(rows, images.device)

    def _cache_key(self, shared: bool) -> str | None:
        """A key for looking features up: another one for each backbone, or moment of training.

        It holds the tensors' counts of changes in place, so changed weights have another key. None
        if more than tensors and settings decides the features, or something such as a hook
        observes how they are computed.
        """
        modules = list(_modules(self.backbone))
        weights = [p for m in modules for p in m._parameters.values() if p is not None]
        if self.frozen and any(p.requires_grad for p in weights):
            return None
        if not shared:
            # A head comes after the features; what it counts is not in them.
            heads = {*self.head.modules(), *(self.training_head or nn.Module()).modules()}
            own = (m for m in _modules(self) if m is not self and m not in heads)
            now = fingerprint(own, self.parameters())
            return None if now is None else f"{self._name} {now}"
        now = fingerprint(modules)
        if now is None:
            return None
        if self._digest is None or self._digest[0] != now:
            vit = self.backbone
            digest = hashlib.blake2b(f"{vit} {settings(vit)}".encode(), digest_size=16)
            for name, tensor in itertools.chain(vit.named_parameters(), vit.named_buffers()):
                digest.update(name.encode() + _bytes(tensor))
            self._digest = now, digest.hexdigest()
        return self._digest[1]

    def invalidate_cache(self) -> None:
        """Use no features that were stored of this model before."""
        self._name = next(_NAMES)
        self._digest = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.invalidate_cache()
        seen = state_dict.get(prefix + "seen")
        if isinstance(seen, Tensor) and len(seen) in self._earlier:
            self._pad_classes(state_dict, prefix, len(seen))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _pad_classes(self, state_dict: dict[str, Any], prefix: str, classes: int) -> None:
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.invalidate_cache()

    def _selects(self) -> bool:
        return type(self).select is not FrozenViT.select

    def _encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        selection = None
        if self._selects():
            query = full_precision(self.query(images))
            # bfloat16 is too coarse for distances near 1 and counts above 256.
            with torch.autocast(images.device.type, enabled=False):
                selection = self.select(query, self.training)
        return self.read(self._forward_blocks(images, selection)), selection

    def _forward_blocks(self, images: Tensor, selection: Selection | None) -> Forwarded:
        given = optional(selection)
        return forward_blocks(
            self.backbone,
            images,
            lambda block, tokens: self.prompt(block, tokens, *given),
            self.prompted_blocks(),
            collect=self.collected_blocks(),
            frozen=self.frozen,
            extra=self.extra_tokens(selection),
            recompute=self.recompute,
        )

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
        features, selection = self.encode(images)
        return self.logits(features, *optional(selection))

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Take in a training batch: mark its classes as seen, give the heads their statistics.

        :param features: [B, F], without gradient.
        :param targets: [B].
        :param selection: what :meth:`encode` gave with the features.
        """
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
        for base in kind.__mro__[: kind.__mro__.index(FrozenViT)]:
            for old, new in _RENAMED.items():
                if old in vars(base):
                    raise UsageError(
                        f"{name}.{old} would never be called: it is {new} in this version."
                    )
        gives = kind.prompt is not FrozenViT.prompt
        if gives is not (kind.prompted_blocks is not FrozenViT.prompted_blocks):
            has, lacks = ("prompt", "prompted_blocks")[:: 1 if gives else -1]
            raise UsageError(f"{name} has {has} and no {lacks}: no block would get a prompt.")
        beyond = [block for block in self.prompted_blocks() if block not in range(self.depth)]
        if beyond:
            raise UsageError(
                f"prompted_blocks of {name} must be from 0 to {self.depth - 1}, the blocks of the "
                f"backbone, not {beyond[0]!r}."
            )
        given = ["block", "tokens", *(["selection"] if self._selects() else [])]
        try:
            inspect.signature(self.prompt).bind(*given)
        except TypeError:
            raise UsageError(f"{name}.prompt must take {', '.join(given)}.") from None
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
            if any(isinstance(v, Tensor) for v in several):
                raise UsageError(
                    f"{name}.{key} is a tensor that is neither saved nor moved to a device: make "
                    "it a parameter or a buffer, or a field of the Selection that select returns."
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
        if not isinstance(mode, bool):
            return super().train(mode)  # PyTorch's error
        self.training = mode
        for child in self.children():
            if child is not self.backbone:
                child.train(mode)
        if any(module.training for module in _modules(self.backbone)):
            self.backbone.eval()
        return self

    def to(self, *args: Any, **kwargs: Any) -> FrozenViT:
        """As in PyTorch; of a model that is on the device already, nothing is touched.

        Avalanche asks for it at each (sub-)experience, which may be a single mini-batch.
        """
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and dtype is None and memory_format is None:
            device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
            tensors = (
                tensor
                for module in _modules(self)
                for tensor in (*module._parameters.values(), *module._buffers.values())
            )
            if all(tensor is None or tensor.device == device for tensor in tensors):
                return self
        return super().to(*args, **kwargs)

    def state_without_backbone(self) -> dict[str, Tensor]:
        """The state dict less the frozen backbone's tensors (all of it when fine-tuning)."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not (self.frozen and name.startswith("backbone."))
        }
