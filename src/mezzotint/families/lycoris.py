"""LoHa, and LoCon with a middle factor, as plain low-rank factors: the very same products. Hyeon-Woo et al. 2021,
arXiv:2108.06098; Yeh et al. 2023, arXiv:2309.14859. Must not know of models or layers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_LOHA = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
_MIDDLE, _DOWN, _UP, _ALPHA = ".lora_mid.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"


def as_plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kohya's layout in, kohya's layout out. Raises ValueError for factors that lack others."""
    plain = dict(tensors)
    for stem in [key.removesuffix(_LOHA[0]) for key in tensors if key.endswith(_LOHA[0])]:
        left, right, left2, right2 = (_taken(plain, stem, suffix).float() for suffix in _LOHA)
        down, up = _loha(left, right, left2, right2)
        alpha = plain.get(stem + _ALPHA, torch.tensor(len(right)))
        plain |= {stem + _DOWN: down, stem + _UP: up, stem + _ALPHA: alpha.float() * len(down) / len(right)}
    for stem in [key.removesuffix(_MIDDLE) for key in tensors if key.endswith(_MIDDLE)]:
        middle, down = (_taken(plain, stem, suffix).float() for suffix in (_MIDDLE, _DOWN))
        plain[stem + _DOWN] = torch.einsum("pjkl,ji->pikl", middle, down.flatten(1))
    return plain


def _taken(tensors: dict[str, Tensor], stem: str, suffix: str) -> Tensor:
    found = tensors.pop(stem + suffix, None)
    if found is None:
        raise ValueError(f"{stem[:96]} has no {suffix[1:]}")
    return found


def _loha(left: Tensor, right: Tensor, left2: Tensor, right2: Tensor) -> tuple[Tensor, Tensor]:
    """(left @ right) * (left2 @ right2), each (out, r) @ (r, in), as down (rank, in) and up (out, rank)."""
    outs, ins = len(left), right.shape[1]
    if len(right) * len(right2) < min(outs, ins):
        up = (left.unsqueeze(2) * left2.unsqueeze(1)).flatten(1)
        down = (right.unsqueeze(1) * right2.unsqueeze(0)).flatten(0, 1)
        return down, up
    whole = (left @ right) * (left2 @ right2)
    return (torch.eye(ins), whole) if ins <= outs else (whole, torch.eye(outs))
