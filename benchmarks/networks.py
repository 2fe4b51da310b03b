"""Networks of well-known shapes with random weights: what int8 is worth in time, over fp32 at full optimization.

    .venv/bin/python benchmarks/networks.py            # prints a table

The factories are also a MODEL: ``lathe optimize benchmarks/networks.py:resnet50 --data images.npz --budget none``.
Shapes: He et al. 2015 (arXiv 1512.03385), Sandler et al. 2018 (1801.04381), Devlin et al. 2018 (1810.04805).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 48


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = None) -> Any:
    """Convolution, BatchNorm with statistics as after training, and an activation."""
    from torch import nn

    norm = nn.BatchNorm2d(cout)
    norm.running_var.fill_(1.0)
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), norm]
    return nn.Sequential(*layers, *([act()] if act else []))


def resnet50() -> Any:
    """ResNet-50: bottlenecks 3-4-6-3, input [n,3,224,224]."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, cin: int, width: int, stride: int) -> None:
            super().__init__()
            cout = 4 * width
            self.body = nn.Sequential(
                conv(cin, width, 1, act=nn.ReLU), conv(width, width, 3, stride, act=nn.ReLU), conv(width, cout, 1)
            )
            self.skip = conv(cin, cout, 1, stride) if stride != 1 or cin != cout else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.skip(x))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks, cin = [], 64
            for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
                for i in range(count):
                    blocks.append(Bottleneck(cin, width, stride if i == 0 else 1))
                    cin = 4 * width
            self.stem = nn.Sequential(conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1))
            self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(cin, 1000)

        def forward(self, input: Any) -> Any:
            return self.head(self.blocks(self.stem(input)).mean((2, 3)))

    torch.manual_seed(0)
    return ResNet().eval()


def mobilenet_v2() -> Any:
    """MobileNetV2 at width 1.0: inverted residuals with ReLU6, input [n,3,224,224]."""
    import torch
    from torch import nn

    class Inverted(nn.Module):
        def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
            super().__init__()
            hidden = cin * expand
            first = [conv(cin, hidden, 1, act=nn.ReLU6)] if expand != 1 else []
            self.body = nn.Sequential(*first, conv(hidden, hidden, 3, stride, hidden, nn.ReLU6), conv(hidden, cout, 1))
            self.residual = stride == 1 and cin == cout

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.residual else self.body(x)

    class MobileNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rows = (
                (1, 16, 1, 1),
                (6, 24, 2, 2),
                (6, 32, 3, 2),
                (6, 64, 4, 2),
                (6, 96, 3, 1),
                (6, 160, 3, 2),
                (6, 320, 1, 1),
            )
            layers, cin = [conv(3, 32, 3, 2, act=nn.ReLU6)], 32
            for expand, cout, count, stride in rows:
                for i in range(count):
                    layers.append(Inverted(cin, cout, stride if i == 0 else 1, expand))
                    cin = cout
            self.body = nn.Sequential(*layers, conv(cin, 1280, 1, act=nn.ReLU6))
            self.head = nn.Linear(1280, 1000)

        def forward(self, input: Any) -> Any:
            return self.head(self.body(input).mean((2, 3)))

    torch.manual_seed(0)
    return MobileNet().eval()


def bert_small() -> Any:
    """A BERT-shaped encoder: 6 layers, 384 wide, 12 heads, input_ids int64 [n,128]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Layer(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x: Any) -> Any:
            n, s, w = x.shape
            q, k, v = (f(x).view(n, s, self.heads, w // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, s, w)
            x = self.norm1(x + self.o(mixed))
            return self.norm2(x + self.down(F.gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self, width: int = 384, layers: int = 6, heads: int = 12) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(30522, width), nn.Embedding(512, width)
            self.norm = nn.LayerNorm(width)
            self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

        def forward(self, input_ids: Any) -> Any:
            x = self.norm(self.words(input_ids) + self.places.weight[: input_ids.shape[1]])
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    return Encoder().eval()


def data(folder: Path, name: str) -> Path:
    """Random inputs for one network: they calibrate and time it, and say nothing about quality."""
    rng = np.random.default_rng(0)
    arrays = (
        {"input_ids": rng.integers(0, 30522, (SAMPLES, 128))}
        if name == "bert_small"
        else {"input": rng.normal(size=(SAMPLES, 3, 224, 224)).astype(np.float32)}
    )
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def main(names: list[str]) -> None:
    import optimizer
    from optimizer.report import words

    print("| network | shipped recipe | speed-up over fp32 | lossless alone | size |")
    print("|" + " --- |" * 5)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in names:
            record = optimizer.compile(
                f"{Path(__file__).resolve()}:{name}", data=str(data(folder, name)), budget=["none"],
                output=folder / f"{name}.lathe", cache_dir=folder / "cache", golden="none",
            )  # fmt: skip
            assert record.final is not None and record.baseline is not None
            free = next((s.speedup for s in record.steps if s.label == "lossless"), None)
            shipped = next((s.label for s in record.steps if s.recipe == record.recipe), "source")
            sizes = f"{words.size(record.baseline.size_bytes)} → {words.size(record.final.size_bytes)}"
            print(f"| {name} | {shipped} | {words.times(record.speedup)} | {words.times(free)} | {sizes} |", flush=True)
        print(f"\nMeasured on {record.environment['cpu']}, batch 1, one thread.")


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "mobilenet_v2", "bert_small"])
