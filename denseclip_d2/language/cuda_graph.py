from collections.abc import Hashable
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from .build import TextEncoder
from .text_encoder import CLIPTextEncoder


class CUDAGraphTextEncoder:
    """Run a text encoder; in training on one GPU, launch each of its passes at once, as a CUDA graph.

    Every iteration launches the same kernels, some hundred small ones a pass. Without a graph, a batch of two
    images waits for the host to launch them. The graph is captured again when weights, prompts, device or
    precision change. Copies and pickles have no graph.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self._graph: Any = None
        self._captured: tuple[Hashable, ...] = ()

    def __call__(
        self, encoder: TextEncoder, prompts: Tensor | nn.ModuleList, contexts: Tensor | None
    ) -> Tensor:
        """Return ``encoder(prompts, contexts)``; from a graph, in memory that the next call overwrites."""
        if contexts is None or not (self.enabled and _can_graph(contexts, encoder)):
            return encoder(prompts, contexts)
        mixed, precision = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

        def encode(contexts: Tensor) -> Tensor:
            # Cached casts of weights would be gone when the graph runs again.
            with torch.autocast("cuda", precision, mixed, cache_enabled=False):
                return encoder(prompts, contexts)

        # A graph reads weights and prompts at their addresses.
        ids = [prompts] if isinstance(prompts, Tensor) else prompts.buffers()
        tensors = [*ids, *encoder.parameters(), *encoder.buffers()]
        read = [(t.data_ptr(), t.dtype, t.shape, t.stride(), t.device) for t in tensors]
        state = (*read, contexts.shape, mixed, precision)
        if self._captured != state:
            example = contexts.detach().clone().requires_grad_()
            full_precision = torch.autocast("cuda", enabled=False)
            with torch.cuda.device(contexts.device), full_precision, torch.enable_grad():
                self._graph = torch.cuda.make_graphed_callables(encode, (example,))
            self._captured = state
        return self._graph(contexts * 1)  # or the gradient would be memory of the graph

    def __reduce__(self):
        return type(self), (self.enabled,)


def _can_graph(contexts: Tensor, encoder: TextEncoder) -> bool:
    """Return whether only contexts are trained, on a GPU, by one process; several were never tried.

    The encoders of transformers look at masks on the host.
    """
    return (
        contexts.is_cuda
        and isinstance(encoder, CLIPTextEncoder)
        and contexts.requires_grad
        and torch.is_grad_enabled()
        and not any(parameter.requires_grad for parameter in encoder.parameters())
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        and comm.get_world_size() == 1
    )
