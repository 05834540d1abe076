"""Graphs with faults, as damage or malice would make them; as a program, what an engine says of them.

The program builds and runs engines of mutants in a process of its own, since ONNX Runtime is native code:
``python mutants.py VARIANT.pickle FIRST COUNT`` prints how many ended how, and dies if one kills it.
"""

import pickle
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from shifter import graph_check
from shifter.errors import EngineError, GraphError
from shifter.graph_check import OPERATORS
from shifter.switching.engines import make_engine
from shifter.values import Variant

HOSTILE = [0, -1, 1, 2, 7, -2, 65536, 1 << 31, -(1 << 31), (1 << 31) - 1, 1 << 62, -(1 << 62)]
NAMES = ["axis", "group", "strides", "pads", "dilations", "auto_pad", "ceil_mode", "kernel_shape", "perm"]


def mutant(graph: bytes, seed: int) -> bytes:
    """The same for the same seed. Every other one is damaged byte by byte, the rest field by field."""
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        graph = (_damaged if seed % 2 else _forged)(graph, rng)
    return graph


def _damaged(graph: bytes, rng: random.Random) -> bytes:
    content = bytearray(graph)
    at = rng.randrange(len(content))
    match rng.randrange(5):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            content[at] = rng.choice([0, 1, 2, 127, 128, 255])
        case 2:
            del content[at : at + rng.randrange(1, 9)]
        case 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        case 4:
            source, length = rng.randrange(len(content)), rng.randrange(1, 40)
            content[at : at + length] = content[source : source + length]
    return bytes(content)


def _forged(graph: bytes, rng: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(graph)
    node = rng.choice(model.graph.node)
    values = [name for other in model.graph.node for name in other.output]
    values += [tensor.name for tensor in model.graph.initializer] + [""]
    match rng.randrange(5):
        case 0 if node.attribute:
            _forge(rng.choice(node.attribute), rng)
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(values)
        case 2:
            node.op_type = rng.choice(sorted(OPERATORS))
        case 3:
            del node.input[rng.randrange(len(node.input) + 1) :]
        case _:
            value = rng.choice(
                [rng.choice(HOSTILE), [rng.choice(HOSTILE)] * rng.choice([1, 2, 4]), "SAME_LOWER"]
            )
            name = rng.choice(NAMES)
            if all(attribute.name != name for attribute in node.attribute):
                node.attribute.append(onnx.helper.make_attribute(name, value))
    return model.SerializeToString()


def _forge(attribute: onnx.AttributeProto, rng: random.Random) -> None:
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(HOSTILE)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, float("nan"), float("inf"), -1e38])
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(HOSTILE)


def main(path: str, first: int, count: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    variant: Variant = pickle.loads(Path(path).read_bytes())
    image = np.zeros((1, 1, 6, 6), np.float32)
    make, ends = make_engine(), Counter[str]()
    for seed in range(first, first + count):
        graph_check._found_right.clear()
        try:
            engine = make(Variant("v", mutant(variant.graph, seed), variant.tensors, variant.profile))
            engine.run(image)
            ends["answered"] += 1
        except (EngineError, MemoryError) as problem:
            ends["checked" if isinstance(problem.__cause__, GraphError) else "refused"] += 1
    print(dict(ends))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
