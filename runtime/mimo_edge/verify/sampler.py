"""Sampling against its goldens: filters on given scores, removal after them, and the stop rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from mimo_edge._core import Sampling
from mimo_edge.verify.goldens import SCORE, Array, Check, Goldens
from mimo_edge.verify.stages import Stages

NUCLEUS_TIE = 1e-6  # a probability mass this near to the nucleus' edge is decided by rounding
UNDERFLOW = (87.0, 104.0)  # so far below the maximum, float32 may or may not round a probability to 0 (top_p = 1)


def check_sampler(stages: Stages, goldens: Goldens, check: Check) -> None:
    """sampler.npz: filters on given logits, removal after them, and the stop rule."""
    for case, facts in goldens.cases("sampler").items():
        source, _, kind = case.rpartition(".")
        logits, sampling = goldens.input(f"sampler:{source}.logits"), sampling_of(facts["sampler"])
        scores = stages.filter_scores(logits, sampling)
        if kind.startswith("removed"):
            scores[facts["removed_tokens"]] = -np.inf
            best = 0 if np.all(np.isneginf(scores)) else int(np.argmax(scores))
            check.equal("sampler argmax after removal", case, facts["argmax"], best)
        _check_filter(goldens, check, f"sampler:{case}.scores", facts, logits, scores, sampling)
    for row in goldens.json("sampler")["_stopper"]:
        check.equal("stop rule", str(row), row["is_done"], _is_done(stages, row))


def _check_filter(
    goldens: Goldens, check: Check, key: str, facts: Any, logits: Array, scores: Array, sampling: Sampling
) -> None:
    stage = "sampler removal" if "removed_tokens" in facts else "sampler filters"
    expected = goldens.input(key)
    gap = facts.get("nucleus_boundary_gap")
    if gap is not None and gap < NUCLEUS_TIE:
        check.note(stage, f"{key} skipped: nucleus boundary gap {gap:.1g}")
    elif _has_ties(logits) and 0 < sampling.top_p <= 1:  # which of equal scores stay is a detail of sorting
        check.near("sampler filters, ties", key, _kept(expected), _kept(scores), SCORE)
    else:
        either = undecided(logits, sampling, 0.0)
        check.scores(stage, key, expected, scores, either, SCORE)
        if not either.any() and "kept" in facts:
            check.equal("sampler candidates", key, facts["kept"], int(np.isfinite(scores).sum()))


def _kept(scores: Array) -> Array:
    """Return the scores that passed the filters, in ascending order."""
    kept: Array = np.sort(scores[np.isfinite(scores)])
    return kept


def _has_ties(logits: Array) -> bool:
    return len(np.unique(logits)) < len(logits)


def undecided(logits: Array, sampling: Sampling, tie: float) -> Array:
    """Return which candidates may be kept or not, bool [V]: rounding decides at the edge of the nucleus.

    tie: how near (in probability) to the edge. With top_p = 1 the edge is where float32 probabilities vanish.
    """
    either = np.zeros(len(logits), bool)
    if not 0 < sampling.top_p <= 1:
        return either
    scaled = logits.astype(np.float64) / sampling.temperature
    if sampling.top_p == 1:
        below = scaled.max() - scaled
        either[(below >= UNDERFLOW[0]) & (below <= UNDERFLOW[1])] = True
        return either
    if sampling.top_k > 0:
        scaled[scaled < np.sort(scaled)[-min(sampling.top_k, len(scaled))]] = -np.inf
    order = np.argsort(scaled, kind="stable")
    share = np.exp(scaled[order] - scaled.max())
    either[order] = np.abs(np.cumsum(share / share.sum()) - (1 - sampling.top_p)) < tie
    return either


def _is_done(stages: Stages, row: Any) -> bool:
    """One line of the stop table: what stands in the last position decides, and only its text."""
    eos = stages.config["tokens"]["eos"]
    ordinary = 0 if eos != 0 else 1
    last = eos if row["last_group"] == "stop" else ordinary
    stop = [eos] if row["stop_tokens_given"] else None
    return stages.is_done(row["total_groups"], last, stop, row["min_length"] or 0, row["max_length"])


def sampling_of(arguments: Any) -> Sampling:
    """The reference's sampler arguments; what is absent or null is off."""
    return Sampling(
        bool(arguments.get("do_sample", True)),
        arguments.get("temperature") or 1.0,
        max(0, arguments.get("top_k") or 0),
        arguments.get("top_p") or 0.0,
    )
