"""Teaches the trained text encoder the words that no caption holds, without moving what it says of captions.

Run `python -m training.words --minutes 4` after the UNet. A word of WordNet is drawn towards the label that the teacher
finds nearest, as the encoder itself puts that label. Never sees the rewordings that `training.evaluate` measures with.
"""

import argparse
import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from training import data, machine, text, unet

BATCH = 48  # words, and as many captions
RATE = 8e-4
NEAR_ENOUGH = 0.58  # cosine between a word and its label, by the teacher
FORMS = ("{}", "a {}", "a {}", "the {}", "an icon of a {}")
TAILS = ("", "", ", noto style", ", fluent style")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A word, and the label that the teacher finds nearest to it."""

    word: str
    label: str
    cosine: float


def find_pairs(tokenizer: CLIPTokenizer) -> list[Pair]:
    """One for each word for a thing, or that is a token of its own, that stands near some label."""
    labels = [concept.label for concept in data.read_concepts()]
    words = sorted({*text.whole_words(tokenizer), *data.wordnet_things()} - set(labels))
    teacher = text.Teacher()
    cosine, nearest = (teacher(words) @ teacher(labels).T).max(1)
    return [
        Pair(word=word, label=labels[label], cosine=near)
        for word, near, label in zip(words, cosine.tolist(), nearest.tolist(), strict=True)
        if near >= NEAR_ENOUGH
    ]


def teach(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, pairs: Sequence[Pair], minutes: float, rng: random.Random
) -> None:
    """Mutates the encoder."""
    before = copy.deepcopy(encoder).eval()
    encoder.requires_grad_(True)
    concepts, styles = data.read_concepts(), list(data.STYLES)
    weights = [pair.cosine**4 for pair in pairs]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    watch = machine.Stopwatch()
    step = 0
    while (done := watch.look() / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        chosen = rng.choices(pairs, weights, k=BATCH)
        forms = [rng.choice(FORMS) for _ in chosen]
        tails = [rng.choice(TAILS) for _ in chosen]
        words = [form.format(pair.word) for form, pair in zip(forms, chosen, strict=True)]
        labels = [form.format(pair.label) for form, pair in zip(forms, chosen, strict=True)]
        word_ends, label_ends = _lengths(tokenizer, words) - 1, _lengths(tokenizer, labels) - 1
        words = [word + tail for word, tail in zip(words, tails, strict=True)]
        labels = [label + tail for label, tail in zip(labels, tails, strict=True)]
        captions = [data.caption(rng.choice(concepts), rng.choice(styles), rng) for _ in range(BATCH)]
        with torch.autocast("cpu", torch.bfloat16):
            mine = _states(encoder, tokenizer, words + captions)
            with torch.no_grad():
                theirs = _states(before, tokenizer, labels + captions)
        mine, theirs = mine.float(), theirs.float()
        moved = functional.mse_loss(mine[BATCH:], theirs[BATCH:])
        rows = torch.arange(BATCH)
        off = (mine[:BATCH] - theirs[:BATCH]).square().mean(-1)
        longer = torch.maximum(_lengths(tokenizer, words), _lengths(tokenizer, labels))
        padding = torch.arange(text.TOKENS) >= longer[:, None]  # those states have read the whole text
        near = (off * padding).sum() / padding.sum()
        near = 0.5 * near + 0.5 * functional.mse_loss(mine[rows, word_ends], theirs[rows, label_ends])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(near + 6 * moved)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            left = 60 * minutes * (1 - done)
            print(f"words {step}: off by {near:.4f}, captions moved {moved:.5f}, {left:.0f} s left", flush=True)


def folder(step: int) -> Path:
    """Where the encoder that goes with a step of the UNet's training lies."""
    return data.work_folder() / "words" / f"{step:06d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    tokenizer = CLIPTokenizer.from_pretrained(text.folder() / "tokenizer")
    pairs = find_pairs(tokenizer)
    rng = random.Random(arguments.seed)
    print(f"{len(pairs)} pairs, such as", *(f"{p.word} = {p.label};" for p in rng.sample(pairs, 12)), flush=True)
    training = unet.restored(seed=0)
    encoder = training.averaged()[1]
    teach(encoder, tokenizer, pairs, arguments.minutes, rng)
    encoder.save_pretrained(folder(training.step))


def _states(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    states: Tensor = encoder(input_ids=text.tokenize(tokenizer, prompts)).last_hidden_state
    return states


def _lengths(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Tokens of each prompt, the start of text included, the end not."""
    counted: Tensor = (text.tokenize(tokenizer, prompts) != tokenizer.eos_token_id).sum(1)
    return counted


if __name__ == "__main__":
    main()
