"""The runaway guard: how long a reply may become before it is stopped for the caller's sake.

Rule. A generation ends at the first of
 - a stop token of its task ("stop token"),
 - the caller's `max_new_tokens`, or a full context ("max_length"),
 - a tail that repeats itself, as the core detects it ("guard"),
 - the allowance of its task, below ("guard").
One position is a text token or a patch (160 ms of sound). Parity mode knows neither of the two guards, like the
reference. Some low-precision runs of this model never stop talking (163 s of sound for one sentence was seen); hence
the allowances, each several times what the task needs: speech has about 4 tokens a second, a spoken second takes 6.25
patches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """New positions allowed: base + per_second * seconds of input sound + per_token * tokens of input text."""

    base: int
    per_second: float = 0.0
    per_token: float = 0.0

    def positions(self, seconds: float = 0.0, tokens: int = 0) -> int:
        return self.base + round(self.per_second * seconds + self.per_token * tokens)


ALLOWANCES = {
    "asr": Allowance(64, per_second=16),
    "tts": Allowance(128, per_token=6),
    "spoken_dialogue": Allowance(2048),
    "speech_to_text": Allowance(2048),
    "audio_understanding": Allowance(2048),
    "text_chat": Allowance(4096),
    "in_context": Allowance(64, per_second=16),
}
THINKING = Allowance(1024)
"""Added where the model thinks first (thinking=True, and speaking by instruction)."""
