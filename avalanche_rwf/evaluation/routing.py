r"""How routing and its prompts change over a stream, on a few images that stay the same.

For a probe image x, a routed block b and the t-th experience end, let :math:`p^t_{b,h,l}(x)` be the
association over the N tokens and :math:`P^t_{b,l}(x)` the prompt that slot l retrieves; t = 1 is
the first time the probe is read. Each metric is a mean over blocks, (heads,) slots and probe images
of

.. math::

    \text{routing\_entropy} &: H(p^t) / \log N \\
    \text{routing\_drift} &: 1 - \cos(p^t, p^1) \\
    \text{prompt\_drift} &: 1 - \cos(P^t, P^1) \\
    \text{prompt\_similarity} &: \cos(P^t_{b,l}, P^t_{b,m}),\ l \ne m

An entropy of 1 is a uniform association: nothing is routed. A drift of 0 is "without forgetting" in
the most literal sense: the image gets the prompts that it got when its class was learned. A
similarity of 1 is L copies of one prompt. The metrics are ours; the definitions of the association
and the prompts are those of Routing without Forgetting (arXiv 2603.09576).

Nothing here draws a random number or changes a module, so training ends with the same bits with and
without it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_rwf.evaluation.anytime import EmittedMetric
from avalanche_rwf.models.blockwise import forward_blocks
from avalanche_rwf.routing.layer import RoutingDiagnostics
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.utils.validation import Whole, takes

__all__ = [
    "ROUTING_METRICS",
    "PromptDrift",
    "PromptSimilarity",
    "Routes",
    "RoutingDrift",
    "RoutingEntropy",
    "RoutingProbe",
    "RoutingRecorder",
    "mean_cosine",
    "probe_images",
    "read_routes",
    "relative_entropy_of",
    "routing_metrics",
    "slot_similarity",
]

ROUTING_METRICS = ("routing_entropy", "routing_drift", "prompt_drift", "prompt_similarity")
PROBE_SIZE = 16
"""Images of a probe: their routes cost one forward pass of as many per experience."""


@dataclass(frozen=True)
class Routes:
    """What one block's routing layer did with a batch.

    :param prompts: [B, L, D].
    :param diagnostics: association, entropy and free energy; None for a control that retrieves
        nothing.
    """

    prompts: Tensor
    diagnostics: RoutingDiagnostics | None


@torch.no_grad()
def read_routes(model: RoutedViT, images: Tensor) -> dict[int, Routes]:
    """What each routed block retrieves for images [B, 3, H, W], by block, in one forward pass."""
    forwarded = forward_blocks(
        model.backbone,
        images,
        model.prompt,
        model.prompted_blocks(),
        collect=model.routed_blocks(),
    )
    routes = {}
    for block, tokens in forwarded.collected.items():
        layer = model.layer(block)
        routes[block] = Routes(
            prompts=layer(tokens).expand(len(images), -1, -1),
            diagnostics=layer.diagnose(tokens) if layer.source == "tokens" else None,
        )
    return routes


def relative_entropy_of(diagnostics: RoutingDiagnostics) -> Tensor:
    """Entropy as a share of the uniform association's, in [0, 1]: [B, H, L].

    A single token leaves no choice: 0.
    """
    tokens = diagnostics.association.shape[-1]
    return diagnostics.entropy / math.log(tokens) if tokens > 1 else 0 * diagnostics.entropy


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine of the vectors in the last dimension of two tensors of one shape."""
    return float(F.cosine_similarity(a.double(), b.double(), dim=-1).mean())


def slot_similarity(prompts: Tensor) -> float:
    """Mean cosine between two different prompts of an image: prompts [B, L, D]; NaN for L = 1."""
    unit = F.normalize(prompts.double(), dim=-1)
    slots = prompts.shape[-2]
    total = (unit @ unit.transpose(-2, -1)).sum((-2, -1)) - unit.square().sum((-2, -1))
    return float(total.mean()) / (slots * (slots - 1)) if slots > 1 else math.nan


@takes(size=Whole())
def probe_images(experience: Any, size: int = PROBE_SIZE) -> Tensor:
    """At most `size` images [P, 3, H, W] of a (test) experience, spread evenly over its classes.

    The first ones of each class in the data set's own order: nothing is drawn, and every method
    at one seed gets the same.

    :raises ValueError: if the experience has no samples or `size` is below 1.
    """
    data = experience.dataset
    targets = [int(y) for y in data.targets]
    if not targets:
        raise ValueError("A probe takes 1 image or more, not 0.")
    place: Counter[int] = Counter()
    ranked = []
    for index, target in enumerate(targets):
        ranked.append((place[target], index))
        place[target] += 1
    chosen = sorted(index for _, index in sorted(ranked)[:size])
    return torch.stack([data[index][0] for index in chosen])


class RoutingProbe:
    """Reads the routes of fixed images now and then, and compares them with the first time.

    :param images: [P, 3, H, W], as the model takes them; see :func:`probe_images`.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.first: dict[str, Tensor] = {}  # "<block>.prompts", "<block>.association"
        self._latest: tuple[Any, dict[str, float]] | None = None

    def measure(self, model: Any) -> dict[str, float]:
        """The metrics of a model, by name; those that it has none of are left out.

        :param model: a :class:`RoutedViT`; any other gives an empty dictionary.
        """
        if not isinstance(model, RoutedViT):
            return {}
        device = next(model.parameters()).device
        values: dict[str, list[float]] = {name: [] for name in ROUTING_METRICS}
        for block, routes in read_routes(model, self.images.to(device)).items():
            now = {"prompts": routes.prompts.cpu()}
            values["prompt_similarity"].append(slot_similarity(now["prompts"]))
            if routes.diagnostics is not None:
                now["association"] = routes.diagnostics.association.cpu()
                entropy = relative_entropy_of(routes.diagnostics)
                values["routing_entropy"].append(float(entropy.double().mean()))
            for name, drift in (("prompts", "prompt_drift"), ("association", "routing_drift")):
                if name in now:
                    first = self.first.setdefault(f"{block}.{name}", now[name].clone())
                    values[drift].append(1 - mean_cosine(now[name], first))
        means = {name: sum(found) / len(found) for name, found in values.items() if found}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def measure_at(self, strategy: Any) -> dict[str, float]:
        """:meth:`measure` of a strategy's model, once per place in its training."""
        place = (id(strategy.model), strategy.clock.train_iterations)
        if self._latest is None or self._latest[0] != place:
            self._latest = place, self.measure(strategy.model)
        return self._latest[1]

    def state_dict(self) -> dict[str, Any]:
        """What the first reading gave, loadable with ``torch.load(weights_only=True)``."""
        return {"first": dict(self.first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the first reading from :meth:`state_dict`."""
        self.first = dict(state["first"])
        self._latest = None


class RoutingRecorder:
    """Routing metrics at experience ends, on test images of the first experience's classes.

    Where a stream begins with experiences without samples, it is the first experience with some:
    before its end the images' classes have not been learned, and drift would be that from the
    initial values.

    The probe is read between training and evaluation; nothing is drawn, so the run's other numbers
    are the same without it.

    :param experience: the first test experience with samples.
    :param normalise: what is done to its images if they are uint8.
    """

    def __init__(self, experience: Any, normalise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        images = probe_images(experience)
        self.probe = RoutingProbe(normalise(images) if images.dtype == torch.uint8 else images)
        self.experience = int(experience.current_experience)
        self.rows: list[tuple[int, int, str, float]] = []  # as `metrics.metrics_csv` takes them

    def record(self, model: Any, samples_seen: int) -> None:
        """Read the probe."""
        values = self.probe.measure(model)
        place = (samples_seen, self.experience)
        self.rows += [(*place, name, value) for name, value in values.items()]

    def state_dict(self) -> dict[str, Any]:
        """Everything so far, for a checkpoint."""
        return {"probe": self.probe.state_dict(), "rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.probe.load_state_dict(state["probe"])
        self.rows = [(int(s), int(e), str(name), float(v)) for s, e, name, v in state["rows"]]


class _RoutingMetric(EmittedMetric):
    """One of the probe's metrics, emitted after each training experience if the model has it."""

    def __init__(self, probe: RoutingProbe) -> None:
        super().__init__()
        self.probe = probe

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Read the probe and emit the value."""
        value = self.probe.measure_at(strategy).get(self.name)
        return self.emit(strategy, value, add_experience=True)


class RoutingEntropy(_RoutingMetric):
    """Mean entropy of the association, as a share of the uniform one's."""

    name = "routing_entropy"


class RoutingDrift(_RoutingMetric):
    """One less the mean cosine of the association to its first value."""

    name = "routing_drift"


class PromptDrift(_RoutingMetric):
    """One less the mean cosine of the prompts to their first value."""

    name = "prompt_drift"


class PromptSimilarity(_RoutingMetric):
    """Mean cosine between two prompts of one image and block."""

    name = "prompt_similarity"


def routing_metrics(images: Tensor) -> list[PluginMetric[float]]:
    """All four metrics on one probe, for an ``EvaluationPlugin``::

        probe = probe_images(benchmark.test_stream[0])
        evaluator = EvaluationPlugin(*routing_metrics(probe), loggers=[InteractiveLogger()])

    :param images: [P, 3, H, W], as the model takes them.
    """
    probe = RoutingProbe(images)
    return [kind(probe) for kind in (RoutingEntropy, RoutingDrift, PromptDrift, PromptSimilarity)]
