"""What it takes to run Avalanche 0.6's vision transformer with prompts on a current timm.

Avalanche's ``avalanche.models.timm_vit`` was written for timm 0.6. With a later timm two of the
names it imported mean something else, and every model of the module fails while it is built:

* ``resolve_pretrained_cfg`` returns a dataclass where the module subscripts a dictionary
  (``TypeError: 'PretrainedCfg' object is not subscriptable``);
* ``build_model_with_cfg`` no longer takes ``pretrained_custom_load``, which then ends up among
  the arguments of the transformer.

:func:`timm_compat` replaces these two names, in Avalanche's module only and for the duration of
a ``with`` block. No name of timm or torch is touched, and the class that is built is Avalanche's
own.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

_PATCHED = ("resolve_pretrained_cfg", "build_model_with_cfg")


def _versions() -> str:
    """The two versions that every error of this module names."""

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} (version unknown)"

    return f"{of('avalanche-lib')} with {of('timm')}"


def import_timm_vit() -> ModuleType:
    """Import ``avalanche.models.timm_vit`` without its two warnings about timm's old module names.

    Avalanche imports ``timm.models.helpers`` and ``timm.models.layers``, for which timm gives a
    ``FutureWarning`` each (``DeprecationWarning`` before timm 1.0) that the user can do nothing
    about. Only these two are silenced.

    :raises RuntimeError: if the module cannot be imported, or lacks a name that
        :func:`timm_compat` has to replace; the sentence names both versions.
    """
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings(
                "ignore",
                message=r"Importing from timm\.models\.(helpers|layers) is deprecated",
                category=category,
            )
        try:
            module = importlib.import_module("avalanche.models.timm_vit")
        except ImportError as error:
            # Avalanche says "timm is not found" here, whatever the reason was.
            cause = error.__context__ or error
            raise RuntimeError(
                f"Avalanche's prompted vision transformer cannot be imported: {_versions()} do not "
                f"fit together ({cause})."
            ) from error
    missing = [name for name in _PATCHED if not hasattr(module, name)]
    if missing:
        raise RuntimeError(
            f"avalanche.models.timm_vit of {_versions()} has no {' and no '.join(missing)}, so "
            "avalanche_rwf.compat.timm_compat does not know how to build its models."
        )
    return module


@contextmanager
def timm_compat(**vit_kwargs: Any) -> Iterator[ModuleType]:
    """Let Avalanche build its vision transformers with prompts on the installed timm.

    Inside the block ``avalanche.models.vit.create_model`` and with it
    ``avalanche.training.supervised.l2p.LearningToPrompt`` can be used as they are; on exit, also
    by an exception, Avalanche's module is as it was.

    >>> from avalanche.models.vit import create_model
    >>> with timm_compat(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2):
    ...     vit = create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)

    :param vit_kwargs: arguments of ``ViTWithPrompt`` that override those of Avalanche's
        factories, which fix image size, width and depth; ``pretrained_cfg_overlay=dict(file=...)``
        points them to a local file (with ``custom_load=False`` for timm <= 1.0.22).
    :raises RuntimeError: if Avalanche no longer has the two names that are replaced.
    """
    module = import_timm_vit()
    resolve, build = (getattr(module, name) for name in _PATCHED)

    def resolve_as_dict(variant: str, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
        config = resolve(variant, pretrained_cfg=pretrained_cfg, **kwargs)
        return config if isinstance(config, dict) else config.to_dict()

    def build_without_custom_load(
        model_class: Any,
        variant: str,
        pretrained: bool,
        pretrained_custom_load: Any = None,
        **kwargs: Any,
    ) -> Any:
        kwargs.update(vit_kwargs)
        # No checkpoint holds the prompts, so a strict load could never succeed.
        kwargs.setdefault("pretrained_strict", False)
        return build(model_class, variant, pretrained, **kwargs)

    replacements = (resolve_as_dict, build_without_custom_load)
    for name, replacement in zip(_PATCHED, replacements, strict=True):
        setattr(module, name, replacement)
    try:
        yield module
    finally:
        for name, original in zip(_PATCHED, (resolve, build), strict=True):
            setattr(module, name, original)
