"""Teaches the text encoder the words that no caption holds, and a style for texts that name none.

Run `python -m training.words --minutes 8` after the UNet. A word of WordNet, in a phrase or alone, is drawn towards the
label that says what it is, as the encoder puts that label that the UNet was trained with: `--says-as` names that one
where the encoder has been distilled anew since. A text without a style comes to end as the same text in `UNNAMED` style
ends, since the UNet draws a blend of all its styles otherwise. What else the UNet reads of captions stays.
Never sees the rewordings that `training.evaluate` draws.
"""

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from training import data, machine, text, unet
from training.teacher import FORMS, PLACES, TAILS, NearWords, Teacher

BATCH, CAPTIONS = 96, 24
RATE = 8e-4
THEMSELVES, PLURAL = 0.15, 0.1  # of the words are labels; stand in the plural
ADOPTED = 0.65  # the least nearness of a word that becomes the token of its label
LOOK_EVERY = 250  # steps, at which the words that it knows are told from the others
KNOWN = 0.1  # how often a word that already stands nearest to its label is drawn, beside one that does not
SHORT, WHOLE_EVERY = 14, 16  # positions that most batches run: the states after a text differ little
UNNAMED = "fluent"  # the style that draws most of the tuning prompts right


class Phrases:
    """Draws phrases with near words, the captions that say as much, and captions of the concepts."""

    def __init__(self, tokenizer: CLIPTokenizer, near_words: NearWords, rng: random.Random) -> None:
        self.tokenizer = tokenizer
        self.near_words = near_words
        self._rng = rng
        self._concepts, self._styles = data.read_concepts(), list(data.STYLES)

    def draw(self, count: int) -> tuple[list[str], list[str], list[str]]:
        """Phrases, captions, and the tails that both of them take. In some phrases the label stands for itself."""
        chosen = self.near_words.draw(self._rng, count)
        forms = [self.near_words.form(self._rng) for _ in chosen]
        words = [pair.label if self._rng.random() < THEMSELVES else self._number(pair.word) for pair in chosen]
        phrases = [phrase.format(word) for (phrase, _), word in zip(forms, words, strict=True)]
        captions = [caption.format(pair.label) for (_, caption), pair in zip(forms, chosen, strict=True)]
        return phrases, captions, [self._rng.choice(TAILS) for _ in chosen]

    def _number(self, word: str) -> str:
        return f"{word}s" if self._rng.random() < PLURAL and not word.endswith("s") else word

    def captions(self, count: int) -> list[str]:
        rng = self._rng
        return [data.caption(rng.choice(self._concepts), rng.choice(self._styles), rng) for _ in range(count)]


def teach(encoder: CLIPTextModel, before: CLIPTextModel, phrases: Phrases, minutes: float) -> None:
    """Mutates the encoder: of captions it comes to say what `before` says of them. Words it knows come less often."""
    before.eval()
    encoder.requires_grad_(True)
    tokenizer = phrases.tokenizer
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    watch = machine.Stopwatch()
    threads = machine.Threads(torch.get_num_threads())
    step = 0
    while (done := watch.look() / (60 * minutes)) < 1:
        if step % LOOK_EVERY == 0:
            right = known(encoder, before, tokenizer, phrases.near_words)
            phrases.near_words.weigh([KNOWN if one else 1.0 for one in right])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        words, labels, tails = phrases.draw(BATCH)
        word_ends, label_ends = (_lengths(tokenizer, some).clamp(max=SHORT) - 1 for some in (words, labels))
        captions = phrases.captions(CAPTIONS)
        texts = [word + tail for word, tail in zip(words, tails, strict=True)] + captions
        told = [styled(one) for one in [*(label + tail for label, tail in zip(labels, tails, strict=True)), *captions]]
        length = text.TOKENS if step % WHOLE_EVERY == 0 else SHORT
        with machine.autocast():
            mine = _states(encoder, tokenizer, texts, length)
            with torch.no_grad():
                theirs = _states(before, tokenizer, told, length)
        mine, theirs = mine.float(), theirs.float()
        begun = torch.arange(len(texts)) >= BATCH  # of a caption its own tokens count as well
        off = _off(mine, theirs, _lengths(tokenizer, texts), _lengths(tokenizer, told), begun)
        moved = off[BATCH:].sum() / (CAPTIONS * length)
        rows = torch.arange(BATCH)
        near = off[:BATCH].sum() / (off[:BATCH] > 0).sum().clamp(min=1)
        near = 0.5 * near + 0.5 * functional.mse_loss(mine[rows, word_ends], theirs[rows, label_ends])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(near + 6 * moved)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        threads.step_done()
        step += 1
        if step % 25 == 0:
            left = 60 * minutes * (1 - done)
            print(f"words {step}: off by {near:.4f}, captions moved {moved:.5f}, {left:.0f} s left", flush=True)


@torch.no_grad()
def adopt(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, near_words: NearWords) -> int:
    """Mutates the encoder: a word that is one token, and in no caption, becomes the one token of its label.

    Returns how many did. Adjectives keep what they say, since they stand beside labels.
    """
    embeddings = encoder.get_input_embeddings().weight
    concepts = data.read_concepts()
    told = {i for c in concepts for text in (c.label, *c.keywords, *data.STYLES) for i in tokenizer(text).input_ids}
    told |= {i for words in (*(form for form, _ in FORMS), *PLACES) for i in tokenizer(words).input_ids}
    pairs = [pair for pair in near_words.pairs if pair.nearness >= ADOPTED]
    of_words, of_labels = (tokenizer([getattr(p, what) for p in pairs]).input_ids for what in ("word", "label"))
    adjectives = set(near_words.adjectives)
    count = 0
    for pair, (_, *word, _), (_, *label, _) in zip(pairs, of_words, of_labels, strict=True):
        if len(word) == len(label) == 1 and word[0] not in told and pair.word not in adjectives:
            embeddings[word[0]] = embeddings[label[0]]
            count += 1
    return count


@torch.no_grad()
def known(encoder: CLIPTextModel, before: CLIPTextModel, tokenizer: CLIPTokenizer, near_words: NearWords) -> list[bool]:
    """Of each pair: does the word already stand nearer to its label than to any other?"""
    labels = sorted({pair.label for pair in near_words.pairs})
    theirs = _ended(before, tokenizer, [styled(f"a {label}") for label in labels])
    nearest = torch.cdist(_ended(encoder, tokenizer, [f"a {p.word}" for p in near_words.pairs]), theirs).argmin(1)
    right = [labels[int(i)] == pair.label for i, pair in zip(nearest, near_words.pairs, strict=True)]
    print(f"{sum(right)} of {len(right)} words stand nearest to their label", flush=True)
    return right


def folder(step: int) -> Path:
    """Where the encoder that goes with a step of the UNet's training lies."""
    return data.work_folder() / "words" / f"{step:06d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--resume", action="store_true", help="go on from the encoder that lies where this one goes")
    parser.add_argument("--says-as", type=Path, default=text.folder() / "text_encoder", help="the UNet's encoder")
    parser.add_argument("--to", type=Path, help="default: beside the UNet's step, where training.package looks")
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    tokenizer = CLIPTokenizer.from_pretrained(text.folder() / "tokenizer")
    near_words = NearWords(tokenizer, Teacher())
    rng = random.Random(arguments.seed)
    pairs = near_words.pairs
    print(f"{len(pairs)} pairs, such as", *(f"{p.word} = {p.label};" for p in rng.sample(pairs, 12)), flush=True)
    target = arguments.to or folder(unet.restored(seed=0).step)
    encoder, before = (
        CLIPTextModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        for path in (target if arguments.resume else text.folder() / "text_encoder", arguments.says_as)
    )
    if not arguments.resume:
        print(f"{adopt(encoder, tokenizer, near_words)} words became the token of their label")
    teach(encoder, before, Phrases(tokenizer, near_words, rng), arguments.minutes)
    encoder.save_pretrained(target)


def styled(prompt: str) -> str:
    """The same with a style, if it has none and is not empty: an empty one is what guidance leads away from."""
    return prompt if not prompt or prompt.endswith(" style") else f"{prompt}, {UNNAMED} style"


def _off(mine: Tensor, theirs: Tensor, lengths: Tensor, told: Tensor, begun: Tensor) -> Tensor:
    """Squared distance of each state from what it should be, (n, positions), 0 where nothing is said of it.

    `theirs` are of texts that say as much in `told` tokens: where mine of so many `lengths` has ended, it should be as
    theirs where that has. Where it has not, it should be as theirs there if it has `begun` like it.
    """
    place = torch.arange(mine.shape[1])
    ended = place >= lengths[:, None]
    there = torch.where(ended, torch.maximum(place, told[:, None]), place)
    counts = (ended | begun[:, None]) & (there < mine.shape[1])
    wanted = theirs.gather(1, there.clamp(max=mine.shape[1] - 1)[..., None].expand_as(theirs))
    return (mine - wanted).square().mean(-1) * counts


def _states(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int) -> Tensor:
    states: Tensor = encoder(input_ids=text.tokenize(tokenizer, prompts)[:, :length]).last_hidden_state
    return states


def _ended(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """The state of each prompt where it has ended, (n, width)."""
    ends: list[Tensor] = []
    for start in range(0, len(prompts), 512):
        some = prompts[start : start + 512]
        lengths = _lengths(tokenizer, some)
        states = _states(encoder, tokenizer, some, int(lengths.max()) + 1)
        ends.append(states[torch.arange(len(some)), lengths])
    return torch.cat(ends)


def _lengths(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Tokens of each prompt, the start of text included, the end not."""
    counted: Tensor = (text.tokenize(tokenizer, prompts) != tokenizer.eos_token_id).sum(1)
    return counted


if __name__ == "__main__":
    main()
