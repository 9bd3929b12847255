"""What prompts say, as the UNet reads it: encoded once and kept by content. Holds no session."""

from collections import OrderedDict
from dataclasses import replace

from mezzotint.engine.stopwatch import Stopwatch
from mezzotint.families.base import Conditioning, Family, Prompt
from mezzotint.families.embedding import EmbeddingSet
from mezzotint.families.lora import LoraSet
from mezzotint.workers import wire

KEPT = 128  # encodings, the last used


class Prompts:
    """Encodes through a family and remembers. Not thread-safe."""

    def __init__(self, watch: Stopwatch) -> None:
        """`watch` times what is encoded."""
        self._watch = watch
        self._kept: OrderedDict[tuple[object, ...], Conditioning] = OrderedDict()
        self.hits = self.misses = 0  # encodings that were there already, and those that were not

    def read(
        self, submit: wire.Submit, family: Family, loras: LoraSet, embeddings: EmbeddingSet = ()
    ) -> tuple[Conditioning, Conditioning | None]:
        """The prompt and, with guidance, the negative one, both as long as the longer."""
        request = submit.request
        prompt = Prompt(
            text=request.prompt,
            syntax=request.prompt_syntax,
            clip_skip=request.clip_skip,
            loras=loras,
            embeddings=embeddings,
        )
        if request.guidance_scale <= 1:
            return self._encode(submit, family, replace(prompt, windows=family.windows(prompt))), None
        # diffusers applies clip_skip to the prompt only
        negative = replace(prompt, text=request.negative_prompt, clip_skip=None, negative=True)
        windows = max(family.windows(prompt), family.windows(negative))
        text = self._encode(submit, family, replace(prompt, windows=windows))
        return text, self._encode(submit, family, replace(negative, windows=windows))

    def forget(self) -> None:
        """Let go of all, for memory's sake."""
        self._kept.clear()

    def _encode(self, submit: wire.Submit, family: Family, prompt: Prompt) -> Conditioning:
        scales = tuple(scale for _, scale in prompt.loras)
        plain = replace(prompt, loras=(), embeddings=())  # no tensors: they would never be let go
        key = (submit.model, submit.loras, scales, submit.embeddings, plain)
        if key in self._kept:
            self.hits += 1
        else:
            self.misses += 1
            work = wire.Work(what="encode", model=submit.model.sha256, windows=prompt.windows, loras=bool(prompt.loras))
            with self._watch.time(work):
                self._kept[key] = family.encode([prompt])[0]
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
