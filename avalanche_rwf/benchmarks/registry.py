"""Benchmarks by name: `create_benchmark("split-digits", ...)`, `create_benchmark("folder:PATH",
...)`.

A new image source is one file in `datasets/` with a function decorated by `@register_benchmark`; it
is found here without another edit. Nothing heavy is imported until a benchmark is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avalanche_rwf.benchmarks.options import AUGMENTATIONS, StreamOptions, three_numbers
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.registry import Registry, check_call
from avalanche_rwf.utils.user_code import origin_of, told
from avalanche_rwf.utils.validation import INTERPOLATIONS

if TYPE_CHECKING:
    from torch import nn

    from avalanche_rwf.benchmarks.splits import Benchmark, ImageSource, StreamPlan

__all__ = [
    "AUGMENTATIONS",
    "BENCHMARKS",
    "INTERPOLATIONS",
    "BenchmarkSpec",
    "StreamOptions",
    "create_benchmark",
    "get_benchmark",
    "list_benchmarks",
    "plan_benchmark",
    "register_benchmark",
]

_PREPARATION = {"image_size", "mean", "std", "interpolation", "crop_pct"}


@dataclass(frozen=True)
class BenchmarkSpec:
    """A registered image source.

    :param name: as typed; a trailing ":" means that an argument follows, as in `folder:PATH`.
    :param load: `load(options)`, or `load(options, argument)` for a name with an argument.
    :param summary: one line for listings.
    :param origin: where the code is, if not in this package; see :func:`.user_code.origin_of`.
    :param check: `check(argument, test_share)` refuses what can be refused before anything is read;
        None if the images have a test set of their own.
    """

    name: str
    load: Callable[..., ImageSource]
    summary: str
    origin: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[str, float], object] | None = None


BENCHMARKS: Registry[BenchmarkSpec] = Registry(
    "benchmark",
    "avalanche_rwf.benchmarks.datasets",
    unknown="unknown {kind} {name!r}",
    arguments=True,
)


def register_benchmark(
    name: str, *, summary: str = "", check: Callable[[str, float], object] | None = None
) -> Callable[[Callable[..., ImageSource]], Callable[..., ImageSource]]:
    """Register a function that loads an image source: `load(options: StreamOptions[, argument:
    str])`.

    :param name: unique; with a trailing ":" the text after it is passed as the second argument.
    :param summary: one line for listings; default: the first line of the function's docstring.
    :param check: see :class:`BenchmarkSpec`.
    :raises ValueError: if the name is taken, or the function takes other arguments.
    """

    def decorate(load: Callable[..., ImageSource]) -> Callable[..., ImageSource]:
        takes = ("options", "argument") if name.endswith(":") else ("options",)
        check_call("benchmark", name, load, takes)
        line = summary or (load.__doc__ or "").strip().split("\n")[0]
        BENCHMARKS.add(name, BenchmarkSpec(name, load, line, origin_of(load), check), load)
        return load

    return decorate


def list_benchmarks(pattern: str = "*") -> list[str]:
    """Registered names that match the wildcard `pattern`, sorted; "folder:" takes a path after
    it."""
    return BENCHMARKS.names(pattern)


def get_benchmark(name: str) -> BenchmarkSpec:
    """Return the entry that `name` (with or without its argument) belongs to.

    :raises UsageError: no such benchmark; the nearest names are given.
    """
    return BENCHMARKS.lookup(name)


def check_benchmark(name: str, test_share: float = 0.0) -> None:
    """Refuse what can be refused before anything is read: names, and folders without a split.

    :raises UsageError: as :func:`create_benchmark`.
    """
    spec = get_benchmark(name)
    if test_share and spec.check is None:
        raise UsageError(
            f"test_share (--test-share) is for folder:PATH without test images; {name!r} has them, "
            f"so it takes 0, not {test_share}."
        )
    argument = name[len(spec.name) :]
    if spec.check is not None and argument:
        spec.check(argument, test_share)


def create_benchmark(
    name: str,
    *,
    seed: int = 0,
    experiences: int | None = None,
    backbone: nn.Module | str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    skip_corrupt: bool = False,
    augment: str = "none",
    holdout: float = 0.0,
    stream: str = "split",
    stream_options: Mapping[str, Any] | None = None,
    normalised: bool = True,
    test_share: float = 0.0,
    split_seed: int = 0,
) -> Benchmark:
    """Make a stream of the images of `name`, for any Avalanche strategy.

    The same arguments give the same stream: classes, samples and their order. The test images do
    not depend on the seed.

    :param name: a name of `list_benchmarks`, such as `split-digits` or `folder:PATH`.
    :param seed: decides the order of the classes and of the training samples in each experience.
    :param experiences: how many experiences the classes are spread over, as evenly as possible;
        default by benchmark.
    :param backbone: the model that will see the images, or its name (nothing is fetched): size,
        mean, std, interpolation and crop_pct are as it wants them where they are not given. None is
        the packaged one.
    :param image_size: side of the square images in pixels.
    :param mean: per channel, of images scaled to [0, 1]; images are normalised by (x - mean) / std.
    :param std: per channel, of images scaled to [0, 1].
    :param interpolation: one of `INTERPOLATIONS`; see :class:`.images.Geometry`.
    :param crop_pct: share of the resized side that is kept; see there.
    :param skip_corrupt: leave unreadable images out and count them in `Benchmark.skipped`, instead
        of raising.
    :param augment: of training images, one of `AUGMENTATIONS`: "none"; "flip": half of them, chosen
        by seed, are mirrored; "flip-crop" and "autoaug": see :mod:`.augmentation`.
    :param holdout: if above 0, the test stream holds this share of the training images of each
        class, always the same ones, and the training stream the rest: for choosing hyper-parameters
        without test images.
    :param stream: kind of stream, a name of `stream_registry.list_streams`; "split" brings new
        classes in each experience.
    :param stream_options: of that kind; what is missing has its default.
    :param normalised: False gives images uint8, not normalised, where the source holds them so: for
        a training loop that normalises batches on its device.
    :param test_share: of a folder without a split, this share of the images of each class is the
        test set; see `folder:`.
    :param split_seed: of that choice.
    :raises UsageError: any of these is out of range, or the images cannot be used; said in one
        sentence.
    """
    prepared = _prepared(backbone, image_size=image_size, mean=mean, std=std,
                         interpolation=interpolation, crop_pct=crop_pct)  # fmt: skip
    options = StreamOptions(
        **prepared,
        seed=seed,
        experiences=experiences,
        test_share=test_share,
        split_seed=split_seed,
        skip_corrupt=skip_corrupt,
        augment=augment,
        holdout=holdout,
        stream=stream,
        stream_options={} if stream_options is None else stream_options,
        normalised=normalised,
    )
    from avalanche_rwf.benchmarks import splits

    source = _load(name, options)
    benchmark = splits.make_benchmark(name, source, options)
    benchmark.in_memory = source.in_memory
    return benchmark


def _prepared(backbone: nn.Module | str | None, **given: Any) -> dict[str, Any]:
    """How images are prepared: as it is given, else as the backbone wants them."""
    given = {name: value for name, value in given.items() if value is not None}
    # With everything else given, no backbone is asked, and nothing is cropped.
    wanted: dict[str, Any] = {"crop_pct": 1.0}
    if backbone is not None or given.keys() | wanted.keys() != _PREPARATION:
        from avalanche_rwf.models.backbone import PACKAGED, backbone_info, image_preparation

        if backbone is None or isinstance(backbone, str):
            wanted = image_preparation(PACKAGED if backbone is None else backbone)
        else:
            info = backbone_info(backbone)
            wanted = {name: getattr(info, name) for name in _PREPARATION}
    wanted |= given
    return {**wanted, **{name: three_numbers(name, wanted[name]) for name in ("mean", "std")}}


def plan_benchmark(
    name: str,
    *,
    seed: int,
    experiences: int | None = None,
    skip_corrupt: bool = False,
    stream_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> StreamPlan:
    """Which samples `create_benchmark` would bring when; needs no backbone and no Avalanche.

    No image is decoded, so that a broken one is not noticed, unless `skip_corrupt` is to leave such
    images out.

    :param options: `holdout`, `stream`, `test_share` and `split_seed`, as there.
    :raises UsageError: as there.
    """
    known = StreamOptions(
        **options,
        image_size=8,  # nobody looks at the pixels
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="nearest",
        seed=seed,
        experiences=experiences,
        stream_options={} if stream_options is None else stream_options,
        skip_corrupt=skip_corrupt,
        decode=skip_corrupt,
    )
    from avalanche_rwf.benchmarks import splits

    return splits.plan_stream(name, _load(name, known), known)


def _load(name: str, options: StreamOptions) -> ImageSource:
    spec = get_benchmark(name)
    check_benchmark(name, options.test_share)
    arguments: tuple[Any, ...] = (options,)
    if spec.name.endswith(":"):
        argument = name[len(spec.name) :]
        if not argument:
            raise UsageError(f"benchmark {name!r} needs a path after the colon: {spec.name}PATH.")
        arguments = (options, argument)
    with told(f"The benchmark {name!r}", spec.origin):
        source = spec.load(*arguments)
    from avalanche_rwf.benchmarks import splits

    splits.check_source(name, source)
    return source
