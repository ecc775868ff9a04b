"""A method of one's own: tokens learned once for all images, put into the last block.

    avalanche-rwf compare --import examples/add_your_method.py --methods my-method,linear-probe
    python examples/add_your_method.py --seeds 0   # it alone
    AVALANCHE_RWF_IMPORT=examples/add_your_method.py pytest tests/strategies -k my-method"""
import sys

import torch

from avalanche_rwf import FrozenBackboneStrategy, FrozenViT, register_method
from avalanche_rwf.cli import main
from avalanche_rwf.models.blockwise import TokenPrompt


class MyViT(FrozenViT):
    def __init__(self, backbone, num_classes, length, **kwargs):
        super().__init__(backbone, num_classes, **kwargs)
        self.tokens = torch.nn.Parameter(0.02 * torch.randn(1, length, self.dim))

    def prompted_blocks(self):
        return [self.depth - 1]

    def prompt(self, block, tokens):  # tokens [B, N, D] enter the block
        return TokenPrompt(self.tokens)


@register_method("my-method", summary="learned tokens in the last block")
def my_method(*, backbone, num_classes, loop, length=5, head="linear", readout="cls", lr=5e-3):
    """Each argument after loop is an option: --set my-method.length=10."""
    model = MyViT(backbone, num_classes, length, head=head, readout=readout)
    rates = {"prompt": lr, "head": lr}
    return FrozenBackboneStrategy(model=model, mask="batch", learning_rates=rates, **loop)


if __name__ == "__main__":
    sys.exit(main(["compare", "--import", __file__, "--methods", "my-*", *sys.argv[1:]]))
