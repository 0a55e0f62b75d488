"""Four attention modules as a user would write them from their papers, in one file."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SimAM(nn.Module):
    """Yang et al. (2021), Eqs. 5 and 6: no parameters; it weights each position by its energy."""

    def __init__(self, channels: int, *, regularization: float = 1e-4) -> None:
        super().__init__()
        self.regularization = regularization

    def forward(self, x: Tensor) -> Tensor:
        squared = (x - x.mean((2, 3), keepdim=True)).square()
        variance = squared.mean((2, 3), keepdim=True) + self.regularization
        return x * (squared / (4 * variance) + 0.5).sigmoid()


class ECA(nn.Module):
    """Wang et al. (2020), Eqs. 9 and 12: a 1D convolution over the channels' averages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int(abs(math.log2(channels) + 1) / 2)
        size += 1 - size % 2
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * gate[:, 0, :, None, None]


class CoordinateAttention(nn.Module):
    """Hou et al. (2021), Eqs. 4 to 9: gates along the height and along the width."""

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.along_height = nn.Conv2d(hidden, channels, 1)
        self.along_width = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        both = self.shared(torch.cat([rows, columns], 2))
        rows, columns = both.split([x.shape[2], x.shape[3]], 2)
        across = self.along_width(columns.transpose(2, 3)).sigmoid()
        return x * self.along_height(rows).sigmoid() * across


class WindowAttention(nn.Module):
    """Liu et al. (2021), Eq. 4: self-attention within windows, with a relative position bias."""

    def __init__(self, channels: int, *, window: int = 7, heads: int = 4) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        place = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        ).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = self.window
        padded = functional.pad(x, (0, -width % size, 0, -height % size))
        down, across = padded.shape[2] // size, padded.shape[3] // size
        windows = padded.view(batch, channels, down, size, across, size)
        tokens = windows.permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, channels)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, 2)
        )
        bias = self.bias[self.index].permute(2, 0, 1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        tokens = self.project(out.transpose(1, 2).flatten(2))
        windows = tokens.view(batch, down, across, size, size, channels)
        padded = windows.permute(0, 5, 1, 3, 2, 4).reshape(padded.shape)
        return x + padded[:, :, :height, :width]
