"""What a failed run says: its reason in one sentence, and the batch size that would have fitted."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def failure_reason(error: BaseException, folder: Path, batch_size: int) -> str:
    """An error in one sentence.

    :param folder: the run directory, which may be gone.
    :param batch_size: of the run.
    """
    if _out_of_memory(error):
        return out_of_memory(batch_size, None)
    if isinstance(error, OSError) and error.strerror:
        if not folder.is_dir():
            return f"The run directory {str(folder)!r} was removed while the run was going on."
        where = f": {error.filename!r}" if error.filename else ""
        return f"{error.strerror}{where}."
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SystemExit):  # its text is an exit status, most often
        return f"The method has asked for the end of the process ({said})."
    return said


def _out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the host, for which PyTorch has no error of its own."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def out_of_memory(batch_size: int, fits: int | None, others: float = 0.0) -> str:
    """The sentence of a run whose memory was not enough.

    :param batch_size: that it had.
    :param fits: one that was tried and fits, 0 if none does, None if none was tried.
    :param others: share of the GPU's memory that other processes hold.
    """
    if fits:
        advice = f"--batch-size {fits} fits"
    elif fits is None and batch_size > 1:
        advice = f"--batch-size {batch_size // 2} takes about half of it"
    else:
        advice = "a smaller --backbone or --image-size takes less"
    if others >= 0.2:
        advice += (
            f"; other processes hold {100 * others:.0f} % of it, so fewer --jobs or "
            "--runs-per-device leave more to each"
        )
    return f"The memory is not enough for a batch of {batch_size} images: {advice}."


def held_by_others(device: str) -> float:
    """Share of a GPU's memory that processes other than this one hold, from 0 to 1; 0 of a CPU."""
    if torch.device(device).type != "cuda":
        return 0.0
    with contextlib.suppress(RuntimeError, AttributeError, AssertionError):
        free, whole = torch.cuda.mem_get_info(device)
        return max(0.0, (whole - free - torch.cuda.memory_reserved(device)) / whole)
    return 0.0


def device_lost(summary: Mapping[str, Any]) -> bool:
    """Whether a run ended with an error after which its process cannot use the GPU any more."""
    memory = summary.get("error_type") == "OutOfMemoryError"
    text = f"{summary.get('error_type')} {summary.get('error')}"
    return not memory and ("AcceleratorError" in text or "CUDA error" in text)


def largest_that_fits(batch_size: int, attempt: Callable[[int], None]) -> int | None:
    """The largest of the batch size's halves that a GPU's memory is enough for.

    :param attempt: does some steps with a batch size, as the run would.
    :returns: 0 if even one image is too much; None if an attempt failed for another reason.
    """
    while batch_size > 1:
        batch_size //= 2
        free_memory()
        try:
            attempt(batch_size)
        except torch.cuda.OutOfMemoryError:
            continue
        except Exception:  # it is only for advice
            return None
        return batch_size
    return 0


def free_memory() -> None:
    """Give back what nothing refers to any more, of the GPU too."""
    gc.collect()
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # a failed assertion ends all use of the GPU
            torch.cuda.empty_cache()
