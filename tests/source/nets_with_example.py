"""A factory with its example inputs and dynamic dimensions beside it."""

import torch
from torch import nn


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x)


def example_inputs():
    return (torch.ones(1, 3, 4),)


def dynamic_shapes():
    return {"x": {0: torch.export.Dim("people"), 1: torch.export.Dim("steps")}}
