"""CLIP's text encoder and tokenizer, read from a model's layout. Must not depend on transformers.

Radford et al. 2021, arXiv:2103.00020. The same parameter names and numbers as transformers' CLIPTextModel, which is the
oracle in tests/parity; importing that one takes a worker longer than all else together (docs/decisions/001).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.families.layouts import Layout

_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Text to token ids, without the start, end and padding that frame a window."""

    def __init__(self, folder: Path, told: Mapping[str, Any] | None = None) -> None:
        """`told` wins over the folder's tokenizer_config.json. Raises OSError or ValueError when it holds no vocabulary
        of CLIP."""
        config = _json(folder / "tokenizer_config.json") | dict(told or {})
        special = config | _json(folder / "special_tokens_map.json")
        start, end, pad = (_name(special.get(kind, otherwise)) for kind, otherwise in _SPECIAL.items())
        whole = folder / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _from_vocabulary(folder)
        self._tokenizer.no_padding()  # a file may say to fill a window, and to cut what is longer
        self._tokenizer.no_truncation()
        # as transformers does: also a `!` that pads is a token of its own wherever it stands
        self._tokenizer.add_special_tokens([start, end, pad])
        self.start, self.end, self.pad = (self._id(name) for name in (start, end, pad))
        # what transformers does not know it writes as 10**30
        self.window = min(int(config.get("model_max_length", 77)), int(config.get("max_position_embeddings", 77)))
        if self.window < 3:
            raise ValueError(f"a window of {self.window} tokens, its first and last among them, holds no text")

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def _id(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise ValueError(f"token {name!r} is not in the vocabulary")
        return int(found)


class ClipTextEncoder(nn.Module):
    """Token ids (n, tokens) to hidden states (n, tokens, channels)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = int(config["hidden_size"])
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]))
        self.text_projection: nn.Linear | None = None

    @classmethod
    def load(cls, layout: Layout, part: str, device: torch.device, dtype: torch.dtype) -> "ClipTextEncoder":
        """Raises OSError, KeyError or RuntimeError when the files do not fit together."""
        with torch.device("meta"):
            module = cls(layout.config(part))
            named = {name.removeprefix("text_model."): tensor for name, tensor in layout.state(part, dtype).items()}
            if (projection := named.get("text_projection.weight")) is not None:
                module.text_projection = nn.Linear(projection.shape[1], projection.shape[0], bias=False)
        named.pop("embeddings.position_ids", None)
        module.load_state_dict(named, assign=True)
        return module.to(device).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Channels."""
        return int(self.embeddings.token_embedding.weight.shape[1])

    def forward(self, ids: Tensor, skip: int = 0, named: Tensor | None = None) -> Tensor:
        """The last `skip` layers are left out; the final norm always comes (diffusers' `clip_skip`)."""
        normed: Tensor = self.final_layer_norm(self.states(ids, named)[-1 - skip])
        return normed

    def states(self, ids: Tensor, named: Tensor | None = None) -> list[Tensor]:
        """The embeddings, then what each layer makes of them, without the final norm.

        `named`: (m, channels), in the place of tokens below zero: row i is -1 - i.
        """
        states = [self.embeddings(ids, named)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states

    def pool(self, last: Tensor, end: int) -> Tensor:
        """Each row's text in one vector, (n, channels): the last layer's state at the end token, normed, projected."""
        normed: Tensor = self.final_layer_norm(last[:, end])
        return normed if self.text_projection is None else self.text_projection(normed)


class _Embeddings(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = int(config["hidden_size"])
        self.token_embedding = _embedding(int(config["vocab_size"]), width)
        self.position_embedding = _embedding(int(config["max_position_embeddings"]), width)

    def forward(self, ids: Tensor, named: Tensor | None) -> Tensor:
        tokens = self.token_embedding(ids.clamp(min=0))
        if named is not None:
            tokens = torch.where((ids < 0).unsqueeze(-1), named[(-1 - ids).clamp(min=0)], tokens)
        return tokens + self.position_embedding.weight[: ids.shape[1]]


class _Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(int(config["num_hidden_layers"])))


def _embedding(count: int, width: int) -> nn.Embedding:
    """Not initialised: drawing normal numbers for what is about to be loaded would import torch's compiler."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        self._heads = int(config["num_attention_heads"])
        self._activation = _ACTIVATIONS[config["hidden_act"]]
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in _PROJECTIONS})
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        inner = int(config["intermediate_size"])
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.layer_norm1(hidden)
        query, key, value = (self._split(self.self_attn[name](normed)) for name in _PROJECTIONS[:3])
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.self_attn["out_proj"](attended.transpose(1, 2).flatten(2))
        out: Tensor = hidden + self.mlp["fc2"](self._activation(self.mlp["fc1"](self.layer_norm2(hidden))))
        return out

    def _split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self._heads, -1)).transpose(1, 2)


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": functional.gelu}


def _from_vocabulary(folder: Path) -> Any:
    """The older layout, vocab.json and merges.txt, as transformers' CLIPTokenizer reads it."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in pairs]
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",  # noqa: S106  a token of text
            continuing_subword_prefix="",
        )
    )
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _name(token: str | dict[str, Any]) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
