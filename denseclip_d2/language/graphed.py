from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor

from .memo import TensorMemo
from .text_encoder import CLIPTextEncoder


class GraphedTextEncoder:
    """Runs a text encoder; on a GPU, in training, its two passes each launched at once, as a CUDA graph.

    What it launches is the same in every iteration, some hundred small kernels a pass: a batch of two images
    waits for the host to launch them. A graph is captured again when weights, prompts, device or precision
    change. Copies and pickles have none.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._graph = TensorMemo[Callable[..., Any]]()

    def __call__(self, encoder: CLIPTextEncoder, prompts: Tensor, contexts: Tensor | None) -> Tensor:
        """``encoder(prompts, contexts)``; of a graph, in memory that its next call writes to again."""
        if contexts is None or not (self.enabled and _alone_learns(contexts, encoder)):
            return encoder(prompts, contexts)
        mixed, precision = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

        def encode(contexts: Tensor) -> Tensor:
            # What autocast keeps of weights would be gone when the graph runs again.
            with torch.autocast("cuda", precision, mixed, cache_enabled=False):
                return encoder(prompts, contexts)

        def capture() -> Callable[..., Any]:
            example = contexts.detach().clone().requires_grad_()
            device, full_precision = torch.cuda.device(contexts.device), torch.autocast("cuda", enabled=False)
            with device, full_precision, torch.enable_grad():
                return torch.cuda.make_graphed_callables(encode, (example,))

        made_from = [prompts, *encoder.parameters(), *encoder.buffers()]
        graph = self._graph(capture, made_from, contexts.shape, mixed, precision)
        return graph(contexts * 1)  # or the gradient would be memory of the graph's


def _alone_learns(contexts: Tensor, encoder: CLIPTextEncoder) -> bool:
    """Whether contexts, and they alone, are being trained, on a GPU; across processes it was never tried."""
    return (
        contexts.is_cuda
        and contexts.requires_grad
        and torch.is_grad_enabled()
        and not any(parameter.requires_grad for parameter in encoder.parameters())
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        and comm.get_world_size() == 1
    )
