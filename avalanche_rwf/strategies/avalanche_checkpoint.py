"""What it takes for Avalanche's own checkpoints to work with a current PyTorch.

``avalanche.checkpointing.save_checkpoint`` pickles the whole strategy with dill. A class that dill
does not find under its name goes into the file *by value*, with all that its functions name. It
does not find PyTorch's optimizers, since ``torch.optim`` deletes the names of its submodules, and
then meets what nothing can pickle (``PicklingError``). :func:`avalanche_checkpoints` lets dill
write classes by reference, as pickle itself does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dill

__all__ = ["avalanche_checkpoints"]


@contextmanager
def avalanche_checkpoints() -> Iterator[None]:
    """Let Avalanche's ``save_checkpoint`` and ``maybe_load_checkpoint`` work inside the block.

    dill's setting ``byref`` is on meanwhile and is put back at the end, also after an error::

        from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

        strategy = RwFStrategy(num_classes=10, train_mb_size=16)
        with avalanche_checkpoints():
            strategy, done = maybe_load_checkpoint(strategy, "strategy.pkl")
        for experience in benchmark.train_stream[done:]:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
            with avalanche_checkpoints():
                save_checkpoint(strategy, "strategy.pkl")

    Started again, the script ends with the very numbers of one that was not cut: model, optimizer,
    plugins, replay buffer and the states of the random generators are in the file. For one's own
    classes the script that loads must have them under the names they had. `done` counts what
    ``train`` has finished: sub-experiences, on an online stream.

    **Such a file is a pickle and runs code when it is loaded: load those alone that you wrote
    yourself.** ``strategy.save`` and :class:`~avalanche_rwf.CheckpointPlugin` write tensors and
    plain values, which can be loaded from anybody, are smaller (a pickle has the frozen backbone
    and all that plugins hold in it) and go on within an experience.
    """
    before = dill.settings["byref"]
    dill.settings["byref"] = True
    try:
        with warnings.catch_warnings():
            # It says of each optimizer what the text above says, and finds it all the same.
            warnings.filterwarnings(
                "ignore", r"Cannot locate reference to <class 'torch\.", dill.PicklingWarning
            )
            yield
    finally:
        dill.settings["byref"] = before
