from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor

from .sliding_window import SlidingWindow


@META_ARCH_REGISTRY.register()
class SlidingWindowSegmentor(SemanticSegmentor):
    """Detectron2's ``SemanticSegmentor`` with optional sliding windows at test time."""

    @configurable
    def __init__(self, *, sliding_window: SlidingWindow | None = None, **kwargs):
        """
        Args:
            sliding_window: the windows at test time; None: the whole image at once.
            kwargs: as for ``SemanticSegmentor``.
        """
        super().__init__(**kwargs)
        self.sliding_window = sliding_window

    @classmethod
    def from_config(cls, cfg) -> dict:
        sliding_window = cfg.TEST.SLIDING_WINDOW
        size, stride = tuple(sliding_window.SIZE), tuple(sliding_window.STRIDE)
        window = SlidingWindow(size, stride, sliding_window.MAX_PIXELS)
        return {**super().from_config(cfg), "sliding_window": window if sliding_window.ENABLED else None}

    def forward(self, batched_inputs: list[dict]):
        """Run ``SemanticSegmentor.forward``, at test time by windows.

        Raises:
            MemoryError: at test time, the device's memory is too small.
        """
        if self.training:
            return super().forward(batched_inputs)
        window = self.sliding_window
        with _explained_out_of_memory(window):
            if window is None:
                return super().forward(batched_inputs)
            return [{"sem_seg": self._slide(window, x)} for x in batched_inputs]

    def _slide(self, window: SlidingWindow, x: dict) -> Tensor:
        def segment(windows: list[Tensor]) -> list[Tensor]:
            # The segmentor takes a window as an image.
            return [y["sem_seg"] for y in segment_images([{"image": image} for image in windows])]

        segment_images, size = super().forward, x["image"].shape[1:]
        logits = window.average(segment, x["image"])
        return sem_seg_postprocess(logits, size, x.get("height", size[0]), x.get("width", size[1]))


@contextmanager
def _explained_out_of_memory(window: SlidingWindow | None) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = "Set TEST.SLIDING_WINDOW.ENABLED True, or make INPUT.MIN_SIZE_TEST smaller."
        if window:
            fix = (
                f"Lower TEST.SLIDING_WINDOW.MAX_PIXELS ({window.max_pixels}) to the pixels of one window, "
                f"and then TEST.SLIDING_WINDOW.SIZE {window.size}."
            )
        raise MemoryError(f"The device's memory is too small for segmentation. {fix}") from error
