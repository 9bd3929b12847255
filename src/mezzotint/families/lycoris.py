"""LoHa, LoKr, and LoCon with a middle factor, as plain low-rank factors: the very same products. Hyeon-Woo et al. 2021,
arXiv:2108.06098; Yeh et al. 2023, arXiv:2309.14859. Must not know of models or layers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_LOHA = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
_LOKR = ".lokr_"
_MIDDLE, _DOWN, _UP, _ALPHA = ".lora_mid.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"


def as_plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kohya's layout in, kohya's layout out. Raises ValueError for factors that lack others."""
    plain = dict(tensors)
    for stem in [key.removesuffix(_LOHA[0]) for key in tensors if key.endswith(_LOHA[0])]:
        left, right, left2, right2 = (_taken(plain, stem, suffix).float() for suffix in _LOHA)
        down, up = _loha(left, right, left2, right2)
        alpha = plain.get(stem + _ALPHA, torch.tensor(len(right)))
        plain |= {stem + _DOWN: down, stem + _UP: up, stem + _ALPHA: alpha.float() * len(down) / len(right)}
    for stem in dict.fromkeys(key.partition(_LOKR)[0] for key in tensors if _LOKR in key):
        own = {key: plain.pop(key).float() for key in tensors if key.startswith(stem + _LOKR)}
        parts = {key.removeprefix(stem + _LOKR): tensor for key, tensor in own.items()}
        down, up = _lokr(stem, parts)
        scale = _lokr_scale(plain.get(stem + _ALPHA), parts)
        plain |= {stem + _DOWN: down, stem + _UP: up, stem + _ALPHA: scale * len(down)}
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
    return _split((left @ right) * (left2 @ right2))


def _lokr(stem: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """kron(w1, w2), each whole or of two factors, as down (rank, in) and up (out, rank)."""
    if "t2" in parts and {"w2_a", "w2_b"} <= parts.keys():
        whole = torch.einsum("ijkl,ip,jr->prkl", parts["t2"], parts["w2_a"], parts["w2_b"])
        parts = {"w2": whole} | {name: tensor for name, tensor in parts.items() if name[:2] == "w1"}
    (down, up), (down2, up2) = (_lokr_factors(stem, name, parts) for name in ("w1", "w2"))
    outs, ins = len(up) * len(up2), down.shape[1] * down2.shape[1]
    if len(down) * len(down2) < min(outs, ins):
        return torch.kron(down, down2), torch.kron(up, up2)
    return _split(torch.kron(up @ down, up2 @ down2))


def _lokr_factors(stem: str, name: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if name in parts:
        return _split(parts[name].flatten(1))
    if not {f"{name}_a", f"{name}_b"} <= parts.keys():
        raise ValueError(f"{stem[:96]} has no lokr_{name}")
    return parts[f"{name}_b"].flatten(1), parts[f"{name}_a"]


def _lokr_scale(alpha: Tensor | None, parts: Mapping[str, Tensor]) -> Tensor:
    """By the rank of what is factored; 1 where nothing is, as in LyCORIS."""
    ranks = [len(parts[name]) for name in ("w2_b", "w1_b") if name in parts]
    return torch.tensor(1.0) if alpha is None or not ranks else alpha.float() / ranks[0]


def _split(whole: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) as down and up, one of which is the identity."""
    outs, ins = whole.shape
    return (torch.eye(ins), whole) if ins <= outs else (whole, torch.eye(outs))
