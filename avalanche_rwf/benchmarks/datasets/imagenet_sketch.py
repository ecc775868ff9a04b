"""`split-imagenet-sketch`: ImageNet-Sketch, 50,889 drawings of the 1,000 ImageNet classes.

Source: H. Wang, S. Ge, E. P. Xing, Z. C. Lipton, "Learning Robust Global Representations by
Penalizing Local Predictive Power", NeurIPS 2019, arXiv 1905.13549;
https://github.com/HaohanWang/ImageNet-Sketch. No licence is stated: the images were collected from
the web.

Neither a hash nor the exact size is published (the page says 7.8 GB). What is verified: the size
that the server announces, the CRC-32 of every file in the archive, and the numbers of images and
classes. The archive of the second author on Hugging Face is fetched; the first author's is on
Google Drive, from where a browser gets it.

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
    name="imagenet-sketch",
    archives=(
        Archive(
            name="ImageNet-Sketch.zip",
            urls=(
                "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/"
                "ImageNet-Sketch.zip",
            ),
            size=None,
            digest=None,
            unpacked=10_000_000_000,  # the page says 8.4 GB
        ),
    ),
    images=50_889,
    test=None,
    classes=1000,
    page="https://github.com/HaohanWang/ImageNet-Sketch",
)


@register_dataset("split-imagenet-sketch", "ImageNet-Sketch", experiences=20)
class ImageNetSketch(FileDataset):
    """ImageNet-Sketch; classes are WordNet numbers such as n01440764."""

    FACTS = FACTS

    def rows(self, folder: Path) -> list[Row]:
        """Every image, in `sketch/<class>/`."""
        return hashed_rows(folder, "sketch")
