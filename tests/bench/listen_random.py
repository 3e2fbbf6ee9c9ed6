"""`mimo-edge listen` on a bundle of random weights, for its latencies.

    python tests/bench/listen_random.py --bundle BUNDLE --simulate FILE... --report latency.json

Random weights choose words for ever and never speak. Here every stage is computed as always, the scores of all tokens
included, but the token is dictated: 5 of text and 5 patches by turns, as the release does, until PATCHES were spoken.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mimo_edge import cli, generation
from mimo_edge.answer import Answer

PATCHES = 10  # of an answer, 1.6 s


class Dictated:
    """In the place of _core.Generation."""

    def __init__(self, model: Any, state: Any, prompt: Any) -> None:
        self._model, self._state, self._unread = model, state, prompt
        self._speech = model.task("spoken_dialogue")[1]
        self._words = iter((["a"] * 5 + [""] * 5) * (PATCHES // 5) + ["<|eostm|>"])
        self._made = [prompt[:, :0]]
        self.reason = "stop token"

    def next(self, tap: Any = None) -> tuple[int, Any] | None:
        word = next(self._words, None) if self.reason == "stop token" else None
        if word is None:
            return None
        self._state.prefill(self._unread)
        self._state.text_logits()
        patch = None if word else self._state.decode_patch(self._speech)
        self._unread = self._model.prompt_text(word) if word else self._model.prompt_audio(patch, False)
        self._made.append(self._unread)
        return int(self._unread[0, 0]), patch

    def cancel(self) -> None:
        self.reason = "cancelled"

    def ids(self) -> Any:
        return np.ascontiguousarray(np.concatenate(self._made, axis=1))


class DictatedAnswer(Answer):
    def __init__(self, engine: Any, request: Any, options: Any, state: Any, stream: int) -> None:
        super().__init__(engine, request, options, state, stream)
        self._core = Dictated(engine.core, state, request.ids)


generation.Answer = DictatedAnswer
sys.exit(cli.main(["listen", *sys.argv[1:]]))
