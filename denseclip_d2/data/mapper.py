from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resizing, which leaves nothing of an image that is thin and very long: here, a pixel."""

    def get_transform(self, image) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class DatasetMapper(_DatasetMapper):
    """Detectron2's mapper with a resizing that no image is too thin for."""

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = [
            ResizeShortestEdge(a.short_edge_length, a.max_size, a.sample_style, a.interp)
            if type(a) is T.ResizeShortestEdge
            else a
            for a in arguments["augmentations"]
        ]
        return arguments
