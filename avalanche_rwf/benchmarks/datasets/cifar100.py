"""`split-cifar100`: CIFAR-100, 60,000 photographs of 32 x 32 pixels in 100 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html. The page states no licence and asks for the citation.

The MD5 of the archive is the page's; those of its files are torchvision's, which reads them. They
are pickles: torchvision checks their MD5 again each time before it opens them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avalanche_rwf.benchmarks.sources import Archive, ArrayDataset, DataFacts, register_dataset

if TYPE_CHECKING:
    import numpy as np

_TOP = "cifar-100-python"
FACTS = DataFacts(
    name="cifar-100",
    archives=(
        Archive(
            name="cifar-100-python.tar.gz",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            size=169_001_437,
            digest="md5:eb9058c3a382ffc7106e4002c42a8d85",
            unpacked=250_000_000,
        ),
    ),
    images=60_000,
    test=10_000,
    classes=100,
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    files={
        f"{_TOP}/train": "md5:16019d7e3df5f24257cddd939b257f8d",
        f"{_TOP}/test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
        f"{_TOP}/meta": "md5:7973b15100ade9c7d40fb424638fde48",
    },
)


@register_dataset("split-cifar100", "CIFAR-100")
class CIFAR100(ArrayDataset):
    """CIFAR-100 with its 100 fine classes; `data` is uint8 [N, 32, 32, 3]."""

    FACTS = FACTS
    autoaug_policy = "cifar10"

    def read(self, folder: Path, train: bool) -> tuple[np.ndarray, list[int], list[str]]:
        """By torchvision, from `cifar-100-python/`, after it has checked the files' MD5."""
        from torchvision import datasets

        def known(name: str) -> str:
            return self.facts.files[f"{_TOP}/{name}"].removeprefix("md5:")

        class Checked(datasets.CIFAR100):
            train_list = [["train", known("train")]]
            test_list = [["test", known("test")]]
            meta = {**datasets.CIFAR100.meta, "md5": known("meta")}

        part = Checked(str(folder), train=train, download=False)
        return part.data, [int(target) for target in part.targets], list(part.classes)
