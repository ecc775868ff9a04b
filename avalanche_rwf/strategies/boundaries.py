"""For the boundary-aware originals of DualPrompt and CODA-Prompt: a model that is told of tasks."""

from __future__ import annotations

from typing import Any

from avalanche_rwf.strategies.base import FrozenBackboneStrategy

__all__ = ["BoundaryAwareStrategy"]


class BoundaryAwareStrategy(FrozenBackboneStrategy):
    """Tells the model (``begin_experience()``) when training reaches another experience.

    Adam's state begins anew for ``model.begins_anew()``, as the originals make their optimizer
    anew: old momentum would go on moving what the model holds from then on.

    Sub-experiences of one experience count as that one. Nothing else of an experience is read.
    """

    uses_boundaries = True

    def __init__(self, **kwargs: Any) -> None:
        self._experience: int | None = None
        super().__init__(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        origin = getattr(self.experience, "origin_experience", None)
        index = int((self.experience if origin is None else origin).current_experience)
        if index != self._experience:
            self._experience = index
            self.model.begin_experience()
            for parameter in self.model.begins_anew():
                self.optimizer.state.pop(parameter, None)
