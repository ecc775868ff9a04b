r"""CODA-Prompt: each block's prompt is a sum of components, weighed by attention to the query.

.. math:: a_m = \cos(q \odot A_m, K_m), \qquad p = \sum_m a_m P_m, \qquad
          (p_K, p_V) = \text{halves of } p \text{ along its length}

with q the class token of the plain backbone; no softmax, any sign. Optionally an orthogonality
loss, the sum over X in {P, K, A} of the mean of (X X^T - I)^2; its published weight is 0.1, that
of the authors' present code 0. Components start orthonormal (Gram-Schmidt).

``slices`` says which components learn:

- ``"all"`` (default): all M from the start. No boundaries; the form of online papers. M is 10, the
  number that the original trains at a time: what is added up moves with the number of its parts
  (``docs/baselines.md``).
- ``"task"``: the original. Experience t trains slice t of M / `tasks` components, orthogonal to the
  earlier ones, which are used but held; later ones are not used yet. Reads where an experience
  begins. Each slice is a parameter of its own: held ones get no gradient at all, so Adam's
  momentum cannot go on moving them, and no optimizer needs to be made anew.

Forward passes per training image: 2.

Source: Smith et al., CVPR 2023 (arXiv 2211.13218), from the equations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.methods.prompting import INSERTS, TaskViT, named_blocks
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blocks import DefaultBlocks
from avalanche_rwf.models.blockwise import PrefixPrompt, Prompt, TokenPrompt
from avalanche_rwf.models.classifier import Selection
from avalanche_rwf.models.families import ViT, class_position
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Choice, Number, Whole, takes


def _orthonormal(rows: Tensor, beside: Tensor | None = None) -> Tensor:
    """Gram-Schmidt: rows [m, width] made orthonormal, and orthogonal to those of `beside`."""
    fixed = rows[:0] if beside is None else beside
    return torch.linalg.qr(torch.cat([fixed, rows]).T).Q.T[len(fixed) :].contiguous()


class _Slice(nn.Module):
    """Components, keys and attention vectors of one slice, for all blocks."""

    def __init__(self, blocks: int, size: int, length: int, dim: int) -> None:
        super().__init__()
        for name, width in (("components", length * dim), ("keys", dim), ("attention", dim)):
            rows = torch.stack([_orthonormal(torch.randn(size, width)) for _ in range(blocks)])
            self.register_parameter(name, nn.Parameter(rows))


@dataclass(frozen=True)
class Weights(Selection):
    """The weights a of the components: [B, blocks, M]."""

    weights: Tensor


@register_model(
    "coda-prompt",
    summary="CODA-Prompt: composed prefixes; boundary-free (slices=task: the original)",
    paper="Smith et al., CODA-Prompt, arXiv 2211.13218",
    published={"slices": "task", "lr_head": 1e-3},
    lr=1e-3,
)
class CodaPromptViT(TaskViT):
    """Prompts composed from components on a frozen ViT.

    :param blocks: blocks with prompts.
    :param prompt_length: L; a prefix has L / 2 keys and L / 2 values.
    :param components: M, at most D. None is what leaves ten components to learn at a time, as
        published: 10, or 10 for each of `tasks` (less on a narrower backbone).
    :param insert: "prefix" or "token".
    :param ortho: weight of the orthogonality loss.
    :param slices: "all" or "task", see the module's text.
    :param tasks: slices that M is divided into with ``slices="task"``.
    :param options: of :class:`FrozenViT`.
    :raises ValueError: naming the argument that is out of range.
    """

    @takes(
        backbone=A_BACKBONE,
        prompt_length=Whole(),
        components=Whole(optional=True),
        insert=Choice(INSERTS),
        ortho=Number(least=0),
        slices=Choice(("all", "task")),
        tasks=Whole(),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        blocks: str | Collection[int] = DefaultBlocks("first 5"),
        prompt_length: int = 8,
        components: int | None = None,
        insert: str = "prefix",
        ortho: float = 0.0,
        slices: str = "all",
        tasks: int = 10,
        **options: Any,
    ) -> None:
        if components is None:
            components = min(10 * (tasks if slices == "task" else 1), int(backbone.embed_dim))
        if insert == "prefix" and prompt_length % 2:
            raise ValueError(f"prompt_length must be even for a prefix, not {prompt_length}.")
        if components > int(backbone.embed_dim):
            raise ValueError(
                f"components must be at most the width D = {backbone.embed_dim}, not {components}."
            )
        if slices == "task" and tasks > components:
            raise ValueError(f"tasks must be at most components={components}, not {tasks}.")
        self._blocks = named_blocks(blocks, backbone)
        super().__init__(backbone, num_classes, **options)
        self.insert = insert
        self.ortho = ortho
        self.uses_boundaries = slices == "task"
        self.prompt_length = prompt_length
        count = tasks if self.uses_boundaries else 1
        size = components // count
        self.slices = nn.ModuleList(
            _Slice(len(self._blocks), size, prompt_length, self.dim) for _ in range(count)
        )

    def prompted_blocks(self) -> Sequence[int]:
        """The blocks with prompts."""
        return self._blocks

    @torch.no_grad()
    def begin_experience(self) -> None:
        """With ``slices="task"``: hold the slices so far, start the next orthogonal to them.

        :raises ValueError: if there are more experiences than slices.
        """
        super().begin_experience()
        now = self.current_experience
        for name, parameter in self.slices[now].named_parameters():
            for i in range(len(self._blocks)):
                held = [getattr(s, name)[i] for s in list(self.slices)[:now]]
                rows, width = parameter[i].shape
                # No more directions are orthogonal than there are dimensions left.
                beside = torch.cat(held)[: width - rows] if held else None
                # From the rows it was made with: nothing random happens at a boundary.
                parameter[i] = _orthonormal(parameter[i], beside)

    def max_experiences(self) -> int:
        """As many as slices."""
        return len(self.slices)

    def _rows(self, name: str) -> Tensor:
        """Components, keys or attention vectors in use: [blocks, M', width]."""
        used = list(self.slices)[: self.current_experience + 1]
        rows = [getattr(s, name) for s in used]
        if self.uses_boundaries and self.training:
            rows = [*(r.detach() for r in rows[:-1]), rows[-1]]
        return torch.cat(rows, dim=1)

    def select(self, query: Tensor, training: bool) -> Weights:
        """The weights of the components for queries [B, D]."""
        attention, keys = self._rows("attention"), F.normalize(self._rows("keys"), dim=-1)
        # cos(q * A, K) = sum_d q_d A_d K_d / |q * A| : two products, no [B, M, D] tensor.
        inner = query @ (attention * keys).transpose(1, 2)
        squares = query.square() @ attention.square().transpose(1, 2)
        return Weights((inner / squares.clamp_min(1e-24).sqrt()).transpose(0, 1))

    def prompt(self, block: int, tokens: Tensor, selection: Weights) -> Prompt:
        """The block's own sum of components for each image: [B, L, D]."""
        i = self._blocks.index(block)
        mixed = selection.weights[:, i] @ self._rows("components")[i]
        p = mixed.unflatten(1, (self.prompt_length, self.dim))
        if self.insert == "token":
            return TokenPrompt(p + class_position(self.backbone))
        half = self.prompt_length // 2
        return PrefixPrompt(p[:, :half], p[:, half:])

    def auxiliary_loss(self, selection: Weights) -> Tensor | None:
        """The weighed orthogonality loss, None at weight 0."""
        if self.ortho == 0:
            return None
        loss = torch.zeros((), device=self.task.device)
        for name in ("components", "keys", "attention"):
            rows = self._rows(name)
            eye = torch.eye(rows.shape[1], device=rows.device)
            loss = loss + (rows @ rows.transpose(1, 2) - eye).square().mean((1, 2)).sum()
        return self.ortho * loss
