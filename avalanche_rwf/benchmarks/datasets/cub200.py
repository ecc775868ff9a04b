"""`split-cub200`: Caltech-UCSD Birds-200-2011, 11,788 photographs of 200 species.

Source: C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, "The Caltech-UCSD Birds-200-2011
Dataset", technical report CNS-TR-2011-001, 2011; https://data.caltech.edu/records/65de6-vp158. For
non-commercial research and education; the images remain their makers'.

The MD5 is the one that Avalanche and others record for this file; the size agrees with TensorFlow
Datasets (`url_checksums/caltech_birds2011.txt`). The split is the official one.
"""

from __future__ import annotations

from pathlib import Path

from avalanche_rwf.benchmarks.sources import (
    Archive,
    DataFacts,
    FileDataset,
    Row,
    register_dataset,
)

_TOP = "CUB_200_2011"
FACTS = DataFacts(
    name="cub-200-2011",
    archives=(
        Archive(
            name="CUB_200_2011.tgz",
            urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
            size=1_150_585_339,
            digest="md5:97eceeb196236b17998738112f37df78",
            unpacked=3_000_000_000,
        ),
    ),
    images=11_788,
    test=5_794,
    classes=200,
    page="https://data.caltech.edu/records/65de6-vp158",
)


@register_dataset("split-cub200", "CUB-200-2011 birds")
class CUB200(FileDataset):
    """CUB-200-2011; classes are such as 001.Black_footed_Albatross."""

    FACTS = FACTS

    def rows(self, folder: Path) -> list[Row]:
        """Every image, by the four tables of the archive."""
        images, classes, labels, training = (
            _table(folder / _TOP / f"{name}.txt")
            for name in ("images", "classes", "image_class_labels", "train_test_split")
        )
        return [
            (
                f"{_TOP}/images/{path}",
                classes[labels[number]],
                {"1": "train", "0": "test"}[training[number]],
            )
            for number, path in images.items()
        ]


def _table(path: Path) -> dict[str, str]:
    """Lines of "number value"."""
    pairs = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {number: value.strip() for number, value in pairs}
