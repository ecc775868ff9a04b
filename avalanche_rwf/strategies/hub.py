"""Strategies on the Hugging Face Hub: what training changed, how to build it again, a model card.

A repository has three files, and loading them runs no code: ``model.safetensors`` (the state
without the frozen backbone), ``config.json`` (the constructor's arguments, the backbone's name and
SHA-256, the metrics) and ``README.md``. What they say is checked, as anybody may have written them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from typing_extensions import Self

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.utils.untrusted_io import printable, read_object
from avalanche_rwf.utils.validation import AnyPath, Options, is_finite, takes
from avalanche_rwf.version import __version__

if TYPE_CHECKING:
    from avalanche_rwf.strategies.base import FrozenBackboneStrategy as _Base
else:
    _Base = object

_CONFIG, _WEIGHTS, _CARD = FILES = ("config.json", "model.safetensors", "README.md")
_FORMAT = 1


class OnHub(_Base):
    """Adds a hub's three methods to a strategy whose ``_saved_arguments`` build it again."""

    @takes(folder=AnyPath(), metrics=Options(optional=True))
    def save_pretrained(
        self, folder: str | os.PathLike[str], *, metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Write the files of :meth:`push_to_hub` to a folder.

        :param folder: it is made if it is not there.
        :param metrics: name -> value for the model card, such as ``summarise`` gives.
        :raises UsageError: if what is saved could not be loaded.
        """
        given = self._saved_arguments(False)
        _check_plain(given.get("backbone_kwargs"))
        given.pop("weights", None)  # a path of this machine; its hash is in the file
        info = backbone_info(self.model.backbone)
        config = {
            "format": _FORMAT,
            "library": f"avalanche-rwf {__version__}",
            "class": type(self).__name__,
            "arguments": given,
            "backbone": {key: getattr(info, key) for key in ("name", "source", "sha256")},
            "num_classes": self.model.num_classes,
            "iterations": self.clock.train_iterations,
            "experiences": self.clock.train_exp_counter,
            "metrics": {
                str(key): float(value)
                for key, value in (metrics or {}).items()
                if value is not None and is_finite(value)
            },
        }
        state = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.model.state_without_backbone().items()
        }
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=1) + "\n"
        contents = (text.encode(), safetensors.torch.save(state), _card(config).encode())
        for name, content in zip(FILES, contents, strict=True):
            (target / name).write_bytes(content)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Mapping[str, float | None] | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload with avalanche-rwf",
    ) -> str:
        """Upload what training changed, the configuration and a model card; no backbone weights.

        :param repo_id: "owner/name"; it is made if it is not there.
        :param metrics: name -> value for the model card, such as ``summarise`` gives.
        :param private: whether a new repository is private; None is the account's default.
        :param token: of the hub; None is that of ``hf auth login`` or ``HF_TOKEN``.
        :returns: the commit's address.
        :raises UsageError: if what is saved could not be loaded.
        """
        hub = _hub()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics=metrics)
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message
                )
            )

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        **arguments: Any,
    ) -> Self:
        """The strategy of :meth:`push_to_hub` or :meth:`save_pretrained`, to predict or train on.

        The frozen backbone is got from where it came from, and its SHA-256 is compared. The
        optimizer starts anew: :meth:`save` keeps it, for a training that was cut.

        :param repo_or_path: a folder, or "owner/name" of the hub.
        :param revision: a commit, branch or tag.
        :param token: of the hub.
        :param arguments: of the constructor, over the saved ones; `weights` or `model` where the
            backbone came from a local file or the model was built by hand.
        :raises UsageError: if a file is missing or damaged, or does not fit.
        """
        folder = _folder(repo_or_path, revision, token)
        takes = f"repo_or_path takes what save_pretrained wrote, and {os.fspath(repo_or_path)!r}"
        try:
            config = read_object(folder / _CONFIG)
            state = safetensors.torch.load_file(folder / _WEIGHTS)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UsageError(f"{takes} is damaged ({_first(error)}).") from None
        given, backbone = config.get("arguments"), config.get("backbone")
        if (
            config.get("format") != _FORMAT
            or config.get("class") != cls.__name__
            or not isinstance(given, dict)
            or not isinstance(backbone, dict)
        ):
            raise UsageError(f"{takes} is no {cls.__name__} of this version.")
        _check_plain(given.get("backbone_kwargs"))
        if "model" in arguments:
            given = {}
        elif not given:
            raise UsageError("model must be given: the strategy was built from one.")
        elif backbone.get("source") == "file" and "weights" not in arguments:
            raise UsageError(
                "weights must be given: the backbone came from a local file, of SHA-256 "
                f"{printable(str(backbone.get('sha256')))[:10]}."
            )
        try:
            given.pop("weights", None)
            strategy = cls(**{**given, **arguments})
            found = backbone_info(strategy.model.backbone).sha256
            if found != backbone.get("sha256"):
                raise ValueError(
                    f"its backbone's weights are {str(backbone.get('sha256'))[:10]} and those here "
                    f"{found[:10]}"
                )
            strategy.load_trained_state(
                {
                    "model": state,
                    "optimizer": strategy.optimizer.state_dict() if strategy.trains else {},
                    "iterations": config["iterations"],
                    "experiences": config["experiences"],
                    "replay": strategy.replay and strategy.replay.state_dict(True),
                }
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UsageError(f"{takes} does not fit: {_first(error)}.") from None
        return strategy


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            "The hub needs the package huggingface_hub: pip install huggingface_hub."
        ) from None
    return huggingface_hub


@takes(repo_or_path=AnyPath())
def _folder(repo_or_path: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    path = Path(repo_or_path)
    if path.is_dir():
        return path
    hub, name = _hub(), os.fspath(repo_or_path)
    try:
        for file in (_CONFIG, _WEIGHTS):
            path = Path(hub.hf_hub_download(name, file, revision=revision, token=token))
    except (OSError, ValueError) as error:  # what the hub's errors are
        raise UsageError(
            f"repo_or_path takes a folder or a repository of the hub, and {name!r} cannot be read "
            f"({_first(error)})."
        ) from error
    return path.parent


def _check_plain(backbone_kwargs: Any) -> None:
    """Refuse arguments of timm that may name files: a repository is anybody's.

    :raises UsageError: naming the argument.
    """
    for key, value in (backbone_kwargs or {}).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if not all(one is None or isinstance(one, (bool, int, float)) for one in values):
            raise UsageError(
                f"backbone_kwargs of a strategy on the hub takes numbers, and {printable(key)} is "
                "none: give model."
            )


def _first(error: BaseException) -> str:
    return printable(str(error))[:200].rstrip(".")


def _card(config: Mapping[str, Any]) -> str:
    """The model card."""
    backbone = config["backbone"]
    base = f"base_model: timm/{backbone['name']}\n" if backbone["source"] == "hub" else ""
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in config["metrics"].items())
    metrics = f"\n## Metrics\n\n| metric | value |\n| :--- | ---: |\n{rows}" if rows else ""
    arguments = json.dumps(config["arguments"], indent=1)
    return f"""---
library_name: avalanche-rwf
pipeline_tag: image-classification
{base}tags: [continual-learning, class-incremental, routing-without-forgetting]
---

# {config["class"]} on {backbone["name"]}

Routing without Forgetting ([arXiv 2603.09576](https://arxiv.org/abs/2603.09576)), trained with
{config["library"]}: {config["num_classes"]} classes, {config["iterations"]} training steps in
{config["experiences"]} experiences. The repository has the routing layers and the head. The frozen
backbone is `{backbone["name"]}`, SHA-256 `{backbone["sha256"]}`.

```python
from avalanche_rwf import RwFStrategy

strategy = RwFStrategy.from_pretrained("OWNER/NAME")
classes = strategy.predict(strategy.transform(image)[None])  # a PIL image in RGB
```
{metrics}
## Arguments

```json
{arguments}
```
"""
