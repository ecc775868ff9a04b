"""Any Avalanche strategy class by name: ``avalanche:EWC``, ``mymodule:MyStrategy``, ``my.py:Mine``.

The class is used as it is. It gets, by the names in its signature, what it asks for: ``model`` (a
:class:`FrozenViT` whose head is trained), ``optimizer`` (Adam on the head, kept over experiences),
``criterion``, ``num_classes``, ``backbone`` (instead of a model: the class builds its own) and
what every loop takes (batch sizes, device, plugins, evaluator). Its other keyword arguments with
plain defaults become options, besides the adapter's own ``head``, ``readout`` and ``lr``.

What is added to a class, and nothing else:

- classes that no training label has named yet are -inf at test. Avalanche masks nothing there, so
  that they could win; the seen mask at test is the same for all methods. The training loss is the
  class's own (``mask`` is recorded as "none", or "own" where it is not known to be so);
- labels of any kind of whole numbers are int64, and an evaluation leaves no trace in training
  (:mod:`.common`);
- its parameters are those that are trained: Avalanche puts all parameters of a model into the
  optimizer, and its plugins keep copies of all of them per experience;
- a run of it that was cut starts again: what its plugins hold (importances, old models, buffers)
  is in no checkpoint of ours.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import avalanche.training.supervised as supervised
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import SynapticIntelligencePlugin
from avalanche.training.templates import SupervisedTemplate
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.classifier import FrozenViT, Selection
from avalanche_rwf.models.heads import Head
from avalanche_rwf.models.lower import lowered
from avalanche_rwf.models.masks import mask_logits
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.common import CommonStrategy
from avalanche_rwf.strategies.loop_arguments import check_loop
from avalanche_rwf.strategies.registry import METHODS, MethodSpec
from avalanche_rwf.utils.registry import option_types
from avalanche_rwf.utils.user_code import import_code, origin_of
from avalanche_rwf.utils.validation import Number

PREFIX = "avalanche:"
_HEADS = ("linear", "cosine")


@dataclass(frozen=True)
class _Known:
    """What was found out about one of Avalanche's classes.

    :param summary: one line.
    :param defaults: values for arguments that have none, or whose default is of no use here.
    :param uses_boundaries: whether it does something at the beginning or end of an experience.
    :param mask: which classes compete in its training loss.
    """

    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uses_boundaries: bool = True
    mask: str = "none"


_BUFFER = {"mem_size": 200}
RUNNING: Mapping[str, _Known] = {
    "AGEM": _Known(
        "gradients projected so as not to raise the loss on a memory",
        {"patterns_per_exp": 64, "sample_size": 64},
    ),
    "CWRStar": _Known(
        "the head's rows trained per experience, then averaged by counts",
        {"cwr_layer_name": "head"},
    ),
    "DER": _Known("replay with stored logits (DER++)", {**_BUFFER}),
    "ER_ACE": _Known(
        "replay, new classes compete among themselves; its memory takes in an experience before "
        "it is trained on",
        {**_BUFFER},
        mask="own",
    ),
    "EWC": _Known("quadratic penalty by Fisher information", {"ewc_lambda": 1.0}),
    "FeatureReplay": _Known(
        "replay of stored features", {**_BUFFER, "last_layer_name": "head"}, mask="own"
    ),
    "GSS_greedy": _Known("replay of samples with different gradients", {**_BUFFER}),
    "LwF": _Known("distillation from the last model", {"alpha": 1.0, "temperature": 2.0}),
    "MAS": _Known("quadratic penalty by the outputs' sensitivity"),
    "MIR": _Known(
        "replay of what an update would harm most",
        {**_BUFFER, "subsample": 50, "batch_size_mem": 16},
    ),
    "Naive": _Known("cross-entropy over all classes, nothing against forgetting", {}, False),
    "Replay": _Known("replay of stored images", {**_BUFFER}),
    "StreamingLDA": _Known("streaming LDA, one sample at a time", {}, False),
    "SynapticIntelligence": _Known("quadratic penalty by the path integral", {"si_lambda": 1.0}),
}
"""Avalanche's strategies that run here; each was tried on a stream."""

_FEATURES = "it learns the features, which are frozen here"
_PASSES = "it is no single pass over the stream"
REFUSED: Mapping[str, str] = {
    "AETraining": "it trains an autoencoder and no classifier",
    "AR1": "it builds and downloads a network of its own",
    "BiC": "it calls a scheduler of PyTorch with an argument that is there no longer",
    "CoPE": _FEATURES,
    "Cumulative": f"{_PASSES}: it trains on all earlier experiences again",
    "ER_AML": _FEATURES,
    "ExpertGateStrategy": "it takes Avalanche's ExpertGate model alone",
    "FromScratchTraining": "it begins anew at each experience and so knows the last one only",
    "GDumb": f"{_PASSES}: it trains on its memory instead",
    "GEM": "it needs the solver quadprog, which Avalanche does not install",
    "GenerativeReplay": "its generator makes images of 28 x 28 pixels",
    "ICaRL": "Avalanche cannot join its memory to the data sets of the streams here",
    "JointTraining": f"{_PASSES}: it takes all experiences at once",
    "LFL": _FEATURES,
    "LearningToPrompt": "take avalanche-l2p-as-shipped, or avalanche-l2p, which is repaired",
    "MER": "it has a loop of its own and is no SupervisedTemplate",
    "PNNStrategy": "it takes Avalanche's PNN model alone",
    "PackNet": "it takes a PackNet model alone and needs the task at test",
    "SCR": _FEATURES,
    "VAETraining": "it trains an autoencoder and no classifier",
}
"""Avalanche's strategies that do not, and why."""


class _NoHead(Head):
    """Gives the features as they are, to a class that has a classifier of its own."""

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] as they are."""
        return features


class AdaptedViT(FrozenViT):
    """The model that an adapted class gets: ``model(images)`` is a tensor of raw logits [B, C].

    :param backbone: a timm ViT; frozen.
    :param num_classes: C.
    :param head: a name of ``HEADS`` that is trained, or a head.
    :param readout: "cls" or "cls+mean".
    :param precision: "fp32" or "bf16" (autocast of the backbone; features are float32).
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        *,
        head: str | Head = "linear",
        readout: str = "cls",
        precision: str = "fp32",
    ) -> None:
        super().__init__(backbone, num_classes, head=head, readout=readout)
        self.precision = precision

    def encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Images [B, 3, H, W] -> features [B, F] for the head."""
        bf16 = self.precision == "bf16"
        autocast = torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16)
        with autocast, lowered(self.backbone):
            return full_precision(super().encode(images)[0]), None

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """The trained parameters alone: frozen ones are no concern of optimizers and plugins."""
        return (
            (name, p) for name, p in super().named_parameters(*args, **kwargs) if p.requires_grad
        )


class _MarkSeen(SupervisedPlugin):
    """Marks the classes of the training labels as seen. Stands first: evaluation may follow."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Mark the mini-batch's classes."""
        strategy.seen_classes()[strategy.mb_y] = True


class _OwnCopies(SupervisedPlugin):
    """Makes Synaptic Intelligence's noted weights copies, as they are on a GPU.

    On the CPU Avalanche notes the weights themselves, ``param.detach().cpu()``: no step seems to
    move them, and nothing is held.

    :param plugin: Avalanche's, which comes before this one.
    """

    def __init__(self, plugin: SynapticIntelligencePlugin) -> None:
        super().__init__()
        self.plugin = plugin

    def _copy(self, strategy: Any, **kwargs: Any) -> None:
        for noted in (self.plugin.syn_data["old_theta"], self.plugin.ewc_data[0]):
            for one in noted.values():
                one.data = one.data.clone()

    before_training_exp = before_training_iteration = after_training_exp = _copy


class _OnFrozenViT(CommonStrategy):
    """Mixed into an adapted class: the seen mask at test, and no checkpoints."""

    step: ClassVar[tuple[str, ...]] = (*CommonStrategy.step, "_raw")

    model: Any
    mb_output: Any
    is_training: bool
    _seen: Tensor | None = None
    _raw: Any = None

    def seen_classes(self) -> Tensor:
        """Which classes a training label has named: bool [C], not a copy."""
        own = getattr(self.model, "seen", None)
        if isinstance(own, Tensor):
            return own
        assert self._seen is not None
        return self._seen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The class's own forward; at test, logits [B, C] of classes not seen yet are -inf."""
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if self.is_training or not isinstance(output, Tensor):
            return output
        self._raw = output
        # A head that grows has no column yet for what comes.
        return mask_logits(full_precision(output), self.seen_classes()[: output.shape[-1]])

    def criterion(self) -> Any:
        """The class's own loss; in evaluation of unmasked logits, to be finite for all classes."""
        if self.is_training or self._raw is None:
            return super().criterion()  # type: ignore[misc]
        masked, self.mb_output = self.mb_output, self._raw
        try:
            return super().criterion()  # type: ignore[misc]
        finally:
            self.mb_output = masked

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()  # type: ignore[misc]
        self._raw = None

    def _before_training(self, **kwargs: Any) -> None:
        # Some classes put training images through the model in eval mode: no looking up there.
        self.model.use_cache = False
        super()._before_training(**kwargs)  # type: ignore[misc]

    def _after_training(self, **kwargs: Any) -> None:
        super()._after_training(**kwargs)  # type: ignore[misc]
        self.model.use_cache = True

    def _before_eval(self, **kwargs: Any) -> None:
        self._outside, self.model.use_cache = getattr(self.model, "use_cache", True), True
        super()._before_eval(**kwargs)  # type: ignore[misc]

    def _after_eval(self, **kwargs: Any) -> None:
        super()._after_eval(**kwargs)  # type: ignore[misc]
        self.model.use_cache = self._outside

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made here and is in no module, so a pickle names what it is made of.
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (_blank, (type(self).__bases__[1],), *state)


@functools.cache
def _on_frozen_vit(cls: type) -> type:
    """The class with what is added to it."""
    made = types.new_class(cls.__name__, (_OnFrozenViT, cls))
    made.__module__ = cls.__module__
    return made


def _blank(cls: type) -> Any:
    made: Any = _on_frozen_vit(cls)
    return made.__new__(made)


def list_adapted(pattern: str = "*") -> list[str]:
    """Names of Avalanche's strategies that run here and match a shell pattern, sorted."""
    return sorted(fnmatch.filter([PREFIX + name for name in RUNNING], pattern))


def resolve(name: str) -> MethodSpec:
    """What the registry knows of a registered method, for a name with a colon.

    :param name: ``avalanche:NAME``, or ``MODULE:NAME`` with a module that can be imported or the
        path of a ``.py`` file, and in it a strategy class or a name that it registers.
    :raises UsageError: if there is no such class, or it cannot run here.
    """
    module_name, _, class_name = name.rpartition(":")
    if not module_name or not class_name:
        raise UsageError(
            f"A method of another module is MODULE:NAME, such as avalanche:EWC, not {name!r}."
        )
    if name.startswith(PREFIX):
        return _spec(name, _avalanche_class(class_name))
    module = import_code(module_name, f"The method {name!r}")
    registered = METHODS.registered_by(module)
    if class_name in registered:
        return replace(registered[class_name], name=name)
    found = getattr(module, class_name, None)
    classes = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, SupervisedTemplate)
        and value.__module__ == module.__name__
    ]
    if found is None:
        known = [*registered, *classes]
        more = f"; {nearest(class_name, known)}" if known else ", and it has no other method"
        raise UsageError(f"There is no method {class_name!r} in {module_name!r}{more}.")
    if not (inspect.isclass(found) and issubclass(found, SupervisedTemplate)):
        what = "class" if inspect.isclass(found) else type(found).__name__
        raise UsageError(
            f"--methods takes a subclass of Avalanche's SupervisedTemplate or a registered name, "
            f"and {name!r} is a {what} that is neither."
        )
    return _spec(name, found)


METHODS.elsewhere = (list_adapted, resolve)


def _avalanche_class(class_name: str) -> type:
    if class_name in REFUSED:
        raise UsageError(f"{PREFIX}{class_name} does not run here: {REFUSED[class_name]}.")
    found = getattr(supervised, class_name, None)
    if class_name not in RUNNING and not (
        inspect.isclass(found) and issubclass(found, SupervisedTemplate)
    ):
        raise UsageError(
            f"There is no method {PREFIX + class_name!r}; "
            f"{nearest(PREFIX + class_name, list_adapted())}."
        )
    if found is None:
        raise UsageError(f"The Avalanche that is installed here has no strategy {class_name!r}.")
    return found


def _known(cls: type) -> _Known | None:
    """What the table says of one of Avalanche's own classes."""
    own = getattr(supervised, cls.__name__, None) is cls
    return RUNNING.get(cls.__name__) if own else None


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a class takes, those that it passes on to its bases included."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if base is SupervisedTemplate:
            found.setdefault("peval_mode", parameters[-1])
        if base is SupervisedTemplate or not any(
            p.kind is p.VAR_KEYWORD for p in parameters
        ):
            break
    return found


def _own_arguments(cls: type) -> set[str]:
    """The names in the class's own signature."""
    return set(inspect.signature(cls).parameters)


_LOOP = frozenset(
    {
        *("train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins", "evaluator"),
        *("eval_every", "peval_mode", "gradient_steps", "precision"),
    }
)
_GIVEN = frozenset(
    {
        *("model", "optimizer", "criterion", "num_classes", "n_classes", "backbone"),
        *("slda_model", "input_size", "feature_extractor", "classifier", "buffer_transform"),
    }
)


def _taken(cls: type) -> set[str]:
    """What of ``_GIVEN`` a class gets.

    One that has its own idea of a model in its signature passes none of ours on to its bases.
    """
    own = _own_arguments(cls)
    arguments = _arguments(cls)
    taken = set(arguments) & _GIVEN
    if "criterion" in taken:
        default = arguments["criterion"].default
        # One instance is the default of all classes, and some change it; another loss is meant.
        if default is not inspect.Parameter.empty and type(default) is not nn.CrossEntropyLoss:
            taken -= {"criterion"}
    if own & {"backbone", "slda_model", "feature_extractor"} and "model" not in own:
        taken -= {"model"}
        taken -= {"optimizer"} - own
    return taken


def _options(cls: type, known: _Known | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A class's options and their types: its arguments with plain defaults, and the adapter's.

    :raises UsageError: if an argument has no default and is nothing that is given here.
    """
    taken = _taken(cls)
    defaults = {} if known is None else dict(known.defaults)
    options: dict[str, Any] = {}
    if "model" in taken:
        options["head"] = "linear"
    if taken & {"model", "slda_model", "feature_extractor"}:
        options["readout"] = "cls"
    if "optimizer" in taken:
        options["lr"] = 5e-3
    needed = []
    for name, parameter in _arguments(cls).items():
        if name in _LOOP or name in taken or name in _GIVEN:
            continue
        value = defaults.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            needed.append(name)
        elif value is None or isinstance(value, (bool, int, float, str)):
            options[name] = value
    if needed:
        raise UsageError(
            f"A strategy class is given {', '.join(sorted(_GIVEN - {'n_classes'}))} and the "
            f"arguments of Avalanche's loop, and {cls.__name__} needs "
            f"{' and '.join(map(repr, needed))} as well: give what it needs a default."
        )
    return options, option_types(vars(cls).get("__init__", cls), options)


def _spec(name: str, cls: type) -> MethodSpec:
    known = _known(cls)
    options, kinds = _options(cls, known)
    boundaries = (
        bool(getattr(cls, "uses_boundaries", True)) if known is None else known.uses_boundaries
    )
    doc = (inspect.getdoc(cls) or "").partition("\n\n")[0]
    first = " ".join(doc.split()) or "an Avalanche strategy"
    summary = f"Avalanche's {cls.__name__}: {known.summary}" if known is not None else first
    return MethodSpec(
        name=name,
        build=_builder(name, cls, known),
        summary=summary,
        uses_boundaries=boundaries,
        options=options,
        types=kinds,
        origin=origin_of(cls),
    )


def _builder(name: str, cls: type, known: _Known | None) -> Callable[..., Any]:
    def build(
        *, backbone: VisionTransformer, num_classes: int, loop: dict[str, Any], **options: Any
    ) -> Any:
        """Build the class on a frozen ViT; the options are the class's and the adapter's own."""
        return _build(name, cls, known, backbone, num_classes, loop, options)

    return build


def _build(
    name: str,
    cls: type,
    known: _Known | None,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    arguments, taken = _arguments(cls), _taken(cls)
    loop = dict(loop)
    ours = issubclass(cls, FrozenBackboneStrategy)
    precision = loop.get("precision", "fp32")
    _check(name, arguments, taken, loop, precision)
    given: dict[str, Any] = {
        "backbone": backbone,
        "num_classes": num_classes,
        "n_classes": num_classes,
        "criterion": nn.CrossEntropyLoss(),
        "buffer_transform": None,
    }
    readout = options.get("readout", "cls")
    head = options.get("head", "linear")
    if head not in _HEADS and "model" in taken:
        raise UsageError(f"The option {name}.head takes {' or '.join(_HEADS)}, not {head!r}.")
    trained: list[nn.Parameter] = []
    if "model" in taken:
        model = AdaptedViT(
            backbone, num_classes, head=head, readout=readout, precision=precision
        )
        model.to(loop.get("device", "cpu"))  # before the optimizer: it holds the tensors there
        given["model"], trained = model, list(model.parameters())
        given["input_size"] = [3, *backbone.patch_embed.img_size]
    elif taken & {"slda_model", "feature_extractor"}:
        features = AdaptedViT(
            backbone, num_classes, head=_NoHead(1, num_classes), readout=readout,
            precision=precision,
        )  # fmt: skip
        width = features.feature_width()
        given["slda_model"] = given["feature_extractor"] = features.to(loop.get("device", "cpu"))
        given["input_size"] = width
        classifier = nn.Linear(width, num_classes).to(loop.get("device", "cpu"))
        given["classifier"] = classifier
        trained = list(classifier.parameters()) if "classifier" in taken else []
    if "optimizer" in taken:
        lr = options.get("lr", 5e-3)
        Number(least=0).check(f"The option {name}.lr", lr)
        given["optimizer"] = torch.optim.Adam(trained, lr=lr) if trained else None
    passed = {key: value for key, value in given.items() if key in taken}
    passed.update((key, value) for key, value in loop.items() if key in arguments)
    passed.update((key, value) for key, value in options.items() if key in arguments)
    if not ours:
        passed["plugins"] = [_MarkSeen(), *(passed.get("plugins") or [])]
    made = cls if ours else _on_frozen_vit(cls)
    try:
        strategy = made(**passed)
    except UsageError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UsageError(f"{name} cannot be built with these arguments ({why}).") from error
    strategy.resumable = False
    for plugin in [p for p in strategy.plugins if isinstance(p, SynapticIntelligencePlugin)]:
        strategy.plugins.insert(strategy.plugins.index(plugin) + 1, _OwnCopies(plugin))
    if not ours:
        strategy._seen = torch.zeros(num_classes, dtype=torch.bool, device=strategy.device)
        strategy.trains = "optimizer" in taken
        strategy.mask = "own" if known is None else known.mask
    return strategy


def _check(
    name: str,
    arguments: Mapping[str, Any],
    taken: set[str],
    loop: dict[str, Any],
    precision: str,
) -> None:
    """Refuse what a class cannot do, each in one sentence."""
    if "plugins" not in arguments or "evaluator" not in arguments:
        raise UsageError(f"{name} must take plugins and evaluator, as Avalanche's strategies do.")
    check_loop(loop)
    steps = loop.get("gradient_steps", 1)
    if steps != 1 and "gradient_steps" not in arguments:
        raise UsageError(
            f"{name} makes 1 update per mini-batch, so gradient_steps must be 1 for it, "
            f"not {steps!r}."
        )
    if precision == "fp16":
        raise UsageError(
            f"precision must be 'fp32' or 'bf16', not 'fp16', for {name}, which scales no loss."
        )
    on_ours = bool(taken & {"model", "slda_model", "feature_extractor"})
    if precision != "fp32" and not on_ours and "precision" not in arguments:
        raise UsageError(
            f"{name} builds its own model and has no argument precision, so --precision must be "
            f"fp32 for it, not {precision!r}."
        )
