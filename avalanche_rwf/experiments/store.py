"""The files of a run directory: written whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.atomic_io import write_whole
from avalanche_rwf.utils.untrusted_io import read_object
from avalanche_rwf.version import __version__

if TYPE_CHECKING:
    import torch


def write_text(path: Path, text: str, make_folder: bool = True) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    :param make_folder: False makes a folder that is not there an error.
    """
    # A folder's name need not be Unicode.
    content = text.encode("utf-8", errors="backslashreplace")
    write_whole(path, lambda file: file.write(content), make_folder=make_folder)


def plain_json(value: Any) -> Any:
    """NaN and infinities have no JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    return value


def write_json(path: Path, values: Mapping[str, Any], make_folder: bool = True) -> None:
    """Write strict JSON, whole or not at all; the folder as :func:`write_text`."""
    text = json.dumps(plain_json(values), indent=1, allow_nan=False, default=str)
    write_text(path, text + "\n", make_folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is absent or is not one."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return None


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary in a run directory, if the run is done."""
    summary = read_json(folder / "summary.json")
    return summary if summary is not None and summary.get("status") == "done" else None


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all.

    :param about: text that the file's header holds.
    """
    import safetensors.torch

    # safetensors takes no views and no tensors of a GPU.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, metadata=dict(about))
    write_whole(path, lambda file: file.write(content), make_folder=False)


def check_writable(out: Path) -> None:
    """Make the output folder and try to write in it, and in its ``runs`` if that is there.

    :raises UsageError: if that cannot be done.
    """
    runs = out / "runs"
    for folder in (out, runs) if runs.exists() else (out,):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"--out takes a folder that can be written to, and {str(folder)!r} cannot "
                f"({reason})."
            ) from None


def _git_revision() -> str | None:
    """Revision of the source tree this package runs from, or None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@functools.cache
def source_sha256() -> str:
    """SHA-256 of the sources of this package that make numbers: every floor up to the runs.

    The git revision changes with a page of the documentation, and the package's version with few
    changes of the code; runs are averaged if this is equal.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for floor in ("benchmarks", "evaluation", "experiments", "models", "routing", "strategies"):
        for path in sorted((package / floor).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(package).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str) -> dict[str, Any]:
    """Versions, hardware and revision, for ``config.json``."""
    import torch

    from avalanche_rwf.experiments.device import arithmetic

    versions = {"python": platform.python_version(), "avalanche-rwf": __version__}
    for name in ("avalanche-lib", "torch", "timm", "numpy", "pandas"):
        versions[name] = metadata.version(name)
    hardware: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware.update(arithmetic())
    return {"versions": versions, "hardware": hardware, "git": _git_revision()}
