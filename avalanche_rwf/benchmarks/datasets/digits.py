"""`split-digits`: scikit-learn's handwritten digits, 1,797 real 8x8 images that are installed with
it.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (CC BY 4.0); scikit-learn ships its test part.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.registry import register_benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from avalanche_rwf.benchmarks.splits import ImageSource

TEST_SHARE = 0.25
_SPLIT_SEED = 1998  # of the test images, the same for every stream


@register_benchmark(
    "split-digits", summary="scikit-learn's handwritten digits, 10 classes, offline (5 experiences)"
)
def load_digits_source(options: StreamOptions) -> ImageSource:
    """Load the digits as RGB at `image_size`, with a fixed stratified quarter of them as test
    images.

    The 8x8 images fill their frame, so nothing is cropped: `crop_pct` does not apply.
    """
    from avalanche_rwf.benchmarks.images import TensorImages
    from avalanche_rwf.benchmarks.splits import ImageSource, stratified_part

    images, targets = _digits(options.image_size, options.interpolation)
    data = TensorImages(images, targets, options.mean, options.std)
    train, test = stratified_part(targets, TEST_SHARE, _SPLIT_SEED)
    from avalanche_rwf.benchmarks.images import Subset

    train_targets = [targets[index] for index in train]
    test_targets = [targets[index] for index in test]
    return ImageSource(
        train=Subset(data, train.tolist(), train_targets),
        train_targets=train_targets,
        test=Subset(data, test.tolist(), test_targets),
        test_targets=test_targets,
        class_names=[str(digit) for digit in range(10)],
        default_experiences=5,
        equal_experiences=True,
    )


@functools.lru_cache(maxsize=1)
def _digits(size: int, interpolation: str) -> tuple[Tensor, tuple[int, ...]]:
    """Grey images float32 [1797, 1, size, size] in [0, 1] and their labels; runs of one comparison
    share them."""
    import numpy as np
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.asarray(bunch.images, dtype=np.float32) / 16.0
    if size != grey.shape[-1]:
        resample = Image.Resampling[interpolation.partition("-")[0].upper()]
        grey = np.stack(
            [np.asarray(Image.fromarray(image).resize((size, size), resample)) for image in grey]
        )
    # Bicubic and Lanczos overshoot at edges.
    images = torch.from_numpy(grey.clip(0.0, 1.0))[:, None]
    return images, tuple(int(target) for target in bunch.target)
