"""What trains APRIL-GAN's linear layers: focal loss and Dice loss, to the letter of the authors' code (loss.py)."""

from torch import Tensor

_GAMMA = 2
_SMOOTHING = 1e-5
"""Of the labels, and once more added to the probability: it keeps the logarithm finite."""


def focal_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002) with gamma 2 and labels smoothed by 1e-5: the mean over all pixels.

    probabilities: B x 2 x S x S of normal and abnormal, summing to 1. masks: B x S x S, 0 or 1 (abnormal), float.
    """
    abnormal = masks.clamp(_SMOOTHING, 1 - _SMOOTHING)
    right = (1 - abnormal) * probabilities[:, 0] + abnormal * probabilities[:, 1] + _SMOOTHING
    return -((1 - right) ** _GAMMA * right.log()).mean()


def dice_loss(abnormal: Tensor, masks: Tensor) -> Tensor:
    """1 - the Dice coefficient of each picture, each side of it plus 1; the mean over pictures.

    abnormal: B x S x S, the probability of a defect. masks: B x S x S, 0 or 1, float.
    """
    inside = (abnormal * masks).flatten(1).sum(1)
    both = abnormal.flatten(1).sum(1) + masks.flatten(1).sum(1)
    return 1 - ((2 * inside + 1) / (both + 1)).mean()
