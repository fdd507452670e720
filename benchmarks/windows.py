"""Measures how windows of a long clip are best joined, on held-out clips and the tiny model.

    python -m benchmarks.windows

writes windows.csv, windows.png and README.md into docs/results/windows.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from genhoi.data.synthetic import SyntheticHOI
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.editing.plan import EditWarning
from genhoi.editing.windows import windows
from genhoi.evaluation.drift import drift
from genhoi.evaluation.metrics import region_psnr, squared_error
from genhoi.media import atomic_path
