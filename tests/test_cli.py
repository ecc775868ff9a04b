"""The command line: bad input in one sentence, tiny real comparisons, and what they write."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf import cli

VIT = (
    "--backbone", "vit_tiny_patch16_224", "--image-size", "16",
    "--backbone-arg", "depth=5", "--backbone-arg", "embed_dim=16",
    "--backbone-arg", "num_heads=2", "--backbone-arg", "patch_size=8",
)  # fmt: skip
SIZES = {"depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


def draw(root: Path, classes: str = "abcd", train: int = 5, test: int = 3) -> Path:
    """A folder of 8x8 images whose colour tells the class."""
    rng = np.random.RandomState(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 120, (8, 8, 3))
                pixels[..., number % 3] += 40 * (1 + number // 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    import torch
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    vit = create_model("vit_tiny_patch16_224", img_size=16, num_classes=0, **SIZES)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(vit.state_dict(), path)
    return path


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# ---- bad input

# Name of the case -> (arguments after `compare`, what the sentence must say).
BAD = {
    # names
    "method": (["--methods", "rfw"], ["'rfw'", "nearest names are 'rwf'"]),
    "method pattern": (["--methods", "zz*"], ["'zz*'"]),
    "no method": (["--methods", ","], ["--methods"]),
    "benchmark": (["--benchmark", "split-digit"], ["'split-digit'", "'split-digits'"]),
    "benchmark kind": (["--benchmark", "folders:x"], ["'folders:x'", "'folder:'"]),
    "backbone": (["--backbone", "vit_smal_patch16_224"], ["unknown", "'vit_small_patch16_224'"]),
    "backbone tag": (["--backbone", "vit_tiny_patch16_224.nil"], ["no tag", "augreg_in21k"]),
    "not a ViT": (["--backbone", "resnet18"], ["'resnet18'", "VisionTransformer"]),
    "head": (["--head", "liner"], ["--head", "linear", "'liner'"]),
    "mask": (["--mask", "all"], ["--mask", "decoupled", "'all'"]),
    "readout": (["--readout", "max"], ["--readout", "cls+mean", "'max'"]),
    "readout without such an option": (["--readout", "x", "--methods", "rwf-lda"], ["--readout"]),
    "augment": (["--augment", "mixup"], ["augment", "flip", "'mixup'"]),
    "workers -1": (["--workers", "-1"], ["--workers", "-1"]),
    "checkpoint-every -1": (["--checkpoint-every=-1"], ["--checkpoint-every", "'-1'"]),
    "checkpoint-every x": (["--checkpoint-every", "often"], ["--checkpoint-every", "'often'"]),
    "workers x": (["--workers", "x"], ["--workers", "'x'"]),
    "data root": (["--data-root", __file__], ["--data-root", "takes a folder", "test_cli.py"]),
    "data root without a name": (["--data-root", ""], ["--data-root", "''"]),
    "precision": (["--precision", "fp16"], ["--precision", "bf16", "'fp16'"]),
    "format": (["--format", "pdf"], ["--format", "'pdf'"]),
    # sizes
    "experiences 0": (["--experiences", "0"], ["--experiences", "0"]),
    "experiences -1": (["--experiences", "-1"], ["--experiences", "-1"]),
    "experiences 3": (["--experiences", "3"], ["10", "3"]),
    "experiences 11": (["--experiences", "11"], ["10", "11"]),
    "image size 0": (["--image-size", "0"], ["--image-size", "0"]),
    "image size 30": (["--image-size", "30"], ["30", "patch size 8", "24 or 32"]),
    "batch size 0": (["--batch-size", "0"], ["--batch-size", "0"]),
    "batch size -4": (["--batch-size", "-4"], ["--batch-size", "-4"]),
    "batch size 1.5": (["--batch-size", "1.5"], ["--batch-size", "1.5"]),
    "gradient steps 0": (["--gradient-steps", "0"], ["--gradient-steps", "0"]),
    "jobs 0": (["--jobs", "0"], ["--jobs", "0"]),
    "jobs -1": (["--jobs", "-1"], ["--jobs", "-1"]),
    "a thousand million jobs": (["--jobs", "1000000000"], ["--jobs", "1 to 1024"]),
    "evaluation -1": (["--eval-every-samples", "-1"], ["--eval-every-samples", "-1"]),
    "holdout 1": (["--holdout", "1"], ["--holdout", "1.0"]),
    "holdout -0.1": (["--holdout", "-0.1"], ["--holdout", "-0.1"]),
    "budget": (["--budget", "large"], ["--budget", "'large'", "tuned"]),
    "budget and holdout": (
        ["--budget", "tuned", "--holdout", "0.2"], ["--budget", "--holdout", "0.2"]
    ),
    "budget without an image to hold out": (
        ["--benchmark", "folder:{tmp}/single", "--budget", "tuned"], ["held out"]
    ),
    "holdout nan": (["--holdout", "nan"], ["--holdout", "nan"]),
    "seeds": (["--seeds", "0,x"], ["--seeds", "'0,x'"]),
    "seeds -1": (["--seeds", "-1"], ["--seeds", "'-1'"]),
    "seeds backwards": (["--seeds", "4-2"], ["--seeds", "'4-2'"]),
    "seeds superscript": (["--seeds", "²"], ["--seeds", "'²'"]),
    "seeds without end": (["--seeds", "0-99999999999"], ["--seeds", "1000"]),
    "seed too large": (["--seeds", "5000000000"], ["seed", "5000000000"]),
    "range of seeds too large": (["--seeds", "4294967290-4294967300"], ["--seeds", "2**32"]),
    # devices
    "device": (["--device", "tpu"], ["--device", "'tpu'"]),
    "device without number": (["--device", "cuda:"], ["--device", "'cuda:'"]),
    "device 99": (["--device", "cuda:99"], ["cuda:99", "CUDA devices"]),
    # options
    "set": (["--set", "rwf"], ["--set", "'rwf'"]),
    "set without option": (["--set", "rwf.=1"], ["--set", "'rwf.=1'"]),
    "set method": (["--set", "rfw.lr=1"], ["rfw", "'rwf'"]),
    "set option": (["--set", "rwf.num_prompt=1"], ["num_prompt", "'num_prompts'"]),
    "set value": (["--set", "rwf.num_prompts=x"], ["rwf.num_prompts", "int", "'x'"]),
    "set negative": (["--set", "rwf.num_prompts=-1"], ["rwf", "num_prompts", "-1"]),
    "set heads": (["--set", "rwf.heads=7"], ["rwf", "heads", "7"]),
    "set choice": (["--set", "rwf.insert=suffix"], ["rwf", "insert", "suffix"]),
    "set blocks": (["--set", "rwf.routed_blocks=first 99"], ["rwf", "first 99"]),
    "set rate": (["--set", "rwf.lr=-1"], ["rwf", "-1"]),
    "set rate nan": (["--set", "rwf.lr=nan"], ["rwf", "nan"]),
    "set switch": (["--set", "rwf.stop_gradient=maybe"], ["rwf.stop_gradient", "bool", "'maybe'"]),
    "set readout": (["--set", "rwf.readout=max"], ["rwf", "readout", "'max'"]),
    "set pool": (["--methods", "*-l2p", "--set", "*-l2p.top_k=99"], ["top_k", "99"]),
    "set shrinkage": (["--methods", "slda", "--set", "slda.shrinkage=2"], ["shrinkage", "2"]),
    "as shipped": (["--methods", "avalanche-l2p-as-shipped", "--gradient-steps", "2"], ["shipped"]),
    "backbone argument": (["--backbone-arg", "depth"], ["--backbone-arg", "'depth'"]),
    "backbone argument's name": (["--backbone-arg", "a b=1"], ["--backbone-arg", "'a b=1'"]),
    "backbone argument unknown": (["--backbone-arg", "colour=1"], ["colour"]),
    "backbone argument's value": (["--backbone-arg", "depth=many"], ["depth='many'"]),
    "backbone argument list": (["--backbone-arg", "depth=[1, 2]"], ["depth"]),
    "backbone argument set": (["--backbone-arg", "depth={1}"], ["depth"]),
    "backbone argument reserved": (["--backbone-arg", "num_classes=3"], ["num_classes"]),
    "backbone argument flag": (["--backbone-arg", "name=x"], ["--backbone"]),
    "backbone without blocks": (["--backbone-arg", "depth=0"], ["0"]),
    # weights
    "weights missing": (["--weights", "{tmp}/nil.safetensors"], ["nil.safetensors", "not exist"]),
    "weights folder": (["--weights", "{tmp}/dir.pth"], ["dir.pth", "not a file"]),
    "weights suffix": (["--weights", "{tmp}/text.txt"], ["text.txt", ".safetensors"]),
    "weights corrupt": (["--weights", "{tmp}/text.safetensors"], ["text.safetensors", "read"]),
    "weights corrupt pth": (["--weights", "{tmp}/text.pth"], ["text.pth"]),
    "weights corrupt npz": (["--weights", "{tmp}/text.npz"], ["text.npz"]),
    "weights keys": (["--weights", "{weights}"], ["another shape", "'cls_token' is [1, 1, 16]"]),
    "weights key names": (
        [*VIT, "--weights", "{weights}", "--backbone-arg", "depth=6"],
        ["tiny.safetensors", "12 missing", "'blocks.5.norm1.weight'"],
    ),
    # folders
    "folder without path": (["--benchmark", "folder:"], ["'folder:'", "PATH"]),
    "folder missing": (["--benchmark", "folder:{tmp}/nil"], ["nil", "does not exist"]),
    "folder is a file": (["--benchmark", "folder:{tmp}/text.txt"], ["text.txt", "not a folder"]),
    "folder empty": (["--benchmark", "folder:{tmp}/empty"], ["empty", "'train'"]),
    "folder without test": (["--benchmark", "folder:{tmp}/untested"], ["untested", "'test'"]),
    "folder without classes": (["--benchmark", "folder:{tmp}/classless"], ["classless", "empty"]),
    "class without images": (["--benchmark", "folder:{tmp}/imageless"], ["train/b'", "no images"]),
    "class in test only": (["--benchmark", "folder:{tmp}/tested"], ["'z'", "test", "train"]),
    "class in train only": (["--benchmark", "folder:{tmp}/trained"], ["'z'", "train", "test"]),
    "corrupt image": (["--benchmark", "folder:{tmp}/corrupt"], ["{tmp}/corrupt/train/b/1.png"]),
    "class all corrupt": (
        ["--benchmark", "folder:{tmp}/ruined", "--skip-corrupt"], ["'b'", "no readable image"]
    ),
    "experiences above classes": (
        ["--benchmark", "folder:{images}", "--experiences", "5"], ["5", "4"]
    ),
    "one image to hold out": (
        ["--benchmark", "folder:{tmp}/single", "--holdout", "0.5"], ["held out"]
    ),
    # streams
    "stream": (["--stream", "siblurry"], ["--stream", "'siblurry'", "'si-blurry'"]),
    "option of another stream": (["--shots", "4"], ["--shots", "fscil and k-shot", "'split'"]),
    "option of another stream too": (
        ["--stream", "k-shot", "--blurry", "5"], ["--blurry", "i-blurry and si-blurry", "'k-shot'"]
    ),
    "shots 0": (["--stream", "k-shot", "--shots", "0"], ["--shots", "at least 1", "'0'"]),
    "disjoint 101": (["--stream", "si-blurry", "--disjoint", "101"], ["--disjoint", "'101'"]),
    "repeat nan": (["--stream", "repetition", "--repeat", "nan"], ["--repeat", "'nan'"]),
    "base above the classes": (["--stream", "fscil", "--base", "11"], ["--base", "10", "11"]),
    "preset of other classes": (
        ["--stream", "fscil", "--preset", "cub200"], ["--preset cub200", "200", "10"]
    ),
    "class order of some": (["--class-order", "0,1,2"], ["--class-order", "each of the 10", "3"]),
    "class order with another": (
        ["--class-order", "0,1,2,3,4,5,6,7,8,x"], ["--class-order", "'x'"]
    ),
    "classes per experience": (["--classes-per-experience", "3,3"], ["10 classes", "6"]),
    "stream without a class left": (
        ["--stream", "i-blurry", "--experiences", "11", "--remainder", "drop"],
        ["keeps 0 of the 10"],
    ),
    "boundaries": (
        ["--boundary-free", "--methods", "avalanche-l2p-as-shipped"], ["--boundary-free"]
    ),
    "subset -1": (["--eval-subset", "-1"], ["--eval-subset", "-1"]),
    "subset below the classes": (["--eval-subset", "9"], ["--eval-subset", "10 classes", "9"]),
    "subset for nothing": (
        ["--eval-subset", "20", "--eval-every-samples", "0"], ["--eval-subset", "mid-stream"]
    ),
    # preparation
    "mean of two": (["--mean", "0.5,0.5"], ["--mean", "three numbers", "'0.5,0.5'"]),
    "mean of words": (["--mean", "a,b,c"], ["--mean", "three numbers", "'a,b,c'"]),
    "mean of thousands": (["--mean", "127,127,1e9"], ["--mean", "three numbers", "1000000000.0"]),
    "std 0": (["--std", "0.2,0,0.2"], ["--std", "three numbers", "(0.2, 0, 0.2)"]),
    "std nan": (["--std", "nan,1,1"], ["--std", "three numbers"]),
    "interpolation": (["--interpolation", "cubic"], ["--interpolation", "bicubic", "'cubic'"]),
    "crop pct": (["--crop-pct", "1.5"], ["--crop-pct", "1.5"]),
    "data config": (
        ["--data-config", "vit_smal_patch16_224.dino"],
        ["--data-config", "'vit_smal_patch16_224.dino'", "'vit_small_patch16_224.dino'"],
    ),
    "test share of a split": (
        ["--benchmark", "folder:{images}", "--test-share", "0.2"],
        ["--test-share", "without test images", "0.2"],
    ),
    "test share of a data set": (["--test-share", "0.2"], ["--test-share", "folder:PATH", "0.2"]),
    "test share 1": (["--test-share", "1"], ["--test-share", "below 1", "1.0"]),
    "test share nan": (["--test-share", "nan"], ["--test-share", "nan"]),
    "split seed alone": (["--split-seed", "3"], ["--split-seed", "--test-share"]),
    "split seed -1": (["--split-seed", "-1", "--test-share", "0.2"], ["--split-seed", "-1"]),
    # output
    "out is a file": (["--out", "{tmp}/text.txt"], ["--out", "text.txt"]),
    "out under a file": (["--out", "{tmp}/text.txt/results"], ["--out", "results"]),
    "runs is a file": (["--out", "{tmp}/taken"], ["--out", "taken"]),
    "unknown flag": (["--colour", "red"], ["--colour"]),
    "flag without value": (["--seeds"], ["--seeds"]),
}  # fmt: skip

# Name of the case -> (the whole command line, what the sentence must say).
BAD_VERBS = {
    "no verb": ([], ["verb"]),
    "unknown verb": (["train"], ["'train'", "compare"]),
    "list nothing": (["list"], ["kind"]),
    "list unknown kind": (["list", "masks"], ["'masks'", "methods"]),
    "list methods": (["list", "methods", "zz*"], ["methods", "'zz*'"]),
    "list benchmarks": (["list", "benchmarks", "zz*"], ["benchmarks", "'zz*'"]),
    "list backbones": (["list", "backbones", "zz*"], ["backbones", "'zz*'"]),
    "list heads": (["list", "heads", "zz*"], ["heads", "'zz*'"]),
    "list streams": (["list", "streams", "zz*"], ["streams", "'zz*'"]),
    "inspect benchmark": (["inspect", "--benchmark", "split-digit"], ["'split-digits'"]),
    "inspect folder": (["inspect", "--benchmark", "folder:{tmp}/nil"], ["nil", "not exist"]),
    "inspect stream": (["inspect", "--stream", "kshot"], ["'kshot'", "'k-shot'"]),
    "inspect option of another stream": (
        ["inspect", "--stream", "fscil", "--repeat", "1"], ["--repeat", "repetition", "'fscil'"]
    ),
    "inspect base 0": (["inspect", "--stream", "fscil", "--base", "0"], ["--base", "'0'"]),
    "inspect class order": (["inspect", "--class-order", "0,1,1"], ["--class-order", "10"]),
    "inspect experiences": (["inspect", "--experiences", "11"], ["experiences", "10", "11"]),
    "inspect experiences 0": (["inspect", "--experiences", "0"], ["experiences", "0"]),
    "inspect seed": (["inspect", "--seed", "-1"], ["--seed", "'-1'"]),
    "inspect seed too large": (["inspect", "--seed", "5000000000"], ["seed", "5000000000"]),
    "inspect holdout": (["inspect", "--holdout", "1"], ["holdout", "1.0"]),
    "inspect test share": (
        ["inspect", "--benchmark", "folder:{tmp}/untested", "--test-share", "1.5"],
        ["--test-share", "1.5"],
    ),
    "inspect single images": (
        ["inspect", "--benchmark", "folder:{tmp}/untested", "--test-share", "0.5"],
        ["--test-share", "at least 2 images", "'a'"],
    ),
    "inspect split seed": (["inspect", "--split-seed", "3"], ["--split-seed", "test_share"]),
    "inspect data root": (["inspect", "--data-root", ""], ["--data-root", "''"]),
    "inspect plot": (["inspect", "--plot", "{tmp}/x.gif"], ["--plot", ".png", "x.gif"]),
    "inspect plot nowhere": (["inspect", "--plot", "{tmp}/nil/x.png"], ["--plot", "nil"]),
    "leaderboard": (["leaderboard"], ["DIR"]),
    "leaderboard missing": (["leaderboard", "{tmp}/nil"], ["nil"]),
    "leaderboard of a file": (["leaderboard", "{tmp}/text.txt"], ["text.txt"]),
    "leaderboard empty": (["leaderboard", "{tmp}/empty"], ["empty", "no finished run"]),
    "leaderboard format": (["leaderboard", "{tmp}/empty", "--format", "pdf"], ["'pdf'"]),
}


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("case", [*BAD, *BAD_VERBS])
def test_bad_input_is_one_sentence_and_status_2(
    case, capsys, spoilt, images, weights, tmp_path, monkeypatch
):
    def begun(*args, **kwargs):
        pytest.fail("a run was begun")

    monkeypatch.setattr("avalanche_rwf.experiments.executors.execute", begun)
    compare = case in BAD
    arguments, says = BAD[case] if compare else BAD_VERBS[case]
    places = {"{tmp}": spoilt, "{images}": images, "{weights}": weights}

    def fill(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    if compare:
        # The defaults come first: a case's own flag counts.
        arguments = ["compare", "--jobs", "1", "--out", tmp_path / "out", *arguments]
    status, out, err = call(capsys, *(fill(str(a)) for a in arguments))

    assert status == 2
    assert out == ""
    assert err.startswith("avalanche-rwf: "), err
    assert err.count("\n") == 1, err
    assert err.endswith(".\n"), err
    assert not re.search(r"[.!?]['\")]* +[A-Z]", err), err  # one sentence, not two
    assert "Traceback" not in err
    for text in says:
        assert fill(text) in err, err
    assert not list(tmp_path.rglob("*.json"))  # no run was begun


def test_cuda_without_a_gpu_is_refused(capsys, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    status, out, err = call(
        capsys, "compare", "--jobs", 1, "--device", "cuda", "--out", tmp_path / "out"
    )
    assert (status, out) == (2, "")
    assert err == (
        "avalanche-rwf: --device cuda was asked for, but PyTorch sees 0 CUDA devices here.\n"
    )


# ---- comparisons

METHODS = ("ncm", "rwf", "linear-probe")
SUMMARY = {
    "a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class", "train_seconds",
    "eval_seconds", "eval_share", "train_samples_per_second", "trainable_parameters",
    "peak_memory_bytes",
    "gradient_steps", "samples_seen", "forward_passes_per_image", "status",
}  # fmt: skip


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def runs(out: Path) -> dict[tuple[str, str], Path]:
    """(method, seed) -> run directory."""
    return {(p.parts[-3], p.name): p for p in sorted(out.glob("runs/*/*/*/seed*"))}


def copy(compared: tuple[Path, str], to: Path) -> Path:
    return shutil.copytree(compared[0], to / "results")


def test_the_table_goes_to_stdout(compared):
    _, printed = compared
    assert printed.startswith("folder:")
    for method in METHODS:
        assert re.search(rf"^ *\d .*\b{method}\b.*±", printed, re.M), printed
    assert "img" not in printed.splitlines()[0]


def test_a_run_directory_has_the_files_of_the_contract(compared, weights):
    from avalanche_rwf.experiments.config import RunConfig

    found = runs(compared[0])
    assert set(found) == {(m, f"seed{s}") for m in METHODS for s in (0, 1)}
    for (method, seed), folder in found.items():
        names = {p.name for p in folder.iterdir()}
        routed = {"weights.safetensors"} if method == "rwf" else set()
        assert names == {"config.json", "metrics.csv", "summary.json", "log.txt", *routed}

        content = json.loads((folder / "config.json").read_text())
        config = RunConfig.from_dict(content["config"])
        assert (config.method, f"seed{config.seed}") == (method, seed)
        assert (config.batch_size, config.gradient_steps, config.experiences) == (4, 1, 2)
        assert config.weights == str(weights)
        assert config.eval_every_samples == 5  # a quarter of 20 images
        assert config.config_hash() == content["config_hash"] == folder.parent.name
        assert content["backbone"]["name"] == "vit_tiny_patch16_224"
        assert content["backbone"]["source"] == "file"
        assert content["backbone"]["sha256"] == config.weights_sha256
        assert content["backbone"]["image_size"] == 16
        assert content["data"] == {
            "classes_per_experience": [[0, 1], [2, 3]],
            "train_size": 20,
            "test_size": 12,
            "skipped": 0,
            "first_seen": [[0, 1], [2, 3]],
            "samples_per_experience": [10, 10],
        }
        assert {"python", "torch", "timm", "avalanche-lib"} <= set(content["versions"])
        assert content["hardware"]["device"] == "cpu"
        assert "git" in content

        summary = json.loads((folder / "summary.json").read_text())
        assert set(summary) == SUMMARY
        assert summary["status"] == "done"
        assert summary["samples_seen"] == 20
        assert summary["gradient_steps"] == (0 if method == "ncm" else 6)  # 2 x 10 images by 4
        assert (summary["trainable_parameters"] > 0) == (method != "ncm")


def test_metrics_are_tidy_and_agree_with_the_summary(compared):
    for folder in runs(compared[0]).values():
        with (folder / "metrics.csv").open() as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert reader.fieldnames == ["samples_seen", "experience", "metric", "value"]
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class"):
            (row,) = (r for r in rows if r["metric"] == name)
            assert (row["samples_seen"], row["experience"]) == ("20", "")
            assert float(row["value"]) == summary[name]
        exposed = {r["samples_seen"]: float(r["value"]) for r in rows
                   if r["metric"] == "accuracy_exposed"}  # fmt: skip
        # Batches of 4, 4 and 2 in each experience; 5, 10, 15 and 20 are first reached at these.
        assert list(exposed) == ["8", "10", "18", "20"]
        assert exposed["20"] == summary["a_last"]
        assert summary["a_avg"] == pytest.approx((exposed["10"] + exposed["20"]) / 2)
        per_experience = [(r["samples_seen"], r["experience"]) for r in rows
                          if r["metric"] == "accuracy"]  # fmt: skip
        assert per_experience == [("10", "0"), ("20", "0"), ("20", "1")]


def test_leaderboard_csv_has_every_summary_field(compared):
    with (compared[0] / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["method"] for row in rows) == sorted(METHODS)
    numbers = [f"{f}_{s}" for f in SUMMARY - {"status"} for s in ("mean", "std")]
    setup = ["seeds", "head", "mask", "readout", "batch_size", "gradient_steps", "benchmark"]
    assert {*numbers, *setup} <= set(rows[0])
    assert {row["seeds"] for row in rows} == {"0,1"}
    values = [float(row["a_last_mean"]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_a_second_call_does_nothing_new(compared, command, capsys):
    out, printed = compared

    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")}

    before = times()
    status, again, err = call(capsys, *command(out))
    assert status == 0
    assert times() == before
    assert again == printed
    assert "6 done already" in err


def test_a_deleted_summary_runs_that_run_again(compared, command, capsys, tmp_path):
    out = copy(compared, tmp_path)
    lost = runs(out)["rwf", "seed1"]
    (lost / "summary.json").unlink()
    before = {f: (f / "log.txt").read_text() for f in runs(out).values()}
    metrics = (lost / "metrics.csv").read_bytes()
    status, _, err = call(capsys, *command(out))
    assert status == 0
    assert "5 done already" in err
    changed = [f for f, text in before.items() if (f / "log.txt").read_text() != text]
    assert changed == [lost]
    assert (lost / "metrics.csv").read_bytes() == metrics


def test_numbers_do_not_depend_on_the_jobs(compared, command, capsys, tmp_path):
    status, _, err = call(capsys, *command(tmp_path / "out", "--jobs", "2"))
    assert status == 0, err
    here, there = runs(tmp_path / "out"), runs(compared[0])
    assert set(here) == set(there)
    for key, folder in here.items():
        assert (folder / "metrics.csv").read_bytes() == (there[key] / "metrics.csv").read_bytes()


def test_a_failed_run_is_named_and_the_others_finish(command, capsys, tmp_path, monkeypatch):
    from avalanche_rwf.strategies import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setenv("AVALANCHE_RWF_CHECKPOINT_EVERY", "0")
    probe = registry.get_method("linear-probe")

    @registry.register_method("breaks", summary="raises at the second experience")
    def breaks(*, backbone, num_classes, loop, lr: float = 1e-3):
        strategy = probe.build(backbone=backbone, num_classes=num_classes, loop=loop)
        step = strategy.optimizer_step

        def optimizer_step():
            if strategy.clock.train_exp_counter == 1:
                raise ArithmeticError("a number\nis wrong")
            step()

        strategy.optimizer_step = optimizer_step
        return strategy

    line = command(tmp_path, "--methods", "breaks,ncm", "--seeds", "0")
    status, out, err = call(capsys, *line)
    found = runs(tmp_path)
    log = found["breaks", "seed0"] / "log.txt"
    assert status == 1
    assert f"FAILED breaks seed 0: a number is wrong (see {log})" in err
    assert "Traceback" not in err
    assert "Traceback" in log.read_text()
    assert "ArithmeticError" in log.read_text()
    summary = json.loads((log.parent / "summary.json").read_text())
    assert summary == {
        "status": "failed", "error": "a number is wrong", "error_type": "ArithmeticError"
    }  # fmt: skip
    assert json.loads((found["ncm", "seed0"] / "summary.json").read_text())["status"] == "done"
    assert "breaks" in out  # visible, though it has no numbers
    assert "left out" not in err
    with (tmp_path / "leaderboard.csv").open() as file:
        failed = {row["method"]: row["failed"] for row in csv.DictReader(file)}
    assert failed == {"breaks": "1", "ncm": "0"}

    # The leaderboard says why, and where the log is.
    status, _, err = call(capsys, "leaderboard", tmp_path)
    assert status == 0
    assert f"FAILED breaks seed 0: a number is wrong (see {log})" in err

    # Tried again, and its log keeps what happened before.
    status, _, err = call(capsys, *line)
    assert status == 1
    assert "1 done already" in err
    assert log.read_text().count("Traceback") == 2
    assert "resumed after experience 0" in log.read_text()


def test_the_tuned_budget(command, capsys, tmp_path, compared):
    more = ("--budget", "tuned", "--seeds", "0,1", "--mask", "seen")
    status, out, err = call(capsys, *command(tmp_path, *more))
    assert status == 0, err
    for method, tried in (("ncm", 1), ("rwf", 10), ("linear-probe", 10)):
        said = rf"^{method}: .*, [\d.]+ % on held-out training images \({tried} settings?\)\.$"
        assert re.search(said, err, re.M), err
        assert re.search(rf"{method}[^,]* \(of {tried}\)", " ".join(out.split())), out
    assert len(list((tmp_path / "tuning").iterdir())) == 3
    for (method, _), folder in runs(tmp_path).items():
        config = json.loads((folder / "config.json").read_text())["config"]
        assert config["budget"] == "tuned"
        assert config["tuning"]["settings"] == (1 if method == "ncm" else 10)
        assert (config["tuning"]["seed"], config["tuning"]["holdout"]) == (0, 0.25)
        assert config["options"].get("mask", "seen") == "seen"  # given: not varied
        assert {**config["options"], **config["tuning"]["chosen"]} == config["options"]

    status, again, err = call(capsys, *command(tmp_path, *more))
    assert (status, again) == (0, out)
    assert "6 done already" in err

    # Beside the runs with default options: other rows of the same table.
    both = copy(compared, tmp_path / "both")
    shutil.copytree(tmp_path / "runs", both / "runs", dirs_exist_ok=True)
    status, out, _ = call(capsys, "leaderboard", both, "--format", "md")
    assert status == 0
    assert out.count("| tuned |") == out.count("| default |") == 3


def test_corrupt_images_are_skipped_and_counted(command, capsys, spoilt, tmp_path):
    more = ("--benchmark", f"folder:{spoilt / 'corrupt'}", "--skip-corrupt", "--methods", "ncm")
    status, _, err = call(capsys, *command(tmp_path, *more, "--seeds", "0"))
    assert status == 0
    assert "1 corrupt images were left out" in err
    content = json.loads((runs(tmp_path)["ncm", "seed0"] / "config.json").read_text())
    assert content["data"]["skipped"] == 1
    assert content["data"]["train_size"] == 3


def test_common_choices_reach_the_methods_that_have_them(command, capsys, tmp_path):
    more = ("--head", "cosine", "--set", "rwf*.num_prompts=2", "--seeds", "0")
    status, _, err = call(capsys, *command(tmp_path, *more))
    assert status == 0
    assert "ncm has no choice of head" in err
    options = {
        key[0]: json.loads((folder / "config.json").read_text())["config"]["options"]
        for key, folder in runs(tmp_path).items()
    }
    assert options["rwf"]["head"] == options["linear-probe"]["head"] == "cosine"
    assert options["rwf"]["num_prompts"] == 2


def test_the_packaged_backbone_runs_without_a_flag(images, capsys, tmp_path):
    status, out, err = call(
        capsys, "compare", "--benchmark", f"folder:{images}", "--methods", "ncm", "--seeds", "0",
        "--jobs", 1, "--quiet", "--out", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    assert "rwf_vit_mini_patch8_32" in out


# ---- the other verbs


@pytest.mark.parametrize("name", cli.FORMATS)
def test_leaderboard_in_every_format(name, compared, capsys):
    status, out, err = call(capsys, "leaderboard", compared[0], "--format", name)
    assert (status, err) == (0, "")
    assert all(method in out for method in METHODS)
    if name == "text":
        assert out == compared[1]


def test_leaderboard_names_what_it_leaves_out(compared, capsys, tmp_path):
    out = copy(compared, tmp_path)
    (runs(out)["ncm", "seed0"] / "summary.json").write_text("{")
    status, printed, err = call(capsys, "leaderboard", out)
    assert status == 0
    assert err.startswith("left out: ")
    assert err.count("\n") == 1
    assert "seed0" in err
    assert "rwf" in printed


def test_the_formats_are_those_of_the_leaderboard():
    from avalanche_rwf.leaderboard.table import FORMATS

    assert cli.FORMATS == FORMATS


def test_a_terminal_without_the_signs_gets_question_marks(compared, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["leaderboard", str(compared[0])]) == 0
    terminal.seek(0)
    assert " ? " in terminal.read()


# ---- streams


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (["split"], "split, seed 3"),
        (["si-blurry", "--blurry", "30"], "si-blurry (disjoint=50, blurry=30, remainder=keep)"),
        (["i-blurry", "--remainder", "drop"], "i-blurry (disjoint=50, blurry=10, remainder=drop)"),
        (["k-shot"], "k-shot (shots=4)"),
        (["fscil", "--base", "4", "--way", "3"], "fscil (base=4, way=3, shots=5)"),
        (["repetition", "--repeat", "1"], "repetition (repeat=1.0)"),
    ],
)
def test_inspect(stream, says, capsys, tmp_path):
    """Table, JSON and picture of one stream agree."""
    line = ["inspect", "--stream", *stream, "--seed", 3, "--plot", tmp_path / "stream.png"]
    status, out, err = call(capsys, *line)
    assert status == 0, err
    title, header, *rows, total = out.splitlines()
    assert title.startswith("split-digits, stream ") and says in title
    assert header.split()[:4] == ["exp", "samples", "test", "classes"]
    assert Image.open(tmp_path / "stream.png").convert("L").getextrema() == (0, 255)

    status, out, _ = call(capsys, *line, "--json")
    values = json.loads(out)  # nothing else on stdout
    assert status == 0
    assert set(values) == {
        "benchmark", "stream", "seed", "num_classes", "class_names", "options", "experiences",
    }  # fmt: skip
    assert (values["benchmark"], values["stream"], values["seed"]) == ("split-digits", stream[0], 3)
    assert len(values["experiences"]) == len(rows)
    seen: list[str] = []
    for row, e in zip(rows, values["experiences"], strict=True):
        assert set(e) == {"size", "classes", "class_counts", "labels", "first_seen", "test_size"}
        assert [int(cell) for cell in row.split()[1:5]] == [
            e["size"], e["test_size"], len(e["classes"]), len(e["first_seen"]),
        ]  # fmt: skip
        assert e["size"] == sum(e["class_counts"].values())
        assert list(e["class_counts"]) == e["classes"]
        assert e["classes"] == [values["class_names"][label] for label in e["labels"]]
        assert e["first_seen"] == [name for name in e["classes"] if name not in seen]
        seen += e["first_seen"]
    assert seen == values["class_names"] and len(seen) == values["num_classes"] == 10
    assert total.split()[:4] == [
        "all", *(str(sum(e[key] for e in values["experiences"])) for key in ("size", "test_size")),
        "10",
    ]  # fmt: skip


def test_inspect_of_a_folder_reads_no_image(images, capsys, monkeypatch):
    def read(*args, **kwargs):
        pytest.fail("an image was opened")

    from avalanche_rwf.benchmarks.datasets import folder

    folder._memory.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", read)
        status, out, _ = call(
            capsys, "inspect", "--benchmark", f"folder:{images}", "--class-order", "d,c,b,a",
            "--classes-per-experience", "3,1", "--json",
        )  # fmt: skip
    assert status == 0
    assert [e["class_counts"] for e in json.loads(out)["experiences"]] == [
        {"d": 5, "c": 5, "b": 5}, {"a": 5},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flags", [["--mean", "1,2"], ["--std", "0,0,0"], ["--test-share", "2"], ["--split-seed", "1"]]
)
def test_wrong_preparation_is_refused_before_anything_slow_is_imported(flags):
    code = (
        "import sys; from avalanche_rwf.cli import main; status = main(sys.argv[1:]); "
        "assert status == 2 and not {'torch', 'timm', 'avalanche'} & set(sys.modules)"
    )
    line = [sys.executable, "-c", code, "compare", *flags]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"avalanche-rwf: {flags[0]}")


def test_a_folder_without_a_split_and_another_mean_are_recorded(
    command, images, capsys, tmp_path
):
    from avalanche_rwf.experiments.config import RunConfig

    whole = ["--benchmark", f"folder:{images}/train", "--test-share", "0.4"]
    more = [*whole, "--methods", "ncm", "--seeds", "0"]
    name = "hf-hub:timm/vit_tiny_patch16_224"  # for the hub's client; the bare name is recorded
    prepared = ["--data-config", "timm/vit_small_patch16_224.dino", "--std", "0.1,0.2,0.3"]
    given = ["--split-seed", "7", *prepared, "--backbone", name]
    status, _, err = call(capsys, *command(tmp_path / "a", *more))
    assert status == 0
    assert "for weights of your own" in err and "--mean and --std" in err
    status, _, err = call(capsys, *command(tmp_path / "b", *more, *given))
    assert status == 0
    assert "for weights of your own" not in err
    hashes = set()
    for out, seed in ((tmp_path / "a", 0), (tmp_path / "b", 7)):
        content = json.loads((runs(out)["ncm", "seed0"] / "config.json").read_text())
        config = RunConfig.from_dict(content["config"])
        assert (config.test_share, config.split_seed) == (0.4, seed)
        assert (content["data"]["train_size"], content["data"]["test_size"]) == (12, 8)
        assert content["backbone"]["name"] == config.backbone == "vit_tiny_patch16_224"
        hashes.add(content["config_hash"])
    assert len(hashes) == 2
    assert config.data_config["mean"] == [0.485, 0.456, 0.406]
    assert config.data_config["std"] == [0.1, 0.2, 0.3]
    status, out, _ = call(capsys, "inspect", *whole, "--split-seed", 7, "--json")
    assert status == 0
    assert [e["test_size"] for e in json.loads(out)["experiences"]] == [2, 2, 2, 2]


def test_inspect_says_what_is_left_out_on_stderr_and_in_json(images, capsys, tmp_path):
    root = shutil.copytree(images, tmp_path / "set")
    shutil.copytree(root / "test", root / "val")
    (root / "train" / "a" / "notes.txt").write_text("x")
    status, out, err = call(capsys, "inspect", "--benchmark", f"folder:{root}", "--json")
    assert status == 0
    notes = json.loads(out)["notes"]
    assert len(notes) == 2 and err.splitlines() == notes
    assert "val" in notes[0] and "notes.txt" in notes[1]


def test_inspect_leaves_out_what_compare_would(spoilt, capsys):
    status, out, _ = call(
        capsys, "inspect", "--benchmark", f"folder:{spoilt}/corrupt", "--skip-corrupt", "--json"
    )
    assert status == 0
    assert sorted(e["size"] for e in json.loads(out)["experiences"]) == [1, 2]


def test_list_streams(capsys):
    status, out, err = call(capsys, "list", "streams")
    assert (status, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["split", "fscil", "i-blurry", "k-shot", "repetition", "si-blurry"]
    assert all(len(line.split()) > 3 for line in out.splitlines())
    assert call(capsys, "list", "streams", "*blurry")[1].count("\n") == 2


def test_lists(capsys):
    status, out, err = call(capsys, "list", "methods", "rwf*")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()][:2] == ["rwf", "rwf-lda"]
    benchmarks = call(capsys, "list", "benchmarks")[1].splitlines()
    assert benchmarks[0] == "folder:PATH"
    assert {"split-digits", "split-cifar100", "split-imagenet-r"} < set(benchmarks)
    names = call(capsys, "list", "backbones", "*patch8_32")[1]
    assert names == "rwf_vit_mini_patch8_32\n"


@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["compare", "--help"]])
def test_help_and_version_go_to_stdout(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(flags)
    captured = capsys.readouterr()
    assert stopped.value.code == 0
    assert captured.out
    assert captured.err == ""


def test_ctrl_c_is_no_traceback(command, capsys, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("avalanche_rwf.experiments.executors.execute", stop)
    status, _, err = call(capsys, *command(tmp_path))
    assert status == 130
    assert "Traceback" not in err


def test_ctrl_c_in_an_import_of_compiled_code_is_no_traceback(
    command, capsys, tmp_path, monkeypatch
):
    """There it becomes an ImportError."""
    def stop(*args, **kwargs):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("avalanche_rwf.experiments.compare.plan", stop)
    status, _, err = call(capsys, *command(tmp_path, "--fresh"))
    assert status == 130
    assert "Stopped; the same command without --fresh goes on from here." in err


class Gone(io.StringIO):
    """stderr of a pipe whose reader has ended, as `2>&1 | head` does."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stderr", [None, Gone()])
def test_without_a_reader_of_messages_the_work_is_done(
    stderr, command, compared, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", stderr)
    words = [word for word in command(tmp_path) if word != "--quiet"]
    words[words.index("--methods") + 1] = "ncm"
    assert cli.main(words) == 0
    assert sys.stderr is stderr
    assert capsys.readouterr().out.count("\n1  ncm") == 1
    assert cli.main(["leaderboard", str(tmp_path / "nothing")]) == 2


def test_a_leaderboard_that_cannot_be_written_is_printed(
    compared, command, capsys, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = copy(compared, tmp_path)
    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    status, printed, err = call(capsys, *command(out))
    assert status == 1
    assert printed == compared[1]
    assert f"leaderboard.csv in {str(out)!r} was not written (No space left on device)." in err


def test_a_folder_that_was_renamed_meanwhile_is_no_wrong_flag(
    compared, command, capsys, tmp_path, monkeypatch
):
    out = copy(compared, tmp_path)

    def renames(*args, **kwargs):
        out.rename(tmp_path / "elsewhere")
        return iter(())

    monkeypatch.setattr("avalanche_rwf.experiments.executors.execute", renames)
    status, printed, err = call(capsys, *command(out))
    assert (status, printed) == (1, "")
    assert f"The folder {str(out)!r} was removed or renamed meanwhile." in err
