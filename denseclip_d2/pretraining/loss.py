import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor


class SharedCaptionLoss(ClipLoss):
    """open_clip's contrastive loss, for batches in which captions recur: equal ones are all right answers.

    Where every caption is there once, this is open_clip's loss.
    """

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, captions: Tensor
    ) -> Tensor:
        """
        Args:
            image_features, text_features: (B, C), of unit length.
            logit_scale: factor of their products.
            captions: (B, L) token ids.
        Returns: a scalar, the mean of both directions.
        """
        same = (captions[:, None] == captions[None]).all(dim=-1).float()
        targets = same / same.sum(dim=1, keepdim=True)  # (B, B), symmetric
        by_image, by_text = self.get_logits(image_features, text_features, logit_scale)
        return (F.cross_entropy(by_image, targets) + F.cross_entropy(by_text, targets)) / 2
