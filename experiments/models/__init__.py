"""Networks in Flax NNX. They take float images and return logits; `experiments.augment` makes the former of pixels."""

from experiments.models.lenet import LeNetCIFAR10, LeNetEMNIST
from experiments.models.resnet import ResNet
from experiments.models.small import SmallConvNet

__all__ = ["LeNetCIFAR10", "LeNetEMNIST", "ResNet", "SmallConvNet"]
