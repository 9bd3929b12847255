"""Which embeddings a prompt names. Must not import torch: the API process and the workers read prompts alike."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

MAX_TOKENS = 75  # that an embedding may stand for: what a window of CLIP's holds


def split(text: str, names: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """The text in pieces: words, with None, and mentions, with the id that they mean.

    `names`: what stands for an id in a text, whatever its letter case. A mention is a whole word, with or without
    ComfyUI's `embedding:` before it; of two names that begin alike the longer one counts.
    """
    if not names:
        yield text, None
        return
    folded = {name.casefold(): model_id for name, model_id in names.items()}
    at = 0
    for found in _pattern(tuple(sorted(folded, key=len, reverse=True))).finditer(text):
        if found.start() > at:
            yield text[at : found.start()], None
        yield found[0], folded[found[1].casefold()]
        at = found.end()
    if at < len(text):
        yield text[at:], None


def ids(texts: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Those that the texts name, in the order in which they do, each once."""
    found = (model_id for text in texts for _, model_id in split(text, names) if model_id is not None)
    return list(dict.fromkeys(found))


def names(embeddings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What stands for each of them in a prompt: its id, and the `<token>` that it was trained as, if it is one.

    `embeddings`: ids, with the names in their files. Of two that share a name the one counts whose id it is.
    """
    pairs = list(embeddings)
    trained = {token: model_id for model_id, token in pairs if re.fullmatch(r"<[^<>\s]+>", token)}
    return trained | {model_id: model_id for model_id, _ in pairs}


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    any_name = "|".join(map(re.escape, names))
    return re.compile(rf"(?<![\w-])(?:embedding:)?({any_name})(?![\w-])", re.IGNORECASE)
