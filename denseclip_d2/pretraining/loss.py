import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor


class SharedCaptionLoss(ClipLoss):
    """open_clip's contrastive loss for batches with equal captions, all of which are right answers.

    The same loss between the texts can be added. It keeps different captions apart (the uniformity of Wang &
    Isola, ICML 2020). Without it, captions that the images do not separate yet collapse to one embedding.
    Without equal captions and added loss, this is open_clip's loss.
    """

    def __init__(self, apart: float = 0.0):
        """
        Args:
            apart: weight of the loss between the texts.
        """
        super().__init__()
        self.apart = apart

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, captions: Tensor
    ) -> Tensor:
        """
        Args:
            image_features, text_features: (B, C), of unit length.
            logit_scale: factor of their products.
            captions: (B, L) token ids.
        Returns: a scalar: the mean of both directions, and the loss between the texts.
        """
        same = (captions[:, None] == captions[None]).all(dim=-1).float()
        targets = same / same.sum(dim=1, keepdim=True)  # (B, B), symmetric
        by_image, by_text = self.get_logits(image_features, text_features, logit_scale)
        loss = (F.cross_entropy(by_image, targets) + F.cross_entropy(by_text, targets)) / 2
        if self.apart:
            among_texts = logit_scale.detach() * text_features @ text_features.T
            loss = loss + self.apart * F.cross_entropy(among_texts, targets)
        return loss
