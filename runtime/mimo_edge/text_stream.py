"""Token bytes in, readable text out, as soon as it is certain.

A character may be spread over several tokens, with patches between them; thoughts come first and end at "</think>";
blanks at either end belong to the markup. So bytes are decoded incrementally, a possible start of the end mark is held
back, and trailing blanks wait for what follows. The pieces joined are the reply's text.
"""

from __future__ import annotations

import codecs

from mimo_edge.reply import Piece

THOUGHTS_END = "</think>"


class TextStream:
    """One reply's text. thinking: the reply begins with thoughts (the prompt ended in "<think>\\n")."""

    def __init__(self, thinking: bool) -> None:
        self.thinking = thinking
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""  # thoughts not yet told apart from the end mark
        self._thoughts, self._text = _Trimmed(), _Trimmed()

    def feed(self, data: bytes) -> Piece:
        """Take the bytes of the next token; return what has become certain."""
        return self._advance(self._decoder.decode(data), last=False)

    def close(self) -> Piece:
        """Return the rest; an unfinished character becomes U+FFFD."""
        return self._advance(self._decoder.decode(b"", final=True), last=True)

    def _advance(self, new: str, last: bool) -> Piece:
        if not self.thinking:
            return Piece(text=self._text.feed(new))
        self._pending += new
        thoughts, mark, text = self._pending.partition(THOUGHTS_END)
        if mark:
            self.thinking = False
            return Piece(thinking=self._thoughts.feed(thoughts), text=self._text.feed(text))
        certain = len(self._pending) if last else max(0, len(self._pending) - len(THOUGHTS_END) + 1)
        thoughts, self._pending = self._pending[:certain], self._pending[certain:]
        return Piece(thinking=self._thoughts.feed(thoughts))


class _Trimmed:
    """Text without blanks at either end, given out piece by piece."""

    def __init__(self) -> None:
        self._started = False
        self._blanks = ""

    def feed(self, new: str) -> str:
        text = self._blanks + new if self._started else new.lstrip()
        kept = text.rstrip()
        self._started = self._started or bool(kept)
        self._blanks = text[len(kept) :]
        return kept
