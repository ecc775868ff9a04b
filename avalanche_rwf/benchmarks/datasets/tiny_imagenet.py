"""`split-tinyimagenet`: Tiny-ImageNet, 200 ImageNet classes at 64 pixels, 500 + 50 images each.

Source: the course CS231n of Stanford University; http://cs231n.stanford.edu/tiny-imagenet-200.zip.
ImageNet's terms apply: non-commercial research and education.

The test images of the archive have no labels: its validation images are the test set here, as in
all of the literature. The course publishes no hash; the MD5 is the one that Avalanche and others
record for this file, and the size is that of the file with this MD5.
"""

from __future__ import annotations

from pathlib import Path

from avalanche_rwf.benchmarks.sources import (
    IMAGE_ENDINGS,
    Archive,
    DataFacts,
    FileDataset,
    Row,
    register_dataset,
)

_TOP = "tiny-imagenet-200"
FACTS = DataFacts(
    name="tiny-imagenet-200",
    archives=(
        Archive(
            name="tiny-imagenet-200.zip",
            urls=("https://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            size=248_100_043,
            digest="md5:90528d7ca1a48142e341f4ef8d21d0de",
            unpacked=1_000_000_000,
        ),
    ),
    images=110_000,
    test=10_000,
    classes=200,
    page="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
)


@register_dataset("split-tinyimagenet", "Tiny-ImageNet")
class TinyImageNet(FileDataset):
    """Tiny-ImageNet; classes are WordNet numbers such as n01443537."""

    FACTS = FACTS
    fills_frame = True

    def rows(self, folder: Path) -> list[Row]:
        """Training images by folder, validation images by `val_annotations.txt`."""
        top = folder / _TOP
        rows = [
            (path.relative_to(folder).as_posix(), entry.name, "train")
            for entry in (top / "train").iterdir()
            if entry.is_dir()
            for path in (entry / "images").iterdir()
            if path.suffix.lower() in IMAGE_ENDINGS
        ]
        notes = (top / "val" / "val_annotations.txt").read_text(encoding="utf-8")
        for line in notes.splitlines():
            name, label = line.split("\t")[:2]
            rows.append((f"{_TOP}/val/images/{name}", label, "test"))
        return rows
