"""Modules and factories that the tests hand to the worker for user code; imported there, not here."""

import os
import signal
import sys

import torch
import torch.nn.functional as F
from torch import nn

print("user code may print")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image, ids, gain=None, *, flip=False):
        hidden = self.drop(torch.relu(self.norm(self.conv(image)))).mean((2, 3)) + self.table(ids).sum(1)
        logits = self.head(hidden)
        logits = logits if gain is None else logits * gain
        return {"logits": -logits if flip else logits, "more": (hidden, ids), "count": 3}


def two_inputs():
    torch.manual_seed(1)
    return TwoInputs().train()


def two_inputs_example():
    ids = torch.arange(10).reshape(2, 5)
    return {"image": torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6), "ids": ids, "flip": True}


def scalar_example():
    return {**two_inputs_example(), "gain": torch.tensor(0.5)}


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x), x, x


def linear():
    torch.manual_seed(2)
    return Linear()


def rows():
    return torch.arange(12.0).reshape(3, 4)


class Branch(Linear):
    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(3, 2, 2) * 2


class Mixed(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 0)


class Noisy(nn.Module):
    def forward(self, x):
        return F.dropout(x.repeat(1, 32), 0.5, training=True)  # so many numbers never come out alike


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.eig(x.reshape(-1, 2, 2))[0].real


class Lying(nn.Module):
    """Computes something else while it is being exported."""

    def forward(self, x):
        return x * 2 if torch.compiler.is_exporting() or torch.jit.is_tracing() else x


class Half(Linear):
    def forward(self, x):
        return self.fc(x).to(torch.float16)


class Cached(nn.Module):
    def forward(self, x, past):
        return x + past[0][0], [torch.cat([past[0][0], past[0][1]], 1)]


def cached_example():
    return rows(), ((torch.ones(3, 4), torch.zeros(3, 4)),)


class Flat(nn.Module):
    def forward(self, x):
        return {"x": x.reshape(-1, 4) + 1}


class Picky(nn.Module):
    def forward(self, x):
        if x.ndim != 2:
            raise ValueError("x must be a matrix")
        return x


def raises():
    values = {}
    return values["weights"]


def leaves():
    sys.exit(3)


def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)


def state():
    return Linear().state_dict()


def nothing():
    Linear()


def needs(width, depth=2):
    return Linear()


def several():
    return Linear(), None


def reads():
    input()


def tuple_of_wrong_count():
    return rows(), rows(), rows()


NUMBER = 7


class Embeds(nn.Module):
    """Outputs that are called like a value inside and like a parameter."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.scale = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, ids):
        hidden = self.table(ids) * self.scale
        return {"embedding": hidden.sum(1), "scale": hidden.mean(1)}


def embeds_example():
    return (torch.arange(10).reshape(2, 5),)
