"""A method of your own: tokens learned once for all images, put into the last block.

    avalanche-rwf compare --import examples/add_your_method.py --methods my-method,linear-probe
    python examples/add_your_method.py --seeds 0   # it alone
    AVALANCHE_RWF_IMPORT=examples/add_your_method.py pytest tests/strategies -k my-method"""
import sys

import torch

from avalanche_rwf import FrozenViT, register_model
from avalanche_rwf.cli import main
from avalanche_rwf.models.blockwise import TokenPrompt


@register_model("my-method", summary="learned tokens in the last block")
class MyViT(FrozenViT):
    """Each argument after the star is an option: --set my-method.length=10."""

    def __init__(self, backbone, num_classes, *, length: int = 5, **options):
        super().__init__(backbone, num_classes, **options)
        self.tokens = torch.nn.Parameter(0.02 * torch.randn(1, length, self.dim))

    def prompted_blocks(self):
        return [self.depth - 1]

    def prompt(self, block, tokens):  # tokens [B, N, D] enter the block
        return TokenPrompt(self.tokens)


if __name__ == "__main__":
    sys.exit(main(["compare", "--import", __file__, "--methods", "my-*", *sys.argv[1:]]))
