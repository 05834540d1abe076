"""One small network of each family: widths, depths and images are small, the operators the family's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional
from torchvision.models import (
    convnext,
    efficientnet,
    mobilenetv3,
    regnet,
    resnet,
    swin_transformer,
    vgg,
)
from torchvision.models.googlenet import Inception

from shifter.models.resnet import ResNet
from shifter.models.vgg import Vgg

CLASSES = 5


def narrow(network: nn.Module, by: int) -> nn.Module:
    """All but colours and classes divided, for networks whose code fixes their widths.

    ``network`` may be on torch's device ``meta``: its layers are made anew.
    """

    def divided(width: int) -> int:
        return width if width in (3, CLASSES) else width // by

    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d):
            new: nn.Module = nn.Conv2d(
                divided(child.in_channels), divided(child.out_channels), child.kernel_size, child.stride,
                child.padding, child.dilation,
                divided(child.groups) if child.groups == child.in_channels else child.groups,
                child.bias is not None,
            )  # fmt: skip
        elif isinstance(child, nn.Linear):
            new = nn.Linear(divided(child.in_features), divided(child.out_features))
        elif isinstance(child, nn.BatchNorm2d):
            new = nn.BatchNorm2d(divided(child.num_features), eps=child.eps)
        else:
            new = narrow(child, by)
        setattr(network, name, new)
    return network


def _narrow(by: int, build: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    with torch.device("meta"):
        network = build(*arguments, num_classes=CLASSES, **options)
    return narrow(network, by)


def _vgg(norm: bool) -> nn.Module:
    features = vgg.make_layers([64, "M", 128, "M", 256, 256, "M"], batch_norm=norm)
    network = _narrow(8, zoo.VGG, features, init_weights=False)
    network.classifier[0] = nn.Linear(32 * 7 * 7, 64)
    network.classifier[3] = nn.Linear(64, 40)
    network.classifier[6] = nn.Linear(40, CLASSES)
    return network


def _alexnet() -> nn.Module:
    network = _narrow(8, zoo.AlexNet)
    network.classifier[4] = nn.Linear(512, 40)
    network.classifier[6] = nn.Linear(40, CLASSES)
    return network


def _resnet(block: str, layers: list[int], **options: Any) -> nn.Module:
    return _narrow(8, zoo.ResNet, getattr(resnet, block), layers, **options)


def _regnet(se_ratio: float | None) -> nn.Module:
    stages = regnet.BlockParams.from_init_params(
        depth=5, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=se_ratio
    )
    return zoo.RegNet(stages, num_classes=CLASSES, stem_width=8)


def _densenet() -> nn.Module:
    return zoo.DenseNet(8, (2, 3, 2), 16, bn_size=2, num_classes=CLASSES)


def _googlenet() -> nn.Module:
    network = _narrow(8, zoo.GoogLeNet, aux_logits=False, init_weights=False)
    network.inception4b = network.inception4c = network.inception4d = nn.Identity()
    network.inception4e = Inception(64, 32, 10, 40, 6, 16, 16)
    return network


def _inception() -> nn.Module:
    network = _narrow(16, zoo.Inception3, aux_logits=False, init_weights=False)
    for repeated in ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"):
        setattr(network, repeated, nn.Identity())
    return network


def _squeezenet() -> nn.Module:
    return _narrow(8, zoo.SqueezeNet, "1_0")


def _shufflenet() -> nn.Module:
    return zoo.ShuffleNetV2([2, 2, 1], [8, 16, 32, 48, 64], num_classes=CLASSES)


def _mobilenet_v2() -> nn.Module:
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 1]]
    return _narrow(8, zoo.MobileNetV2, inverted_residual_setting=setting)


def _mobilenet_v3() -> nn.Module:
    setting = [
        mobilenetv3.InvertedResidualConfig(*row, dilation=1, width_mult=1.0)
        for row in (
            (8, 3, 16, 8, False, "RE", 1),
            (8, 3, 24, 16, True, "RE", 2),
            (16, 5, 40, 16, True, "HS", 1),
            (16, 5, 48, 24, False, "HS", 2),
        )
    ]
    return zoo.MobileNetV3(setting, last_channel=40, num_classes=CLASSES)


def _mnasnet() -> nn.Module:
    network = _narrow(8, zoo.MNASNet, 1.0)
    for stack in network.layers:
        if isinstance(stack, nn.Sequential):
            del stack[2:]
    return network


def _efficientnet() -> nn.Module:
    rows = ((1, 3, 1, 8, 8, 1), (6, 3, 2, 8, 12, 2), (6, 5, 2, 12, 20, 2))
    setting = [efficientnet.MBConvConfig(*row) for row in rows]
    return zoo.EfficientNet(setting, 0.2, num_classes=CLASSES, last_channel=40)


def _efficientnet_v2() -> nn.Module:
    setting = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 2),
        efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 2),
        efficientnet.MBConvConfig(4, 3, 2, 16, 24, 2),
    ]
    return zoo.EfficientNet(setting, 0.2, num_classes=CLASSES, last_channel=40)


def _convnext() -> nn.Module:
    setting = [
        convnext.CNBlockConfig(8, 16, 1),
        convnext.CNBlockConfig(16, 24, 2),
        convnext.CNBlockConfig(24, None, 1),
    ]
    return zoo.ConvNeXt(setting, num_classes=CLASSES)


def _vit() -> nn.Module:
    return zoo.VisionTransformer(32, 8, 2, 2, 16, 40, num_classes=CLASSES)


def _swin(**version: Any) -> nn.Module:
    return zoo.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=CLASSES, **version)


def _swin_v2() -> nn.Module:
    return _swin(
        block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2
    )


def _maxvit() -> nn.Module:
    return zoo.MaxVit((32, 32), 8, 4, [8, 16], [1, 2], 4, 0.1, num_classes=CLASSES)


class _OptionA(nn.Module):
    """The CIFAR residual net whose shortcuts subsample and pad with zero channels (He et al., option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.ModuleList(
            _OptionABlock(into, out) for into, out in ((8, 8), (8, 16), (16, 16), (16, 32), (32, 32))
        )
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class _OptionABlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, out // into, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.more = out - into

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.more:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return functional.relu(inner + x)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, int | None]] = {
    "openlth-vgg": (lambda: Vgg([[8], [16, 16], [24]], channels=3, classes=CLASSES), 32, 40),
    "openlth-resnet": (lambda: ResNet([8, 16, 24], 2, channels=3, classes=CLASSES), 32, 40),
    "option-a": (_OptionA, 32, 40),
    "vgg": (lambda: _vgg(norm=False), 56, None),
    "vgg-norm": (lambda: _vgg(norm=True), 56, None),
    "alexnet": (_alexnet, 224, None),
    "resnet-basic": (lambda: _resnet("BasicBlock", [1, 2, 1, 1]), 64, 80),
    "resnet-bottleneck": (lambda: _resnet("Bottleneck", [1, 2, 1, 1]), 64, 80),
    "resnext": (lambda: _resnet("Bottleneck", [1, 2, 1, 1], groups=4, width_per_group=32), 64, 80),
    "wide-resnet": (lambda: _resnet("Bottleneck", [1, 1, 1, 1], width_per_group=128), 64, 80),
    "regnet-x": (lambda: _regnet(None), 64, 80),
    "regnet-y": (lambda: _regnet(0.25), 64, 80),
    "densenet": (_densenet, 64, 80),
    "googlenet": (_googlenet, 64, 96),
    "inception": (_inception, 107, 139),
    "squeezenet": (_squeezenet, 64, 80),
    "shufflenet": (_shufflenet, 64, None),
    "mobilenet-v2": (_mobilenet_v2, 64, 80),
    "mobilenet-v3": (_mobilenet_v3, 64, 80),
    "mnasnet": (_mnasnet, 64, 80),
    "efficientnet": (_efficientnet, 64, 80),
    "efficientnet-v2": (_efficientnet_v2, 64, 80),
    "convnext": (_convnext, 64, 96),
    "vit": (_vit, 32, None),
    "swin": (_swin, 32, None),
    "swin-v2": (_swin_v2, 32, None),
    "maxvit": (_maxvit, 32, None),
}
"""By name: how it is built, its images' size, and another size that it can read, if it can."""
