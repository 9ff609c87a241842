from typing import Any

from detectron2.modeling.meta_arch import GeneralizedRCNN

from .pixel_text import PixelTextSupervision
from .text_heads import dense_predictions


class DensePixelTextSupervision(PixelTextSupervision):
    """:class:`PixelTextSupervision` for dense detectors, whose heads may read text embeddings."""

    def forward(self, batched_inputs: list[dict]):
        """Run ``DenseDetector.forward``, which itself hands the head no more than the pyramid's levels."""
        with self._step(batched_inputs) as batched_inputs:
            detector: Any = self
            images = detector.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            levels = [features[name] for name in detector.head_in_features]
            predictions = dense_predictions(detector, features)
            if not self.training:
                results = detector.forward_inference(images, levels, predictions)
                return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
            instances = [x["instances"] for x in batched_inputs]
            losses = detector.forward_training(images, levels, predictions, instances)
            return {**losses, **self._pixel_text_loss(features["score_map"], batched_inputs)}
