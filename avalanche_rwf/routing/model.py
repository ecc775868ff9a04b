"""The routed transformer: a frozen ViT with a routing layer in some of its blocks.

Source: Routing without Forgetting (arXiv 2603.09576).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blocks import DefaultBlocks, parse_blocks
from avalanche_rwf.models.blockwise import Forwarded, Prompt, forward_blocks
from avalanche_rwf.models.classifier import FrozenViT, Selection
from avalanche_rwf.models.families import ViT
from avalanche_rwf.models.heads import Head
from avalanche_rwf.routing.layer import RoutingDiagnostics, RoutingLayer
from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.routing.queries import principal_queries
from avalanche_rwf.utils.validation import Choice, Flag, Number, Whole, takes

__all__ = ["RoutedViT"]


def _prior(backbone: ViT, centre: float | None, given: Tensor | None) -> Tensor | None:
    """The prior over all tokens of an image: around its centre, or the one given."""
    prefix, patches = int(backbone.num_prefix_tokens), backbone.patch_embed
    if centre is not None:
        return centre_prior(cast("tuple[int, int]", patches.grid_size), centre, prefix)
    tokens = prefix + int(patches.num_patches)
    if isinstance(given, Tensor) and given.numel() != tokens:
        raise UsageError(
            f"log_prior must have one entry for each of the {tokens} tokens, not {given.numel()}."
        )
    return given


class RoutedViT(FrozenViT):
    """A frozen timm ViT whose `routed_blocks` get prompts retrieved from their own tokens.

    With ``num_prompts=0`` or no routed blocks it equals the plain backbone, bit for bit.

    :param backbone: a timm transformer of one of the :mod:`~avalanche_rwf.models.families`.
    :param num_classes: C.
    :param routed_blocks: "first 5", "last 3", "all", "none", "0,2" or indices.
    :param num_prompts: L per block.
    :param head: a name of ``avalanche-rwf list heads``, or a :class:`Head`.
    :param readout: "cls", "cls+mean", "layers" or "routes".
    :param insert_prompts: False retrieves for the read-out only and leaves the tokens alone.
    :param readout_blocks: blocks read by "layers" and "routes"; None is the routed ones.
    :param head_options: for a head by name.
    :param queries: "random", or "principal": set from the tokens of the first training batch.
        The controls' prompts (``source`` "mean" or "static") always start from that batch.
    :param centre: width of a prior over the patches around the image's centre, in halves of a
        side (:func:`centre_prior`), with which every layer retrieves; None is uniform over all
        tokens.
    :param recompute: compute every second block again in the backward pass, from the tokens that
        entered it: the same bits, with less memory and more time.
    :param routing: further options of :class:`RoutingLayer`.
    :raises UsageError: if a setting is not one of those it takes.
    :raises ValueError: if ``readout="routes"`` does not read all routed blocks, or if there are
        more principal queries than 2 D.

    >>> from avalanche_rwf import PACKAGED, create_backbone
    >>> model = RoutedViT(create_backbone(PACKAGED), 10, routed_blocks="0,2", num_prompts=4)
    >>> model(torch.rand(2, 3, 32, 32)).shape, model.routed_blocks()
    (torch.Size([2, 10]), (0, 2))
    """

    waits: Tensor

    @takes(
        backbone=A_BACKBONE,
        num_prompts=Whole(least=0),
        insert_prompts=Flag(),
        queries=Choice(("random", "principal")),
        centre=Number(above=0, optional=True),
        recompute=Flag(),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        routed_blocks: str | Collection[int] = DefaultBlocks("first 5"),
        num_prompts: int = 10,
        head: str | Head = "white",
        readout: str = "cls+mean",
        insert_prompts: bool = True,
        readout_blocks: str | Collection[int] | None = None,
        head_options: dict[str, Any] | None = None,
        queries: str = "random",
        centre: float | None = None,
        recompute: bool = False,
        **routing: Any,
    ) -> None:
        depth = len(backbone.blocks)
        dim = int(backbone.embed_dim)
        blocks = parse_blocks(routed_blocks, depth, "routed_blocks")
        self._routed = blocks if num_prompts > 0 else ()
        self._num_prompts = num_prompts
        self.insert_prompts = insert_prompts
        self.recompute = recompute
        super().__init__(
            backbone,
            num_classes,
            head=head,
            readout=readout,
            readout_blocks=blocks if readout_blocks is None else readout_blocks,
            head_options=head_options,
        )
        if readout == "routes" and not set(self._routed) <= set(self.readout_blocks):
            raise ValueError(
                f"readout='routes' reads blocks {self.readout_blocks}, which must include the "
                f"routed ones {self._routed}."
            )
        routing["log_prior"] = _prior(backbone, centre, routing.get("log_prior"))
        self.layers = nn.ModuleDict(
            {str(i): RoutingLayer(dim, num_prompts, **routing) for i in self._routed}
        )
        for i in self._routed:
            layer = self.layer(i)
            if layer.insert == "prefix":
                layer.start_prefix_at(backbone.blocks[i])
        # Whether the layers still wait for the first training batch to start from.
        control = any(self.layer(i).source != "tokens" for i in self._routed)
        self.register_buffer("waits", torch.tensor(queries == "principal" or control))
        self.queries_from_data = queries == "principal"
        self._waits = bool(self.waits)  # on the host: a step must not wait for the device
        if queries == "principal" and num_prompts > 2 * dim:
            raise ValueError(f"num_prompts must be at most 2 D = {2 * dim}, not {num_prompts}.")
        if not insert_prompts:
            self.layers.requires_grad_(False)  # no loss reaches what is only read

    def encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Images [B, 3, H, W] -> features [B, F]; the first training batch may set the queries."""
        if self.training and self._waits:
            self._set_queries(images)
        return super().encode(images)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._waits = bool(self.waits)

    @torch.no_grad()
    def _set_queries(self, images: Tensor) -> None:
        forwarded = forward_blocks(self.backbone, images, collect=self._routed)
        for i in self._routed:
            layer, tokens = self.layer(i), forwarded.collected[i]
            if layer.source == "tokens":
                layer.queries.copy_(principal_queries(tokens, self._num_prompts))
            else:
                layer.start_at(tokens)
        self.waits.fill_(False)
        self._waits = False
        self.invalidate_cache()

    def layer(self, block: int) -> RoutingLayer:
        """The routing layer of one block."""
        return cast(RoutingLayer, self.layers[str(block)])

    def routed_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that have a routing layer."""
        return self._routed

    def prompted_blocks(self) -> Sequence[int]:
        """The routed blocks, unless retrieval is for the read-out only."""
        return self._routed if self.insert_prompts else ()

    def prompt(self, block: int, tokens: Tensor, selection: Any = None) -> Prompt | None:
        """The block's own routing layer on the tokens that enter it."""
        return self.layer(block).prompt(tokens)

    def route_width(self) -> int:
        """Routed blocks times L times D."""
        return len(self._routed) * self._num_prompts * self.dim

    def retrieved(self, forwarded: Forwarded) -> list[Tensor]:
        """The patterns [B, L, D] that each routed block's layer retrieves from its tokens."""
        return [self.layer(i).patterns(forwarded.collected[i]) for i in self._routed]

    def prompt_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of the routing layers by kind."""
        groups: dict[str, list[nn.Parameter]] = {}
        if self.insert_prompts:
            for i in self._routed:
                for kind, parameters in self.layer(i).parameter_groups().items():
                    groups.setdefault(kind, []).extend(parameters)
        return groups

    @torch.no_grad()
    def diagnose(self, images: Tensor) -> dict[int, RoutingDiagnostics]:
        """Association, entropy and free energy per routed block, for images [B, 3, H, W]."""
        forwarded = forward_blocks(
            self.backbone, images, self.prompt, self.prompted_blocks(), collect=self._routed
        )
        return {
            i: self.layer(i).diagnose(forwarded.collected[i]) for i in self._routed
        }
