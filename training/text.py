"""Makes the tokenizer, and distils a small CLIP text encoder from a sentence encoder. Knows words, no pictures.

Run `python -m training.text`: about eight minutes on two cores. The teacher is needed here only, never by the model.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import data, machine, wordnet
from training.teacher import TAILS, NearWords, Teacher, folder, whole_words

VOCABULARY = 12_288
TOKENS = 32
WIDTH = 256
RATE = 1e-3
START, END = "<|startoftext|>", "<|endoftext|>"
SHORT, MIDDLING = 7, 12  # positions that most batches run; the UNet reads all 32, so every eighth batch runs them
WHOLE_EVERY = 8
LONGEST = 12  # tokens of a text that is distilled: the cost of a batch grows with its longest
CAPTIONS_OF_A_CONCEPT = 40
HOW_OFTEN = {"captions": 4.0, "words": 3.0, "phrases": 3.0, "WordNet": 1.0}
PHRASES = 16_000


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


class Student(nn.Module):
    """The text encoder, and the projections that only the distillation needs: of the ended states, of the tokens."""

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
        self.projections = nn.ModuleList(nn.Linear(WIDTH, of_tokens.shape[1]) for _ in range(2))
        centred = of_tokens - of_tokens.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors[:, -WIDTH:]
        with torch.no_grad():
            start = centred @ directions
            self.encoder.get_input_embeddings().weight.copy_(start * (0.3 / start.std()))
            for projection in self.projections:
                projection.weight.copy_(directions * 0.1)
                projection.bias.copy_(of_tokens.mean(0))

    @torch.no_grad()
    def fit_projections(self, ids: Tensor, theirs: Tensor) -> None:
        """By least squares, for an encoder that was distilled before."""
        pooled = [self.pooled(some, TOKENS) for some in torch.split(ids, 512)]
        for projection, states in zip(self.projections, zip(*pooled, strict=True), strict=False):
            rows = torch.cat(states)
            rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
            solution = torch.linalg.lstsq(rows, theirs).solution
            projection.weight.copy_(solution[:-1].T)
            projection.bias.copy_(solution[-1])

    def forward(self, ids: Tensor) -> Tensor:
        """Unit vectors, (n, 384), of the states that the UNet reads most: those that have read the whole text."""
        return self.point(ids, TOKENS)[0]

    def point(self, ids: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (n, 384) of the ended states and of the tokens, and how far the ended states lie apart."""
        ended, tokens, apart = self.pooled(ids, length)
        vectors = [
            functional.normalize(p(s).float(), dim=-1) for p, s in zip(self.projections, (ended, tokens), strict=True)
        ]
        return vectors[0], vectors[1], apart

    def pooled(self, ids: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The mean over the first end of text and all after it; the mean over the tokens; the spread of the former.

        Only the first `length` positions are run, more if a text is longer.
        """
        length = max(length, int((ids != self.end).sum(1).max()) + 1)
        ids = ids[:, :length]
        hidden = self.encoder(input_ids=ids).last_hidden_state
        ended = (ids == self.end).cumsum(1).clamp(max=1).to(hidden.dtype)[..., None]
        token = 1 - ended
        token[:, 0] = 0
        mean = (hidden * ended).sum(1) / ended.sum(1)
        apart = ((hidden - mean[:, None]).square() * ended).mean(-1).sum() / ended.sum()
        return mean, (hidden * token).sum(1) / token.sum(1).clamp(min=1), apart


def distillation_loss(mine: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
    """Point at what the teacher points at, keep its distances, tell texts apart, and choose its label."""
    similar, target = mine @ mine.T, theirs @ theirs.T
    contrast = functional.cross_entropy(20 * mine @ theirs.T, torch.arange(len(mine)))
    choice = functional.cross_entropy(20 * mine @ labels.T, (20 * theirs @ labels.T).softmax(-1))
    away = 1 - (mine * theirs).sum(-1).mean()
    return away + 5 * (similar - target).square().mean() + 0.05 * contrast + 0.1 * choice


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Texts as token ids, the teacher's vectors of them and of the labels, and how often each text is drawn."""

    ids: Tensor
    theirs: Tensor
    labels: Tensor
    often: Tensor


def distil(student: Student, lessons: Lessons, minutes: float, rate: float, batch: int = 320) -> None:
    """Mutates the student. The learning rate follows the time worked, so that it ends on time."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    watch = machine.Stopwatch()
    step = 0
    while (done := watch.look() / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 40) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = torch.multinomial(lessons.often, batch)
        theirs = lessons.theirs[rows]
        length = TOKENS if step % WHOLE_EVERY == 0 else int(torch.randint(SHORT, MIDDLING + 1, ()))
        with machine.autocast():
            ended, tokens, apart = student.point(lessons.ids[rows], length)
        loss = distillation_loss(ended, theirs, lessons.labels)
        loss = loss + 0.3 * (1 - (tokens * theirs).sum(-1).mean()) + 0.5 * apart.float()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            cosine = (ended * theirs).sum(-1).mean()
            print(
                f"text {step}: loss {loss:.4f}, cosine {cosine:.3f}, apart {apart:.4f}, "
                f"{60 * minutes * (1 - done):.0f} s left",
                flush=True,
            )


def phrases(near: NearWords, rng: random.Random, count: int) -> list[str]:
    """Near words in phrases, now and then a label in place of the word; half of them name a style."""
    drawn = near.draw(rng, count)
    return [
        near.form(rng)[0].format(pair.label if rng.random() < 0.15 else pair.word) + rng.choice(TAILS) for pair in drawn
    ]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="of distillation, after the teacher has answered")
    parser.add_argument("--wordnet", type=int, default=36_000, help="texts drawn from WordNet")
    parser.add_argument("--resume", action="store_true", help="go on from the tokenizer and the encoder that are there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE)
    arguments = parser.parse_args()
    machine.prepare()
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    captions = caption_texts(rng)
    whole = list(wordnet.texts())
    if arguments.resume:
        tokenizer = CLIPTokenizer.from_pretrained(folder() / "tokenizer")
    else:
        tokenizer = make_tokenizer(captions * 20 + whole)
    tokens = [tokenizer.decode([i]).strip() or "." for i in range(VOCABULARY)]
    teacher = Teacher()
    near = NearWords(tokenizer, teacher)
    everyday = sorted({*whole_words(tokenizer), *wordnet.things()})
    words = [f"a {word}" if rng.random() < 0.5 else word for word in everyday]
    groups = {
        "captions": captions,
        "words": words,
        "phrases": phrases(near, rng, PHRASES),
        "WordNet": rng.sample(whole, arguments.wordnet),
    }
    print({name: len(texts) for name, texts in groups.items()}, "texts; asking the teacher", flush=True)
    student = Student(tokenizer, teacher(tokens))
    ids = torch.cat([tokenize(tokenizer, texts) for texts in groups.values()])
    often = torch.cat([torch.full((len(texts),), HOW_OFTEN[name]) for name, texts in groups.items()])
    lessons = Lessons(
        ids=ids,
        theirs=torch.cat([teacher(texts) for texts in groups.values()]),
        labels=teacher([concept.label for concept in data.read_concepts()]),
        often=often * ((ids != tokenizer.eos_token_id).sum(1) <= LONGEST),
    )
    if arguments.resume:
        student.encoder.load_state_dict(CLIPTextModel.from_pretrained(folder() / "text_encoder").state_dict())
        some = torch.randperm(len(ids))[:4096]
        student.fit_projections(ids[some], lessons.theirs[some])
        _report(student, tokenizer, teacher)
    print("distilling", flush=True)
    distil(student, lessons, arguments.minutes, arguments.rate)
    tokenizer.save_pretrained(folder() / "tokenizer")
    student.encoder.save_pretrained(folder() / "text_encoder")
    _report(student, tokenizer, teacher)


@torch.inference_mode()
def _report(student: Student, tokenizer: CLIPTokenizer, teacher: Teacher) -> None:
    """How often the student chooses the teacher's label for new phrases; which label is nearest to each rewording."""
    student.eval()
    labels = [concept.label for concept in data.read_concepts()]
    mine, theirs = student(tokenize(tokenizer, labels)), teacher(labels)

    def nearest(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        chosen = student(tokenize(tokenizer, prompts)) @ mine.T
        return chosen.argmax(1), (teacher(prompts) @ theirs.T).argmax(1)

    one, other = nearest(phrases(NearWords(tokenizer, teacher), random.Random(99), 800))
    print(f"the teacher's label for {100 * (one == other).float().mean():.1f} % of new phrases")
    rewordings = data.read_rewordings("tuning.txt")
    for who, chosen in zip(("student", "teacher"), nearest([r.prompt for r in rewordings]), strict=True):
        found = [labels[int(i)] for i in chosen]
        wrong = [f"{r.prompt} -> {label}" for r, label in zip(rewordings, found, strict=True) if label not in r.answers]
        right = len(rewordings) - len(wrong)
        print(
            f"{who}: {right} of {len(found)} rewordings nearest to their label; wrong: {'; '.join(wrong)}", flush=True
        )
    student.train()


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


if __name__ == "__main__":
    main()
