"""RwFStrategy on an online class-incremental stream of real images, offline, in ten lines.

    python examples/quickstart.py           # all five experiences of split-digits
    python examples/quickstart.py --smoke   # the first one only

The packaged backbone and scikit-learn's handwritten digits are used, so nothing is downloaded.
"""

from __future__ import annotations

import argparse

from avalanche_rwf import RwFStrategy, create_benchmark
from avalanche_rwf.models.backbone import backbone_info


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one experience, seconds")
    experiences = 1 if parser.parse_args(argv).smoke else 5

    strategy = RwFStrategy(num_classes=10, lr=5e-3, train_mb_size=16)  # as LearningToPrompt
    info = backbone_info(strategy.model.backbone)  # size, mean and std that its weights expect
    benchmark = create_benchmark(
        "split-digits", seed=0, image_size=info.image_size, mean=info.mean, std=info.std,
        interpolation=info.interpolation,
    )  # fmt: skip
    for experience in benchmark.train_stream[:experiences]:
        strategy.train(experience, shuffle=False)  # one pass; samples are mixed already
    results = strategy.eval(benchmark.test_stream[:experiences])
    accuracy = results["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    print(f"accuracy over all {2 * experiences} classes seen: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
