"""The speakers: who is listened to, who speaks, and who is never heard in training.

hibari's variants are told apart by (f0 factor, envelope warp, tilt in dB per octave); see voices.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voice:
    """engine: hibari | festival | flite | espeak. name: the engine's voice. resample > 1 raises pitch and formants."""

    label: str
    engine: str
    name: str
    f0: float = 1.0
    warp: float = 1.0
    tilt: float = 0.0
    resample: float = 1.0


# The four voices that speak; the first is the default one.
SPEAKERS = [
    Voice("heart", "hibari", "heart"),
    Voice("deep", "hibari", "heart", 0.62, 0.92, -0.5),
    Voice("bright", "hibari", "heart", 1.18, 1.08, 0.5),
    Voice("mellow", "hibari", "heart", 0.8, 0.97, -1.0),
]
_VARIANTS = [
    (0.65, 0.9, 0.0), (0.7, 0.95, -1.0), (0.75, 1.0, 0.5), (0.68, 0.93, 1.0), (0.85, 0.92, 0.0), (0.9, 1.05, -0.5),
    (0.95, 0.95, 0.5), (1.05, 1.0, -1.0), (1.1, 1.1, 0.0), (1.2, 1.05, -0.5), (1.3, 1.12, 0.0), (1.25, 1.0, 0.5),
]  # fmt: skip
LISTENED = [
    *SPEAKERS,
    *[Voice(f"h{i:02d}", "hibari", "heart", *v) for i, v in enumerate(_VARIANTS)],
    Voice("slt_hts", "festival", "cmu_us_slt_arctic_hts"),
    Voice("ked", "festival", "ked_diphone"),
    Voice("kal", "festival", "kal_diphone"),
    Voice("slt", "flite", "slt"),
    Voice("slt_low", "flite", "slt", resample=0.88),
    Voice("awb", "flite", "awb"),
    Voice("awb_high", "flite", "awb", resample=1.12),
    Voice("kal16", "flite", "kal16"),
    Voice("kal16_high", "flite", "kal16", resample=1.1),
    Voice("es_us", "espeak", "en-us"),
    Voice("es_us_m3", "espeak", "en-us+m3"),
    Voice("es_us_f2", "espeak", "en-us+f2"),
    Voice("es_us_f4", "espeak", "en-us+f4"),
    Voice("es_gb", "espeak", "en-gb"),
    Voice("es_gb_m7", "espeak", "en-gb+m7"),
]
UNHEARD = Voice("rms", "flite", "rms")  # in no training set, neither codec nor LM
