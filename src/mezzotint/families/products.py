"""Whose library multiplies in float32 on this CPU (decision 008). By the processor's maker and not by a measurement: a
session that goes on in another process must multiply as before, to the last bit.
"""

import torch

from mezzotint.profiles import cpu_name

BY_MKL = torch.backends.mkl.is_available() and "Intel" in cpu_name()  # else oneDNN


def choose() -> None:
    """For the attention of this process, and for its projections that are not packed."""
    torch.set_float32_matmul_precision("highest" if BY_MKL else "medium")
