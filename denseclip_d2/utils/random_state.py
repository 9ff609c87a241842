"""The state of the global random generators, in types that ``torch.load(weights_only=True)`` reads."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch

# Detectron2's augmentations draw from numpy's global generator, hence the functions numpy calls legacy.
# ruff: noqa: NPY002


def get_random_state(*, cuda: bool = False) -> dict:
    """Return the state of the generators of Python, numpy, torch and, with ``cuda``, the current GPU."""
    kind, keys, *rest = cast(tuple, np.random.get_state())
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if cuda:
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Restore the state that :func:`get_random_state` returned; without a GPU, its state is ignored."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def seeded_random(*entropy: int) -> Iterator[None]:
    """Seed the CPU's generators by non-negative integers in the block, and restore them after it."""
    before = get_random_state()
    words = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.default_generator.manual_seed(int(words[0]))  # torch.manual_seed would seed GPUs as well
    try:
        yield
    finally:
        set_random_state(before)
