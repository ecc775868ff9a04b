"""One folder of images, one backbone, one comparison for the tests of all verbs."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from avalanche_rwf import cli

from .command import METHODS, SIZES, VIT, draw


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    import torch
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    vit = create_model("vit_tiny_patch16_224", img_size=16, num_classes=0, **SIZES)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(vit.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def spoilt(tmp_path_factory) -> Path:
    """A folder of everything that can be wrong."""
    tmp = tmp_path_factory.mktemp("spoilt")
    for name in ("text.txt", "text.safetensors", "text.pth", "text.npz"):
        (tmp / name).write_text("no weights, no image, no folder")
    for name in ("dir.pth", "empty", "classless/train", "classless/test", "taken"):
        (tmp / name).mkdir(parents=True)
    (tmp / "taken" / "runs").write_text("")
    draw(tmp / "untested", "ab", 1, 1)
    shutil.rmtree(tmp / "untested" / "test")
    draw(tmp / "imageless", "ab", 1, 1)
    (tmp / "imageless/train/b/0.png").rename(tmp / "imageless/train/b/0.txt")
    draw(tmp / "tested", "ab", 1, 1)
    shutil.copytree(tmp / "tested/test/b", tmp / "tested/test/z")
    draw(tmp / "trained", "ab", 1, 1)
    shutil.copytree(tmp / "trained/train/b", tmp / "trained/train/z")
    draw(tmp / "corrupt", "ab", 2, 1)
    whole = (tmp / "corrupt/train/b/1.png").read_bytes()
    (tmp / "corrupt/train/b/1.png").write_bytes(whole[: len(whole) // 2])
    draw(tmp / "ruined", "ab", 1, 1)
    (tmp / "ruined/train/b/0.png").write_bytes(b"no image")
    draw(tmp / "single", "ab", 1, 1)
    return tmp


@pytest.fixture(scope="session")
def command(images, weights):
    """A comparison of three methods and two seeds on 4 classes in 2 experiences."""

    def make(out: Path, *more: object) -> list[str]:
        line = [
            "compare", "--benchmark", f"folder:{images}", "--experiences", 2,
            "--methods", ",".join(METHODS), "--seeds", "0,1", "--batch-size", 4,
            "--weights", weights, *VIT, "--jobs", 1, "--quiet", "--out", out, *more,
        ]  # fmt: skip
        return [str(word) for word in line]

    return make


@pytest.fixture(scope="session")
def compared(command, tmp_path_factory, request) -> tuple[Path, str]:
    """The output folder of that comparison and what it printed."""
    out, printed = tmp_path_factory.mktemp("compared") / "results", io.StringIO()
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "stdout", printed)
    try:
        assert cli.main(command(out)) == 0
    finally:
        patch.undo()
    return out, printed.getvalue()
