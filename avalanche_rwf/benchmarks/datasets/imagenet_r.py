"""`split-imagenet-r`: ImageNet-R(enditions), 30,000 images of 200 ImageNet classes.

Source: D. Hendrycks et al., "The Many Faces of Robustness", ICCV 2021, arXiv 2006.16241;
https://github.com/hendrycks/imagenet-r. The repository's code is under the MIT licence; the images
were collected from the web and remain their makers'.

The authors publish no hash. The SHA-256 and the size are those that TensorFlow Datasets records
for this address (`url_checksums/imagenet_r.txt`); the MD5 that several libraries record for the
same file is a61312130a589d0ca1a8fca1f2bd3337.

There is no official test split: see :func:`.sources.hashed_test_part`.
"""

from __future__ import annotations

from pathlib import Path

from avalanche_rwf.benchmarks.sources import (
    Archive,
    DataFacts,
    FileDataset,
    Row,
    hashed_rows,
    register_dataset,
)

FACTS = DataFacts(
    name="imagenet-r",
    archives=(
        Archive(
            name="imagenet-r.tar",
            urls=("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
            size=2_191_079_936,
            digest="sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
            unpacked=2_191_079_936,  # it is not compressed
        ),
    ),
    images=30_000,
    test=None,
    classes=200,
    page="https://github.com/hendrycks/imagenet-r",
)


@register_dataset("split-imagenet-r", "ImageNet-R")
class ImageNetR(FileDataset):
    """ImageNet-R; classes are WordNet numbers such as n01443537."""

    FACTS = FACTS

    def rows(self, folder: Path) -> list[Row]:
        """Every image, in `imagenet-r/<class>/`."""
        return hashed_rows(folder, "imagenet-r")
