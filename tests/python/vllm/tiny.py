"""Writes a tiny checkpoint with random weights: `tiny.py PATH [LAYERS]`, a Qwen2 in single precision."""

import sys

import models
import torch

models.checkpoint("qwen2", torch.float32, sys.argv[1], *map(int, sys.argv[2:]))
