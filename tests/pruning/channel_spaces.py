"""One small network for each way in which layers share channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .members import CLASSES
from .widening import (
    CONSTANT,
    UNREAD,
    ZERO,
    Axes,
    Block,
    Case,
    Get,
    Net,
    Space,
    interleave,
    joined,
    layer,
    norm_of,
    pixels,
)

GATED = (ZERO, ZERO, ZERO, UNREAD, UNREAD, UNREAD)
"""Under a gate a constant is none."""

Widths = Mapping[str, int]
Tensor = torch.Tensor
norm, relu = nn.BatchNorm2d, torch.relu


def conv(into: int, out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, **{"padding": kernel // 2} | options)


def end(net: Any, x: Tensor) -> Tensor:
    return net.end(x.mean((2, 3)))


def chain() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.norm1(net.conv1(x)))
        return end(net, functional.silu(net.norm2(net.conv2(x))))

    def build(w: Widths) -> Net:
        return Net(
            forward, conv1=conv(3, w["a"]), norm1=norm(w["a"]), conv2=conv(w["a"], w["b"]),
            norm2=norm(w["b"]), end=nn.Linear(w["b"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b = of("a"), of("b")
        return joined(
            layer("conv1", a, norm="norm1"), layer("conv2", b, a, norm="norm2"), layer("end", None, b)
        )

    return Case({"a": Space(5, carriers=1), "b": Space(6)}, build, axes)


def residual_identity() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.norm0(net.stem(x)))
        x = relu(x + net.norm2(net.conv2(relu(net.conv1(x)))))
        return end(net, relu(x + net.conv4(relu(net.conv3(x)))))

    def build(w: Widths) -> Net:
        return Net(
            forward, stem=conv(3, w["r"]), norm0=norm(w["r"]), conv1=conv(w["r"], w["h"]),
            conv2=conv(w["h"], w["r"]), norm2=norm(w["r"]), conv3=conv(w["r"], w["i"]),
            conv4=conv(w["i"], w["r"]), end=nn.Linear(w["r"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        r, h, i = of("r"), of("h"), of("i")
        return joined(
            layer("stem", r, norm="norm0"), layer("conv1", h, r), layer("conv2", r, h, norm="norm2"),
            layer("conv3", i, r), layer("conv4", r, i), layer("end", None, r),
        )  # fmt: skip

    return Case({"r": Space(5, 1), "h": Space(4, 1), "i": Space(6, 1)}, build, axes)


def residual_projection() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        short = net.normp(net.project(x))
        return end(net, relu(net.norm2(net.conv2(relu(net.conv1(x)))) + short))

    def build(w: Widths) -> Net:
        return Net(
            forward, stem=conv(3, w["a"]), conv1=conv(w["a"], w["h"], stride=2), conv2=conv(w["h"], w["r"]),
            norm2=norm(w["r"]), project=conv(w["a"], w["r"], 1, stride=2), normp=norm(w["r"]),
            end=nn.Linear(w["r"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, h, r = of("a"), of("h"), of("r")
        return joined(
            layer("stem", a), layer("conv1", h, a), layer("conv2", r, h, norm="norm2"),
            layer("project", r, a, norm="normp"), layer("end", None, r),
        )  # fmt: skip

    return Case({"a": Space(5, 1), "h": Space(4, 1), "r": Space(6)}, build, axes)


def concatenation() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        x = torch.cat([relu(net.one(x)), relu(net.normt(net.three(x))), x], 1)
        return end(net, relu(net.last(x)))

    def build(w: Widths) -> Net:
        return Net(
            forward, stem=conv(3, w["a"]), one=conv(w["a"], w["b"], 1), three=conv(w["a"], w["c"]),
            normt=norm(w["c"]), last=conv(w["a"] + w["b"] + w["c"], w["d"]), end=nn.Linear(w["d"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, c, d = (of(name) for name in "abcd")
        return joined(
            layer("stem", a), layer("one", b, a), layer("three", c, a, norm="normt"),
            layer("last", d, np.concatenate([b, c, a])), layer("end", None, d),
        )  # fmt: skip

    return Case({"a": Space(5, 1), "b": Space(4, 1), "c": Space(3, 1), "d": Space(4)}, build, axes)


def split_and_shuffle() -> Case:
    """Two units of ShuffleNet: half of the channels goes past, then both are interleaved."""

    def shuffled(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)

    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        for inner, outer in ((net.inner1, net.outer1), (net.inner2, net.outer2)):
            left, right = x.chunk(2, dim=1)
            x = shuffled(torch.cat([left, relu(outer(relu(inner(right))))], 1))
        return end(net, relu(net.last(x)))

    def build(w: Widths) -> Net:
        half = w["a"] + w["b"]
        assert half == w["c"] + w["d"] == w["right"] == w["new"]
        return Net(
            forward, stem=conv(3, 2 * half), inner1=conv(half, w["h"], 1), outer1=conv(w["h"], half, 1),
            inner2=conv(half, w["i"], 1), outer2=conv(w["i"], half, 1), last=conv(2 * half, w["e"], 1),
            end=nn.Linear(w["e"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, c, d = (of(name) for name in "abcd")
        # After the first unit: a and c, interleaved, are one half, b and d the other.
        past, taken = interleave(a, c), interleave(b, d)
        return joined(
            layer("stem", np.concatenate([a, b, of("right")])), layer("inner1", of("h"), of("right")),
            layer("outer1", np.concatenate([c, d]), of("h")), layer("inner2", of("i"), taken),
            layer("outer2", of("new"), of("i")), layer("last", of("e"), interleave(past, of("new"))),
            layer("end", None, of("e")),
        )  # fmt: skip

    spaces = {name: Space(3) for name in "abcd"} | {"h": Space(4), "i": Space(5), "e": Space(6)}
    halves = (ZERO, ZERO, UNREAD, UNREAD, *4 * (CONSTANT,)) * 2
    return Case(spaces | {"right": Space(6, kinds=halves), "new": Space(6, kinds=halves)}, build, axes)


def depthwise() -> Case:
    """A mobile inverted residual block."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = functional.relu6(net.stem(x))
        y = functional.relu6(net.norme(net.expand(x)))
        y = functional.silu(net.normd(net.depth(y)))
        return end(net, x + net.normp(net.project(y)))

    def build(w: Widths) -> Net:
        return Net(
            forward, stem=conv(3, w["r"]), expand=conv(w["r"], w["e"], 1), norme=norm(w["e"]),
            depth=conv(w["e"], w["e"], groups=w["e"]), normd=norm(w["e"]), project=conv(w["e"], w["r"], 1),
            normp=norm(w["r"]), end=nn.Linear(w["r"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        r, e = of("r"), of("e")
        return joined(
            layer("stem", r), layer("expand", e, r, role="before", norm="norme"),
            layer("depth", e, role="through", norm="normd"), layer("project", r, e, norm="normp"),
            layer("end", None, r),
        )  # fmt: skip

    return Case({"r": Space(5), "e": Space(7)}, build, axes)


def grouped() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.norm1(net.conv1(x)))
        return end(net, relu(net.norm2(net.group(x))))

    def build(w: Widths) -> Net:
        into, out = w["a"] + w["b"], w["c"] + w["d"]
        return Net(
            forward, conv1=conv(3, into), norm1=norm(into), group=conv(into, out, groups=2), norm2=norm(out),
            end=nn.Linear(out, CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, c, d = (of(name) for name in "abcd")
        into, out = np.concatenate([a, b]), np.concatenate([c, d])
        return joined(
            layer("conv1", into, norm="norm1"), {"group.weight": [Block(c, a), Block(d, b)]},
            {"group.bias": Block(out)}, norm_of("norm2", out), layer("end", None, out),
        )  # fmt: skip

    return Case({"a": Space(4, 1), "b": Space(4, 1), "c": Space(3), "d": Space(3)}, build, axes)


def squeeze_and_excite() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = functional.silu(net.norm1(net.conv1(x)))
        gate = torch.sigmoid(net.up(relu(net.down(functional.adaptive_avg_pool2d(x, 1)))))
        return end(net, relu(net.project(gate * x)))

    def build(w: Widths) -> Net:
        return Net(
            forward, conv1=conv(3, w["e"]), norm1=norm(w["e"]), down=conv(w["e"], w["q"], 1),
            up=conv(w["q"], w["e"], 1), project=conv(w["e"], w["p"], 1), end=nn.Linear(w["p"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        e, q, p = of("e"), of("q"), of("p")
        return joined(
            layer("conv1", e, norm="norm1"), layer("down", q, e), layer("up", e, q, role="gate"),
            layer("project", p, e), layer("end", None, p),
        )  # fmt: skip

    return Case({"e": Space(6, kinds=GATED), "q": Space(3), "p": Space(4)}, build, axes)


def flattened() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = functional.max_pool2d(relu(net.conv1(x)), 4)
        x = functional.max_pool2d(relu(net.conv2(x)), 2)
        return net.end(relu(net.hidden(x.flatten(1))))

    def build(w: Widths) -> Net:
        return Net(
            forward, conv1=conv(3, w["a"]), conv2=conv(w["a"], w["b"]), hidden=nn.Linear(4 * w["b"], w["h"]),
            end=nn.Linear(w["h"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, h = of("a"), of("b"), of("h")
        return joined(
            layer("conv1", a), layer("conv2", b, a), layer("hidden", h, pixels(b, 4)), layer("end", None, h)
        )

    return Case({"a": Space(5, 1), "b": Space(4), "h": Space(6)}, build, axes)


def pooled() -> Case:
    """Average pooling that counts its padding, padded max pooling, one that does not count it."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.conv2(functional.avg_pool2d(relu(net.conv1(x)), 3, 1, 1)))
        x = relu(net.conv3(functional.max_pool2d(x, 3, 2, 1)))
        x = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return end(net, relu(net.conv4(x)))

    def build(w: Widths) -> Net:
        return Net(
            forward, conv1=conv(3, w["a"]), conv2=conv(w["a"], w["b"], 1), conv3=conv(w["b"], w["c"]),
            conv4=conv(w["c"], w["d"], 1), end=nn.Linear(w["d"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, c, d = (of(name) for name in "abcd")
        return joined(
            layer("conv1", a), layer("conv2", b, a), layer("conv3", c, b), layer("conv4", d, c),
            layer("end", None, d),
        )  # fmt: skip

    return Case({"a": Space(5, 1), "b": Space(4, 1), "c": Space(3), "d": Space(4)}, build, axes)


def standalone_norm() -> Case:
    """A layer of DenseNet and its transition."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = relu(net.norm2(net.conv1(relu(net.norm1(x)))))
        x = torch.cat([x, net.conv2(y)], 1)
        x = functional.avg_pool2d(net.last(relu(net.normt(x))), 2)
        return end(net, relu(net.norme(x)))

    def build(w: Widths) -> Net:
        return Net(
            forward, stem=conv(3, w["a"]), norm1=norm(w["a"]), conv1=conv(w["a"], w["b"], 1),
            norm2=norm(w["b"]), conv2=conv(w["b"], w["c"]), normt=norm(w["a"] + w["c"]),
            last=conv(w["a"] + w["c"], w["d"], 1), norme=norm(w["d"]), end=nn.Linear(w["d"], CLASSES),
        )  # fmt: skip

    def axes(of: Get) -> Axes:
        a, b, c, d = (of(name) for name in "abcd")
        both = np.concatenate([a, c])
        return joined(
            layer("stem", a), norm_of("norm1", a), layer("conv1", b, a, norm="norm2"), layer("conv2", c, b),
            norm_of("normt", both), layer("last", d, both), norm_of("norme", d), layer("end", None, d),
        )  # fmt: skip

    return Case({"a": Space(5), "b": Space(4, 1), "c": Space(3), "d": Space(4)}, build, axes)


def hidden_of_convnext() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.inner(net.layer_norm(net.depth(x).permute(0, 2, 3, 1)))
        return end(net, x + net.outer(functional.gelu(y)).permute(0, 3, 1, 2) * net.layer_scale)

    def build(w: Widths) -> Net:
        net = Net(
            forward, stem=conv(3, 6), depth=conv(6, 6, 7, groups=6), layer_norm=nn.LayerNorm(6),
            inner=nn.Linear(6, w["h"]), outer=nn.Linear(w["h"], 6), end=nn.Linear(6, CLASSES),
        )  # fmt: skip
        net.layer_scale = nn.Parameter(torch.ones(6, 1, 1))
        return net

    def axes(of: Get) -> Axes:
        return joined(layer("inner", of("h")), {"outer.weight": Block(None, of("h"))})

    return Case({"h": Space(9)}, build, axes)


def hidden_of_vit() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patches(x).flatten(2).transpose(1, 2)
        x = x + net.outer(functional.gelu(net.inner(net.layer_norm(x))))
        return net.end(net.last_norm(x).mean(1))

    def build(w: Widths) -> Net:
        return Net(
            forward, patches=nn.Conv2d(3, 8, 4, 4), layer_norm=nn.LayerNorm(8), last_norm=nn.LayerNorm(8),
            inner=nn.Linear(8, w["h"]), outer=nn.Linear(w["h"], 8), end=nn.Linear(8, CLASSES),
        )  # fmt: skip

    return Case({"h": Space(9)}, build, hidden_of_convnext().axes)


def layer_scale() -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        x = relu(x + net.layer_scale * net.conv2(functional.gelu(net.conv1(x))))
        return end(net, relu(net.last(x)))

    def build(w: Widths) -> Net:
        net = Net(
            forward, stem=conv(3, w["r"]), conv1=conv(w["r"], w["h"]), conv2=conv(w["h"], w["r"]),
            last=conv(w["r"], w["e"]), end=nn.Linear(w["e"], CLASSES),
        )  # fmt: skip
        net.layer_scale = nn.Parameter(torch.ones(w["r"], 1, 1))
        return net

    def axes(of: Get) -> Axes:
        r, h, e = of("r"), of("h"), of("e")
        return joined(
            layer("stem", r), layer("conv1", h, r), layer("conv2", r, h), {"layer_scale": Block(r)},
            layer("last", e, r), layer("end", None, e),
        )  # fmt: skip

    return Case({"r": Space(5, 1), "h": Space(4, 1), "e": Space(4)}, build, axes)


def option_a() -> Case:
    """A strided shortcut, padded with zero channels on both sides."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = relu(net.stem(x))
        y = net.norm2(net.conv2(relu(net.conv1(x))))
        before, after = net.pads
        x = relu(y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, after)))
        return end(net, relu(x + net.conv4(relu(net.conv3(x)))))

    def build(w: Widths) -> Net:
        out = w["a"] + w["before"] + w["after"]
        net = Net(
            forward, stem=conv(3, w["a"]), conv1=conv(w["a"], w["h"], stride=2), conv2=conv(w["h"], out),
            norm2=norm(out), conv3=conv(out, w["i"]), conv4=conv(w["i"], out), end=nn.Linear(out, CLASSES),
        )  # fmt: skip
        net.pads = (w["before"], w["after"])
        return net

    def axes(of: Get) -> Axes:
        a, h, i = of("a"), of("h"), of("i")
        out = np.concatenate([of("before"), a, of("after")])
        return joined(
            layer("stem", a), layer("conv1", h, a), layer("conv2", out, h, norm="norm2"),
            layer("conv3", i, out), layer("conv4", out, i), layer("end", None, out),
        )  # fmt: skip

    # Each part may have the carrier that conv3 reads, and a the one that conv1 reads.
    parts = {"a": Space(4, 1), "before": Space(2), "after": Space(3)}
    return Case({**parts, "h": Space(4, 1), "i": Space(3, 1)}, build, axes)


CASES: dict[str, Callable[[], Case]] = {
    "chain": chain,
    "residual, identity": residual_identity,
    "residual, projection": residual_projection,
    "concat": concatenation,
    "split and shuffle": split_and_shuffle,
    "depthwise": depthwise,
    "grouped": grouped,
    "squeeze and excite": squeeze_and_excite,
    "flatten": flattened,
    "pooling": pooled,
    "standalone norm": standalone_norm,
    "hidden layer of ConvNeXt": hidden_of_convnext,
    "hidden layer of ViT": hidden_of_vit,
    "layer scale": layer_scale,
    "option A": option_a,
}
