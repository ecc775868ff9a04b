"""Bad input is one sentence and status 2, before any work is done."""

from __future__ import annotations

import re

import pytest

from .command import VIT, call

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
    "data root": (["--data-root", __file__], ["--data-root", "takes a folder", ".py"]),
    "data root without a name": (["--data-root", ""], ["--data-root", "''"]),
    "precision": (["--precision", "fp64"], ["--precision", "bf16", "'fp64'"]),
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
    "flag in short": (["--method", "rwf"], ["here is no --method", "'--methods'"]),
    "seed": (["--seed", "x"], ["--seeds", "'x'"]),
}  # fmt: skip

# Name of the case -> (the whole command line, what the sentence must say).
BAD_VERBS = {
    "unknown verb": (["comapre"], ["'comapre'", "'compare'"]),
    "list nothing": (["list"], ["kind"]),
    "list unknown kind": (["list", "masks"], ["'masks'", "methods"]),
    "list options of nothing": (["list", "options"], ["options", "method"]),
    "list options": (["list", "options", "rfw"], ["'rfw'", "'rwf'"]),
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
