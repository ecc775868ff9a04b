"""Nonsense on the command line: a sentence and a status, never a traceback, nothing run or written.

What is refused is decided here anew, from what the flags are documented to take.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.benchmarks.stream_registry import OPTIONS, get_stream, list_streams
from avalanche_rwf.strategies.registry import get_method, list_methods

from ..runs import make_folder
from .nonsense import World, examples, refused, tiny, words

CLASSES = 6
FOLDER: Path
list_streams()  # so that OPTIONS is there


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory) -> None:
    global FOLDER
    FOLDER = make_folder(tmp_path_factory.mktemp("images"), 5)


def base(world: World, methods: str = "ncm") -> list[str]:
    return tiny(FOLDER, world.out, methods)


def whole(low: int, high: int | None = None) -> Callable[[str], bool]:
    """Whether a word is a whole number that is taken."""

    def takes(word: str) -> bool:
        try:
            return low <= int(word) <= (10**9 if high is None else high)
        except ValueError:
            return False

    return takes


def share(word: str) -> bool:
    try:
        return 0 <= float(word) < 1
    except ValueError:
        return False


def one_of(*names: str) -> Callable[[str], bool]:
    return lambda word: word in names


def nothing(word: str) -> bool:
    return False


def anything(word: str) -> bool:
    return True


def perhaps_seeds(word: str) -> bool:
    return re.fullmatch(r"[\d,\s-]+", word) is not None  # the words of its own are refused


def perhaps_method(word: str) -> bool:
    return any(sign in word for sign in "*?[:") or "all" in word


# Flag -> whether a word is (or may be) one that it takes, and words of its own that it does not.
VALUES: dict[str, tuple[Callable[[str], bool], tuple[str, ...]]] = {
    "--seeds": (perhaps_seeds, (
        *("1-0", "0,3-1", "4294967296", "0-99999999999", "0-1000", ",", "0,", "-1", "0--1"),
        *("0-1-2", "1e3", "0.0", "0;1"),
    )),
    "--experiences": (whole(1, CLASSES), ("0", "-1", "7", "10000000000", "1.0", "9" * 30)),
    "--image-size": (
        lambda word: whole(1)(word) and int(word) % 8 == 0,
        ("0", "-8", "7", "17", "1000000000000", "1000000", "16.0", "9" * 30),
    ),
    "--batch-size": (whole(1), ("0", "-1", "1.5", "10000000000", "9" * 30)),
    "--gradient-steps": (whole(1), ("0", "-1", "1.5", "10000000000", "9" * 30)),
    "--head": (nothing, ("Linear", "linear,cosine", "none")),
    "--mask": (one_of("none"), ("None ", "ace", "all")),
    "--readout": (nothing, ("means", "cls+", "layer")),
    "--augment": (one_of("none"), ("Flip", "flip,autoaug")),
    "--budget": (nothing, ("tune", "5")),
    "--eval-every-samples": (whole(0, 10**12), ("-1", "1.5", "9" * 30)),
    "--eval-subset": (whole(0, 10**12), ("-1", "1", "5", "9" * 30)),
    "--holdout": (share, ("1", "1.0", "-0.1", "nan", "inf", "1e999", "20%")),
    "--precision": (nothing, ("fp64", "FP32", "bf16 ")),
    "--device": (nothing, ("cuda:", "cuda:-1", "cuda:99", "gpu", "cpu:0:0", "cpu:x", "mps")),
    "--jobs": (whole(1, 1024), ("0", "-1", "1.5", "1025", "9" * 30)),
    "--workers": (whole(0, 1024), ("-1", "1.5", "1000000000", "9" * 30)),
    "--checkpoint-every": (whole(0), ("-1", "Auto", "1.5", "9" * 30)),
    "--stream": (nothing, ("Split", "split,k-shot", "si_blurry")),
    "--benchmark": (nothing, (
        *("folder:", "folder:/nowhere", "folder:a\0b", "folder:.", "folder:" + "a" * 5000),
        *("Split-Digits", "split-digits:x", "http://x", "folder:file.txt"),
    )),
    "--format": (nothing, ("TEXT", "cl-baselines", "json")),
    "--set": (nothing, (
        *("ncm", "ncm.", ".readout", "=", "ncm.=cls", ".=", "ncm.readout", "ncm.lr=1", "er.lr=1"),
        *("ncm.readout=", "ncm.readout=means", "*.nope=1", "n*.readout=1", "ncm.readout=\0"),
    )),
    "--backbone-arg": (nothing, ("depth", "=", "=3", "a b=3", "1x=3", "name=x", "weights=x",
                                 "image_size=8", "nope=3", "depth=", "num_classes=3")),
    "--backbone": (nothing, ("vit_tiny", "resnet18", "vit_tiny_patch16_224.nope", "swin_tiny",
                             "rwf_vit_mini_patch8_32.x")),
    "--weights": (nothing, ("nowhere.pth", "nowhere.safetensors", "/", ".pth", "x\0.pth",
                            "../file.txt", "a" * 5000 + ".pth")),
    "--import": (lambda word: word.isidentifier(), ("no.py", "no.such.module", "/", "a\0.py")),
    "--methods": (perhaps_method, (
        *(",", " , ", "nope", "ncm,nope", "ncm nope", "avalanche:Nope", "avalanche:", ":"),
        *("os:path", "nope.py:x", "x*", "ncm;slda", "\0", "a:\0"),
    )),
    # Others may be folders, which need not be in the world of the test.
    "--out": (anything, (
        *("../file.txt", "../file.txt/below", "/proc/nowhere", "a\0b", "x" * 300, "/dev/null"),
    )),
    "--data-root": (anything, ("../file.txt", "../file.txt/below", "a\0b", "x" * 300)),
}  # fmt: skip
# A kind of stream, and what each of its options does not take.
STREAM_VALUES = {
    "class_order": ("0,1", "a,b,c,d,e,f,g", "a,a,b,c,d,e", "0,1,2,3,4,6"),
    "classes_per_experience": ("0", "6,6", "-1,7", "1,1", "6,0", "1.5", "9" * 30),
    "shots": ("0", "-1", "1.5"),
    "base": ("0", "-1", "7", "9" * 30),
    "way": ("0", "-1", "1.5"),
    "preset": ("cifar10", "CUB200"),
    "disjoint": ("-1", "101", "50.5", "50%"),
    "blurry": ("-1", "101", "50.5", "50%"),
    "remainder": ("Keep", "both"),
    "repeat": ("-0.1", "1.1", "nan", "1e999"),
}
STREAM_TAKES = re.compile(r"[\d\s_,.-]+|keep|drop|sorted|nan")


@st.composite
def wrong_flag(draw: st.DrawFn) -> list[str]:
    """A flag of compare with something that it does not take."""
    flag = draw(st.sampled_from(sorted(VALUES)))
    takes, own = VALUES[flag]
    others = () if takes is anything else (words().filter(lambda word: not takes(word)),)
    word = draw(st.one_of(st.sampled_from(own), *others))
    return _written(draw, flag, word)


@st.composite
def wrong_stream(draw: st.DrawFn) -> list[str]:
    """A stream's option with something that it does not take, or that another stream has."""
    stream = draw(st.sampled_from(list_streams()))
    name = draw(st.sampled_from(sorted(OPTIONS)))
    words_of_others = words().filter(lambda word: not STREAM_TAKES.fullmatch(word))
    if name in get_stream(stream).options:
        word = draw(st.sampled_from(STREAM_VALUES[name]) | words_of_others)
    else:
        word = draw(st.sampled_from(("1", "50", "keep", "0.5")) | words_of_others)
    return ["--stream", stream, *_written(draw, OPTIONS[name].flag, word)]


def _written(draw: st.DrawFn, flag: str, word: str) -> list[str]:
    """The two ways to write a flag with its value."""
    if word.startswith("-") or draw(st.booleans()):
        return [f"{flag}={word}"]
    return [flag, word]


UNKNOWN = (
    *(["--nope"], ["--nope=1"], ["-x"], ["--b", "1"], ["--e=5"], ["stray"], ["--quiet=1"], [""]),
    *(["--seeds"], ["--seeds="], ["--out="], ["--out", ""], ["--backbone", ""], ["--weights="]),
    *(["--import", ""], ["--stream="], ["--data-root="], ["--fresh=no"], ["--seeds=--"]),
    *(["--seeds", "0", "--seeds", "x"], ["--meth=nope"], ["--exp", "0"], ["--backbone-a=x"]),
)


@st.composite
def unknown(draw: st.DrawFn) -> list[str]:
    """What no verb knows, or a flag without its value, or an empty value."""
    odd = st.text(min_size=1, max_size=10).map(lambda word: [f"--no{word}"])
    return draw(st.sampled_from(UNKNOWN) | odd)


HARMLESS = (
    *(["--fresh"], ["--quiet"], ["--skip-corrupt"], ["--boundary-free"], ["--batch-size=3"]),
    *(["--seeds", "1,1"], ["--eval-every-samples", "0"], ["--holdout", "0"], ["--mask", "none"]),
    *(["--format", "csv"], ["--gradient-steps", "2"], ["--workers=0"], ["--seed", "3-4"]),
    *(["--experiences=2"], ["--checkpoint-every", "0"], ["--augment", "flip"]),
    *(["--set", "n*.readout=cls"],),
)


@examples(300)
@given(
    st.lists(st.sampled_from(HARMLESS), max_size=3),
    wrong_flag() | wrong_flag() | wrong_flag() | wrong_stream() | unknown(),
)
def test_compare_refuses_a_flag_with_nonsense_among_others(world, harmless, wrong):
    refused(world.say([*base(world), *itertools.chain(*harmless), *wrong]))


@pytest.mark.parametrize("flag", sorted(VALUES))
def test_what_a_flag_of_compare_does_not_take(flag, world):
    for word in VALUES[flag][1]:
        refused(world.say([*base(world), f"{flag}={word}"]))


@pytest.mark.parametrize("stream", list_streams())
def test_what_a_stream_does_not_take(stream, world):
    for option in OPTIONS.values():
        there = option.name in get_stream(stream).options
        for word in STREAM_VALUES[option.name] if there else ("1", "keep"):
            refused(world.say([*base(world), "--stream", stream, f"{option.flag}={word}"]))


@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_what_compare_does_not_know(words, world):
    refused(world.say([*base(world), *words]))


@examples(20)
@given(st.lists(st.sampled_from(HARMLESS), max_size=6))
def test_harmless_flags_in_any_order_are_taken(world, harmless):
    """What the refusals above are not of."""
    assert world.say([*base(world), *itertools.chain(*harmless)]).status == 0


OPTIONS_OF = [(name, key) for name in list_methods() for key in get_method(name).options]
# What an option may be that its type does not say: any number of blocks, or a name.
NOT_NUMBERS = ("x", "nan", "inf", "-inf", "1e999", "1.5.2", "[]", "()", "0x10", "💥", "1,2", "--1")


@examples(150)
@given(st.sampled_from(OPTIONS_OF), st.sampled_from(NOT_NUMBERS) | words())
def test_an_option_of_a_method_takes_its_type(world, option, word):
    method, key = option
    kind = get_method(method).types[key]
    default = get_method(method).options[key]
    answer = world.say([*base(world, method), "--set", f"{method}.{key}={word}"])
    number = re.fullmatch(r"\s*[+-]?[\d_.]+(e[+-]?\d+)?\s*", word.lower()) is not None
    switch = word.lower() in ("true", "false", "yes", "no", "1", "0")
    none = word.lower() in ("none", "null")
    if isinstance(default, str) or (default is None and kind is str):
        # Blocks by number, no mask, no blocks.
        allowed = none or number or word in (default, "1,2")
    elif isinstance(default, bool):
        allowed = switch
    else:
        allowed = number or none
    if not allowed:
        refused(answer)


ARGUMENTS = tuple(inspect.signature(VisionTransformer).parameters)


@examples(100)
@given(
    st.sampled_from(ARGUMENTS) | words(),
    st.sampled_from((*NOT_NUMBERS, "-1", "0", "True", "None", "7", "-0.5", "9" * 25, "1e300"))
    | words(),
)
@example("norm_layer", "x")
@example("mlp_ratio", "1e999")
@example("proj_bias", "[]")
@example("init_values", "9" * 25)
@example("drop_path_rate", "9" * 25)
def test_an_argument_of_a_backbone_ends_in_words(world, key, word):
    """What timm makes of them is timm's business: a sentence or a model."""
    world.say([*base(world), "--backbone-arg", f"{key}={word}"])


@pytest.mark.parametrize(
    "pair",
    (
        *("qkv_bias=flase", "qkv_bias=2", "depth=0", "depth=-1", "depth=True", "num_heads=-1"),
        *("embed_dim=7", "mlp_ratio=-1", "mlp_ratio=0", "init_values=1e999", "init_values=x"),
        *("drop_rate=-0.5", "drop_path_rate=7", "patch_drop_rate=-1", "reg_tokens=-1"),
        *("pretrained=maybe", "pretrained=1", "norm_layer=nope", "act_layer=nope", "patch_size=7"),
        *("class_token=False", "class_token=x", "dynamic_img_size=yes", "global_pool=avg"),
    ),
)
def test_what_a_backbone_does_not_take(pair, world):
    refused(world.say([*base(world), "--backbone-arg", pair]))
