"""ONNX operators as torch arithmetic, for gradients. What is not here cannot be trained, and says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimizer.recover.codes import straight

Attrs = Mapping[str, Any]
Inputs = Sequence[Any]
Op = Callable[[Attrs, Inputs], Any]
"""Attributes and inputs (``None``: left out) to the result, or a list of results."""


def operators(opset: int) -> dict[str, Op]:
    """Every operator that can be followed, by type."""
    arithmetic = {**_pointwise(), **_products(), **_normalizers(opset), **_poolers()}
    return {**arithmetic, **_movers(opset), **_cutters(opset), **_rounders()}


def _pointwise() -> dict[str, Op]:
    import torch
    from torch.nn import functional as f

    def one(function: Callable[[Any], Any]) -> Op:
        return lambda a, x: function(x[0])

    def two(function: Callable[[Any, Any], Any]) -> Op:
        return lambda a, x: function(x[0], x[1])

    def all_of(function: Callable[[Any, Any], Any]) -> Op:
        def fold(a: Attrs, x: Inputs) -> Any:
            total = x[0]
            for other in x[1:]:
                total = function(total, other)
            return total

        return fold

    def clip(a: Attrs, x: Inputs) -> Any:
        low = x[1] if len(x) > 1 else a.get("min")
        high = x[2] if len(x) > 2 else a.get("max")
        bounded = x[0] if low is None else torch.maximum(x[0], torch.as_tensor(low, dtype=x[0].dtype))
        return bounded if high is None else torch.minimum(bounded, torch.as_tensor(high, dtype=x[0].dtype))

    def gelu(a: Attrs, x: Inputs) -> Any:
        kind = a.get("approximate", "none")
        return f.gelu(x[0], approximate=kind if isinstance(kind, str) else "none")

    def divide(left: Any, right: Any) -> Any:
        whole = not left.is_floating_point() and not right.is_floating_point()
        return torch.div(left, right, rounding_mode="trunc") if whole else left / right

    plain = ["abs", "neg", "exp", "log", "sqrt", "erf", "tanh", "sigmoid", "relu", "sign", "floor", "ceil", "round"]
    plain += ["reciprocal", "sin", "cos"]
    return {
        **{name.capitalize(): one(getattr(torch, name)) for name in plain},
        "Add": two(torch.add), "Sub": two(torch.sub), "Mul": two(torch.mul), "Div": two(divide),
        "Pow": two(lambda x, y: torch.pow(x, y.to(x.dtype))), "Sum": all_of(torch.add), "Max": all_of(torch.maximum),
        "Min": all_of(torch.minimum), "Equal": two(torch.eq), "Less": two(torch.lt), "Greater": two(torch.gt),
        "LessOrEqual": two(torch.le), "GreaterOrEqual": two(torch.ge), "And": two(torch.logical_and),
        "Or": two(torch.logical_or), "Not": one(torch.logical_not), "Mod": two(torch.remainder),
        "Where": lambda a, x: torch.where(x[0], x[1], x[2]), "Clip": clip, "Gelu": gelu,
        "FastGelu": lambda a, x: f.gelu(x[0], approximate="tanh"),
        "QuickGelu": lambda a, x: x[0] * torch.sigmoid(a.get("alpha", 1.702) * x[0]),
        "LeakyRelu": lambda a, x: f.leaky_relu(x[0], a.get("alpha", 0.01)),
        "PRelu": lambda a, x: torch.where(x[0] < 0, x[0] * x[1], x[0]),
        "Elu": lambda a, x: f.elu(x[0], a.get("alpha", 1.0)), "Softplus": one(f.softplus), "Mish": one(f.mish),
        "HardSwish": one(f.hardswish),
        "HardSigmoid": lambda a, x: torch.clamp(a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5), 0, 1),
        "Identity": one(lambda x: x), "Dropout": one(lambda x: x),
    }  # fmt: skip


def _products() -> dict[str, Op]:
    import torch
    from torch.nn import functional as f

    def conv(a: Attrs, x: Inputs) -> Any:
        spatial = x[1].dim() - 2
        padded = f.pad(x[0], _torch_pads(a.get("pads", [0] * 2 * spatial)))
        if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise NotImplementedError("automatic padding")
        run = {1: f.conv1d, 2: f.conv2d, 3: f.conv3d}[spatial]
        stride, dilation = a.get("strides", [1] * spatial), a.get("dilations", [1] * spatial)
        bias = x[2] if len(x) > 2 else None
        return run(padded, x[1], bias, stride=stride, dilation=dilation, groups=a.get("group", 1))

    def gemm(a: Attrs, x: Inputs) -> Any:
        left = x[0].T if a.get("transA", 0) else x[0]
        right = x[1].T if a.get("transB", 0) else x[1]
        result = a.get("alpha", 1.0) * (left @ right)
        return result if len(x) < 3 or x[2] is None else result + a.get("beta", 1.0) * x[2]

    return {"Conv": conv, "Gemm": gemm, "MatMul": lambda a, x: torch.matmul(x[0], x[1])}


def _torch_pads(pads: Sequence[int]) -> list[int]:
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[i + half])]


def _normalizers(opset: int) -> dict[str, Op]:
    import torch

    def batch(a: Attrs, x: Inputs) -> Any:
        shape = [1, -1] + [1] * (x[0].dim() - 2)
        scale, bias, mean, variance = (v.reshape(shape) for v in x[1:5])
        return (x[0] - mean) * torch.rsqrt(variance + a.get("epsilon", 1e-5)) * scale + bias

    def layer(a: Attrs, x: Inputs) -> Any:
        axes = list(range(a.get("axis", -1) % x[0].dim(), x[0].dim()))
        centred = x[0] - x[0].mean(axes, keepdim=True)
        spread = (centred**2).mean(axes, keepdim=True)
        scaled = centred * torch.rsqrt(spread + a.get("epsilon", 1e-5)) * x[1]
        return scaled if len(x) < 3 or x[2] is None else scaled + x[2]

    def rms(a: Attrs, x: Inputs) -> Any:
        axes = list(range(a.get("axis", -1) % x[0].dim(), x[0].dim()))
        return x[0] * torch.rsqrt((x[0] ** 2).mean(axes, keepdim=True) + a.get("epsilon", 1e-5)) * x[1]

    def soft(function: Any) -> Op:
        def run(a: Attrs, x: Inputs) -> Any:
            if opset >= 13:
                return function(x[0], dim=a.get("axis", -1))
            axis = a.get("axis", 1) % x[0].dim()
            return function(x[0].flatten(axis), dim=-1).reshape(x[0].shape)

        return run

    def reduced(function: Any) -> Op:
        def run(a: Attrs, x: Inputs) -> Any:
            told = x[1].tolist() if len(x) > 1 and x[1] is not None else a.get("axes")
            axes = list(told) if told else list(range(x[0].dim()))
            return function(x[0], axes, keepdim=bool(a.get("keepdims", 1)))

        return run

    return {
        "BatchNormalization": batch, "LayerNormalization": layer, "RMSNormalization": rms,
        "Softmax": soft(torch.softmax), "LogSoftmax": soft(torch.log_softmax), "ReduceMean": reduced(torch.mean),
        "ReduceSum": reduced(torch.sum), "ReduceMax": reduced(torch.amax), "ReduceMin": reduced(torch.amin),
    }  # fmt: skip


def _poolers() -> dict[str, Op]:
    import torch
    from torch.nn import functional as f

    def windows(a: Attrs, x: Inputs, average: bool) -> Any:
        kernel = a["kernel_shape"]
        pads = a.get("pads", [0] * 2 * len(kernel))
        if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or a.get("ceil_mode", 0) or len(kernel) != 2:
            raise NotImplementedError("pooling with automatic padding, rounding up, or other than two axes")
        strides, dilation = a.get("strides", [1] * len(kernel)), a.get("dilations", [1] * len(kernel))
        if not average:
            padded = f.pad(x[0], _torch_pads(pads), value=-math.inf)
            return f.max_pool2d(padded, kernel, strides, dilation=dilation)
        padded = f.pad(x[0], _torch_pads(pads))
        pooled = f.avg_pool2d(padded, kernel, strides)
        if a.get("count_include_pad", 0) or not any(pads):
            return pooled
        ones = f.pad(torch.ones_like(x[0]), _torch_pads(pads))
        return pooled / f.avg_pool2d(ones, kernel, strides)

    return {
        "MaxPool": lambda a, x: windows(a, x, False), "AveragePool": lambda a, x: windows(a, x, True),
        "GlobalAveragePool": lambda a, x: x[0].mean(list(range(2, x[0].dim())), keepdim=True),
        "GlobalMaxPool": lambda a, x: x[0].amax(list(range(2, x[0].dim())), keepdim=True),
    }  # fmt: skip


def _movers(opset: int) -> dict[str, Op]:
    import torch

    def reshape(a: Attrs, x: Inputs) -> Any:
        sizes = [int(s) for s in x[1].tolist()]
        if not a.get("allowzero", 0):
            sizes = [x[0].shape[i] if s == 0 else s for i, s in enumerate(sizes)]
        return x[0].reshape(sizes)

    def flatten(a: Attrs, x: Inputs) -> Any:
        axis = a.get("axis", 1)
        axis = axis % x[0].dim() if axis < 0 else axis
        return x[0].reshape(math.prod(x[0].shape[:axis]), -1)

    def axes_of(a: Attrs, x: Inputs) -> list[int] | None:
        told = x[1].tolist() if len(x) > 1 and x[1] is not None else a.get("axes")
        return None if told is None else [int(i) for i in told]

    def squeeze(a: Attrs, x: Inputs) -> Any:
        axes = axes_of(a, x)
        gone = {i % x[0].dim() for i in axes} if axes is not None else {i for i, s in enumerate(x[0].shape) if s == 1}
        return x[0].reshape([s for i, s in enumerate(x[0].shape) if i not in gone])

    def unsqueeze(a: Attrs, x: Inputs) -> Any:
        axes = axes_of(a, x) or []
        rank = x[0].dim() + len(axes)
        result = x[0]
        for axis in sorted(i % rank for i in axes):
            result = result.unsqueeze(axis)
        return result

    def expand(a: Attrs, x: Inputs) -> Any:
        return x[0].expand(torch.broadcast_shapes(tuple(x[0].shape), tuple(int(s) for s in x[1].tolist())))

    def shape(a: Attrs, x: Inputs) -> Any:
        return torch.tensor(list(x[0].shape)[a.get("start", 0) : a.get("end", None)], dtype=torch.int64)

    return {
        "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Expand": expand,
        "Shape": shape, "Concat": lambda a, x: torch.cat(list(x), dim=a["axis"]),
        "Transpose": lambda a, x: x[0].permute(list(a.get("perm", range(x[0].dim())[::-1]))),
        "Range": lambda a, x: torch.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype),
    }  # fmt: skip


def _cutters(opset: int) -> dict[str, Op]:
    import torch
    from torch.nn import functional as f

    def gather(a: Attrs, x: Inputs) -> Any:
        axis = a.get("axis", 0) % x[0].dim()
        index = torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1])
        flat = torch.index_select(x[0], axis, index.reshape(-1))
        return flat.reshape([*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :]])

    def split(a: Attrs, x: Inputs) -> Any:
        axis = a.get("axis", 0)
        told = x[1].tolist() if len(x) > 1 and x[1] is not None else a.get("split")
        each = -(-x[0].shape[axis] // a["_outputs"])
        return list(torch.split(x[0], list(told) if told else each, dim=axis))

    def cut(a: Attrs, x: Inputs) -> Any:
        listed: list[Any] = [v.tolist() if v is not None else None for v in x[1:]]
        starts, ends = (listed[0], listed[1]) if listed else (a["starts"], a["ends"])
        axes = listed[2] if len(listed) > 2 else a.get("axes")
        steps = listed[3] if len(listed) > 3 and listed[3] is not None else [1] * len(starts)
        result = x[0]
        for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
            if step < 0:
                raise NotImplementedError("a Slice that goes backwards")
            places = range(*slice(start, end, step).indices(result.shape[axis]))
            result = torch.index_select(result, axis, torch.tensor(list(places), dtype=torch.int64))
        return result

    def pad(a: Attrs, x: Inputs) -> Any:
        amounts = x[1].tolist() if len(x) > 1 and x[1] is not None else a["pads"]
        if a.get("mode", "constant") != "constant" or len(amounts) != 2 * x[0].dim():
            raise NotImplementedError("padding that is not constant over all axes")
        value = x[2].item() if len(x) > 2 and x[2] is not None else a.get("value", 0.0)
        return f.pad(x[0], _torch_pads(amounts), value=value)

    def resize(a: Attrs, x: Inputs) -> Any:
        scales = x[2] if len(x) > 2 else x[1] if len(x) > 1 else None
        if scales is None or a.get("mode", "nearest") != "nearest" or any(s != int(s) for s in scales.tolist()):
            raise NotImplementedError("Resize other than to nearest by whole numbers")
        result = x[0]
        for axis, scale in enumerate(scales.tolist()):
            result = result.repeat_interleave(int(scale), dim=axis) if scale != 1 else result
        return result

    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
    return {
        "Gather": gather, "Split": split, "Slice": cut, "Pad": pad, "Resize": resize, "Upsample": resize,
        "Cast": lambda a, x: x[0].to(kinds[a["to"]]), "CastLike": lambda a, x: x[0].to(x[1].dtype),
        "Trilu": lambda a, x: (torch.triu if a.get("upper", 1) else torch.tril)(
            x[0], int(x[1]) if len(x) > 1 and x[1] is not None else 0),
        "ConstantOfShape": lambda a, x: torch.full([int(s) for s in x[0].tolist()], _first(a.get("value"))),
    }  # fmt: skip


def _rounders() -> dict[str, Op]:
    """Quantizers. Codes are floats here, so that gradients pass; what carries them does not mind."""
    import torch

    def along(part: Any, a: Attrs, x: Inputs) -> Any:
        if part.numel() == 1:
            return part.reshape(())
        if a.get("block_size", 0):
            raise NotImplementedError("blocks of a computed value with a scale each")
        sizes = [1] * x[0].dim()
        sizes[a.get("axis", 1)] = -1
        return part.reshape(sizes)

    def grid(a: Attrs, x: Inputs) -> tuple[Any, Any, Any]:
        zero = x[2] if len(x) > 2 and x[2] is not None else torch.zeros((), dtype=torch.uint8)
        return along(x[1], a, x), along(zero, a, x).to(x[1].dtype), torch.iinfo(zero.dtype)

    def quantize(a: Attrs, x: Inputs) -> Any:
        scale, zero, limits = grid(a, x)
        return straight(x[0] / scale + zero, limits.min, limits.max)

    def dequantize(a: Attrs, x: Inputs) -> Any:
        scale, zero, _ = grid(a, x)
        return scale * (x[0].to(x[1].dtype) - zero)

    def by_blocks(a: Attrs, x: Inputs) -> Any:
        if not x[1].is_floating_point() or (len(x) > 4 and x[4] is not None):
            raise NotImplementedError("packed weights in another order, or with zero points of floats")
        result = x[0] @ x[1].T
        return result if len(x) < 6 or x[5] is None else result + x[5]

    return {"QuantizeLinear": quantize, "DequantizeLinear": dequantize, "MatMulNBits": by_blocks}


def _first(value: Any) -> Any:
    return value.reshape(-1)[0].item() if value is not None else 0.0
