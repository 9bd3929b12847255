"""ControlNets beside a UNet, run on the rows that have one. Zhang et al. 2023, arXiv:2302.05543.

Must not prepare pictures or know when in a session a net is at work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor

from mezzotint.families.base import Control, ControlNet, Rows
from mezzotint.families.layouts import layout_of
from mezzotint.families.weights import load_module, module_bytes

FADE = 0.825  # per skip, from the middle outwards, as sd-webui-controlnet does it


class DiffusersControlNet:
    """A ControlNetModel of diffusers. `added` gives the conditions that the UNet takes beside the text."""

    def __init__(self, path: Path, unet: Any, device: torch.device, dtype: torch.dtype, added: Any) -> None:
        """Raises ValueError when it is of another shape than the UNet."""
        self.module = load_module(ControlNetModel, layout_of(path), "", device, dtype)
        for name in ("block_out_channels", "cross_attention_dim", "addition_embed_type"):
            mine, its = self.module.config[name], unet.config[name]
            if mine != its:
                raise ValueError(f"its {name} is {mine}, the model's is {its}")
        self._device, self._dtype, self._added = device, dtype, added
        self.pools = bool(self.module.config.global_pool_conditions)
        self.module.register_to_config(global_pool_conditions=False)  # to one pixel, to which no other net can add

    @property
    def bytes(self) -> int:
        return module_bytes(self.module)

    def residuals(self, rows: Rows, images: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        down, middle = self.module(
            rows.latents[chosen].to(self._device, self._dtype),
            rows.timesteps[chosen].to(self._device),
            encoder_hidden_states=rows.hidden[chosen].to(self._dtype),
            controlnet_cond=images.to(self._device, self._dtype),
            added_cond_kwargs=self._added(rows, chosen),
            return_dict=False,
        )
        parts = (*down, middle)
        return tuple(part.mean((2, 3), keepdim=True).expand_as(part) for part in parts) if self.pools else parts


def add_up(rows: Rows) -> list[Tensor]:
    """What all nets add to each skip, (n, channels, h, w), the middle's last; zeros for rows without."""
    entries: dict[ControlNet, list[tuple[int, Control]]] = {}
    for row, controls in enumerate(rows.controls):
        for control in controls:
            entries.setdefault(control.net, []).append((row, control))
    total: list[Tensor] = []
    for net, its in entries.items():
        chosen = torch.tensor([row for row, _ in its])
        parts = net.residuals(rows, torch.stack([control.image for _, control in its]), chosen)
        if not total:
            total = [part.new_zeros(len(rows.latents), *part.shape[1:]) for part in parts]
        chosen = chosen.to(parts[0].device)
        for place, (part, into) in enumerate(zip(parts, total, strict=True)):
            weights = part.new_tensor(_weights([control for _, control in its], place, len(parts)))
            into.index_add_(0, chosen, part * weights[:, None, None, None])
    return total


def _weights(controls: Sequence[Control], place: int, count: int) -> list[float]:
    return [one.scale * (FADE ** (count - 1 - place) if one.fade else 1.0) for one in controls]
