"""What can be known of a sentence-transformers folder without loading the model.

Importing torch takes seconds; counting tokens and telling one embedder from another should not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import ModelUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Models trained with prefixes, whose folders do not say so. (query, document), from model cards.
_PREFIXES = {
    "e5": ("query: ", "passage: "),
    "bge-large-en": ("Represent this sentence for searching relevant passages: ", ""),
    "bge-base-en": ("Represent this sentence for searching relevant passages: ", ""),
    "bge-small-en": ("Represent this sentence for searching relevant passages: ", ""),
    "bge-large-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "bge-base-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "bge-small-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "nomic-embed-text": ("search_query: ", "search_document: "),
}


_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class Encoder:
    """The tokenizer and the configuration of a model's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = self._json("config.json")
        if not self._config:
            raise ModelUnavailable(
                f"{folder} holds no sentence-transformers model", "check embedder.model"
            )
        self._bert = self._json("sentence_bert_config.json")

    @cached_property
    def dim(self) -> int:
        """The length of its vectors: of the last dense layer, or of the pooled states."""
        dims = [
            self._json(f"{module['path']}/config.json").get(key)
            for module in self._modules
            for key in ("word_embedding_dimension", "embedding_dimension", "out_features")
        ]
        found = [dim for dim in dims if dim]
        return int(found[-1] if found else self._config["hidden_size"])

    @cached_property
    def max_tokens(self) -> int:
        """The most tokens that the model reads, special ones included."""
        limits = (
            self._bert.get("max_seq_length"),
            self._json("tokenizer_config.json").get("model_max_length"),
            self._config.get("max_position_embeddings"),
        )
        return min(int(limit) for limit in limits if limit)

    def prefixes(self, name: str) -> tuple[str, str]:
        """(query prefix, document prefix) that the model was trained with."""
        prompts = self._json("config_sentence_transformers.json").get("prompts") or {}
        if any(prompts.values()):
            document = prompts.get("document", prompts.get("passage", ""))
            return prompts.get("query", ""), document
        known = [pair for part, pair in _PREFIXES.items() if part in name.lower()]
        return known[0] if known else ("", "")

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included, nothing cut."""
        return [len(encoding.ids) for encoding in self._encode(texts)]

    def legibility(self, text: str) -> float:
        """The share of the letters that the vocabulary knows in whole characters or more, 0 to 1.

        An English model meets Chinese as unknown tokens, Korean as parts of a character and Russian
        as single letters: its vectors of them mean next to nothing.
        """
        encoding = self._tokenizer.encode(text)
        unknown = self._tokenizer.token_to_id(self._unknown)
        pieces = Counter(span for span in encoding.offsets if span[1] > span[0])
        known: dict[int, bool] = {}
        for token, span in zip(encoding.ids, encoding.offsets, strict=True):
            for at in range(*span):
                lone = span[1] - span[0] == 1 and _inside_word(text, at)
                known[at] = token != unknown and pieces[span] == 1 and not lone
        letters = [at for at, letter in enumerate(text) if letter.isalpha()]
        return sum(known.get(at, False) for at in letters) / len(letters) if letters else 1.0

    def batches(
        self, texts: Sequence[str], size: int
    ) -> list[tuple[list[int], NDArray[np.int64], NDArray[np.int64]]]:
        """(rows, ids, mask) for texts of like length, longest first, each cut at max_tokens.

        Sorted by length in tokens, small batches carry little padding, which on a CPU is time.
        """
        import numpy as np

        encodings = [encoding.ids for encoding in self._encode(texts)]
        order = sorted(range(len(texts)), key=lambda row: -len(encodings[row]))
        found = []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            width = min(len(encodings[rows[0]]), self.max_tokens)
            ids = np.full((len(rows), width), self._pad, np.int64)
            mask = np.zeros((len(rows), width), np.int64)
            for line, row in enumerate(rows):
                kept = self._cut(encodings[row])
                ids[line, : len(kept)] = kept
                mask[line, : len(kept)] = 1
            found.append((rows, ids, mask))
        return found

    def _cut(self, ids: list[int]) -> list[int]:
        """At most max_tokens ids; the special tokens at the end stay."""
        if len(ids) <= self.max_tokens:
            return ids
        tail = self._tail
        return ids[: self.max_tokens - tail] + (ids[-tail:] if tail else [])

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        if self._bert.get("do_lower_case"):
            texts = [text.lower() for text in texts]
        encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts))
        return encodings

    @cached_property
    def _modules(self) -> list[dict[str, str]]:
        try:
            found: list[dict[str, str]] = json.loads((self.folder / "modules.json").read_text())
        except FileNotFoundError:
            found = []
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise ModelUnavailable(
                f"{self.folder} has no tokenizer.json",
                "save the model with a fast tokenizer (transformers: AutoTokenizer)",
            )
        tokenizer = Tokenizer.from_file(str(path))
        # The file may ask for cutting and padding; both are decided here.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _unknown(self) -> str:
        token = self._json("tokenizer_config.json").get("unk_token") or "[UNK]"
        return str(token["content"] if isinstance(token, dict) else token)

    @cached_property
    def _tail(self) -> int:
        """How many special tokens end a text."""
        mask = self._tokenizer.encode("a").special_tokens_mask
        return len(mask) - len("".join(map(str, mask)).rstrip("1"))

    @cached_property
    def _pad(self) -> int:
        return int(self._config.get("pad_token_id") or 0)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ModelUnavailable(
                f"{self.folder / name} is not JSON", "fetch the model again"
            ) from error
        return values


def _inside_word(text: str, at: int) -> bool:
    """Whether the letter has letters on both sides, none of them Han: there, each is a word."""
    around = text[max(0, at - 1) : at + 2]
    return len(around) == 3 and around.isalpha() and not _HAN.search(around)
