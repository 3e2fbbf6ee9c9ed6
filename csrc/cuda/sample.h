// Logits -> one index, by one block: lm/sampler.h on the device, with the same random numbers.
//
// What the host sorts for, the device finds by bisection: the k-th best score and the least probable candidate that
// top-p keeps are searched bit by bit over the order-preserving integers of their floats, each step one count or sum
// over all candidates. Sums of probabilities are double, as on the host; their order differs, which moves a boundary by
// about 1e-16 of its value.
#pragma once

#include "base/rng.h"
#include "cuda/linear.h"

namespace mimo::gpu {

// Floats as integers of the same order, and back. Not for NaN.
MIMO_DEVICE uint32_t ordered(float x) {
    const uint32_t bits = as_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
MIMO_DEVICE float unordered(uint32_t bits) {
    return as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

// The candidates of one draw. Threads own candidates thread, thread + threads, ...
struct Candidates {
    const float* logits;
    int32_t count;
    float temperature;
    float least;             // score below which top-k takes candidates away
    float* mass;             // of each candidate relative to the best, if top-p filters
    float least_mass;        // below which top-p takes candidates away
    int32_t first_of_least;  // of those exactly there, candidates before this one go too
    const int32_t* removed;
    int32_t removed_count;

    MIMO_DEVICE float score(int64_t i) const { return logits[i] / temperature; }

    // The score, or -infinity if the filters take candidate i away.
    MIMO_DEVICE float filtered(int64_t i) const {
        const float s = score(i);
        if (s < least || (mass != nullptr && (mass[i] < least_mass || (mass[i] == least_mass && i < first_of_least)))) {
            return -infinity();
        }
        return s;
    }

    MIMO_DEVICE bool is_removed(int64_t i) const {
        for (int32_t r = 0; r < removed_count; ++r) {
            if (removed[r] == i) return true;
        }
        return false;
    }
};

template <typename T, typename Combine, typename Term>
MIMO_DEVICE T over_all(int32_t count, T start, Combine combine, Term term) {
    for (int64_t i = thread(); i < count; i += threads()) start = combine(start, term(i));
    return reduce_block(start, combine);
}

// The greatest bits for which `holds` (it holds from 0 up to some point), bit by bit from `top` down.
template <typename Holds>
MIMO_DEVICE uint32_t bisect(uint32_t top, Holds holds) {
    uint32_t found = 0;
    for (uint32_t bit = top; bit != 0; bit >>= 1) {
        if (holds(found | bit)) found |= bit;
    }
    return found;
}

MIMO_DEVICE void keep_top_k(Candidates& c, int64_t k) {
    if (k <= 0 || k >= c.count) return;
    c.least = unordered(bisect(0x80000000u, [&](uint32_t bits) {
        return over_all(c.count, 0, Sum{}, [&](int64_t i) { return ordered(c.score(i)) >= bits ? 1 : 0; }) >= k;
    }));
}

MIMO_DEVICE void keep_top_p(Candidates& c, float p, float best, float* mass) {
    if (!(p > 0 && p <= 1)) return;
    for (int64_t i = thread(); i < c.count; i += threads()) {
        const float s = c.filtered(i);
        mass[i] = static_cast<float>(exponential(static_cast<double>(s - best)));
    }
    c.mass = mass;
    if (p == 1) {
        c.least_mass = as_float(1);  // whatever is above 0
        return;
    }
    const auto above = [&](uint32_t bits) {  // the mass of all candidates above this
        return over_all(c.count, 0.0, Sum{},
                        [&](int64_t i) { return as_bits(mass[i]) > bits ? double{mass[i]} : 0.0; });
    };
    const double enough = p * over_all(c.count, 0.0, Sum{}, [&](int64_t i) { return double{mass[i]}; });
    // A candidate stays if those above it do not reach p yet. `found` is the greatest mass that does not stay.
    const uint32_t found = bisect(0x20000000u, [&](uint32_t bits) { return above(bits) >= enough; });
    const uint32_t least = above(0) >= enough ? found + 1 : 0;
    c.least_mass = as_float(least);
    // Of several with the least mass the last ones come first.
    const double before = above(least);
    const auto ties_from = [&](uint32_t first) {
        return over_all(c.count, 0, Sum{}, [&](int64_t i) { return as_bits(mass[i]) == least && i >= first ? 1 : 0; });
    };
    const int32_t ties = ties_from(0);
    int32_t kept = 0;
    while (kept < ties && (before + kept * double{c.least_mass} < enough)) ++kept;
    if (kept == 0) kept = 1;
    if (kept < ties) {
        c.first_of_least = static_cast<int32_t>(bisect(0x40000000u, [&](uint32_t i) { return ties_from(i) >= kept; }));
    }
}

// The first candidate with the highest value; 0 if all are -infinity.
template <typename Value>
MIMO_DEVICE int32_t best_of(int32_t count, float highest, Value value) {
    const int32_t first = over_all(count, count, Lowest{},
                                   [&](int64_t i) { return value(i) == highest ? static_cast<int32_t>(i) : count; });
    return first == count ? 0 : first;
}

// Draws in proportion to exp(score), in the order of the candidates.
MIMO_DEVICE int32_t draw_from(const Candidates& c, float best, const Draw& draw) {
    const auto weight = [&](int64_t i) {
        const float s = c.is_removed(i) ? -infinity() : c.filtered(i);
        return exponential(static_cast<double>(s - best));
    };
    const int64_t share = (c.count + threads() - 1) / threads();  // here a thread owns neighbours
    const int64_t begin = Lowest{}(int64_t{c.count}, thread() * share), end = Lowest{}(int64_t{c.count}, begin + share);
    double mine = 0;
    for (int64_t i = begin; i < end; ++i) mine += weight(i);
    auto* sums = reinterpret_cast<double*>(shared_memory() + kReservedBytes);  // [threads]
    sums[thread()] = mine;
    for (int offset = 1; offset < threads(); offset *= 2) {
        sync();
        const double left = thread() >= offset ? sums[thread() - offset] : 0.0;
        sync();
        sums[thread()] += left;
    }
    sync();
    const double wanted = draw.uniform() * sums[threads() - 1];
    double before = thread() > 0 ? sums[thread() - 1] : 0.0;
    int32_t found = c.count, last = -1;
    for (int64_t i = begin; i < end; ++i) {
        const double w = weight(i);
        if (w > 0) last = static_cast<int32_t>(i);
        before += w;
        if (before > wanted) {
            found = static_cast<int32_t>(i);
            break;
        }
    }
    found = reduce_block(found, Lowest{});
    last = reduce_block(last, Highest{});  // rounding may leave none
    return found < c.count ? found : last;
}

// All threads of the block get the index. trouble: bits are added to it.
MIMO_DEVICE_CALL int32_t sample_block(const float* logits, int32_t count, const Sampling& sampling,
                                      const int32_t* removed, int32_t removed_count, const Draw& draw, float* mass,
                                      int32_t* trouble) {
    Candidates c = {.logits = logits,
                    .count = count,
                    .temperature = sampling.temperature,
                    .least = -infinity(),
                    .mass = nullptr,
                    .least_mass = 0,
                    .first_of_least = 0,
                    .removed = removed,
                    .removed_count = removed_count};
    const int32_t broken = over_all(count, 0, Highest{}, [&](int64_t i) { return c.score(i) < infinity() ? 0 : 1; });
    if (broken != 0) {
        if (thread() == 0) add_bits(trouble, kBroken);
        return 0;
    }
    const float best = over_all(count, -infinity(), Highest{}, [&](int64_t i) { return c.score(i); });
    keep_top_k(c, sampling.top_k);
    keep_top_p(c, sampling.top_p, best, mass);
    if (c.mass != nullptr) sync();  // from here on others' masses are read
    const auto value = [&](int64_t i) { return c.is_removed(i) ? -infinity() : c.filtered(i); };
    const float highest = over_all(count, -infinity(), Highest{}, value);
    if (!sampling.sample) return highest == -infinity() ? 0 : best_of(count, highest, value);
    if (highest != -infinity()) return draw_from(c, highest, draw);
    const auto other = [&](int64_t i) { return c.is_removed(i) ? -infinity() : logits[i]; };
    const float rest = over_all(count, -infinity(), Highest{}, other);
    if (rest == -infinity() && thread() == 0) add_bits(trouble, kNoCandidate);
    return best_of(count, rest, other);
}

MIMO_DEVICE void run_sample(const SampleJob& job, const Program& program, const Call& call) {
    const Request& request = *program.request;
    Draw draw = {.seed = request.seed, .stream = request.stream, .position = request.position};
    if (job.text) {
        if (block() != 0) return;
        const int32_t token = sample_block(job.logits, job.vocabulary, request.text, request.removed,
                                           request.removed_count, draw, job.mass, &program.answer->trouble);
        if (thread() == 0) program.answer->token = token;
        return;
    }
    const Levels& l = job.levels;
    for (int level = block(); level < l.levels; level += blocks()) {
        if (!is_made(l, level, call.step)) continue;
        const int at = level * l.group + call.step - l.delay[level];
        draw.step = static_cast<uint32_t>(call.step);
        draw.level = static_cast<uint32_t>(level + 1);
        const int32_t code = sample_block(job.logits + l.first[level], l.count[level], request.speech, l.empty + level,
                                          1, draw, job.mass + l.first[level], &program.answer->trouble);
        if (thread() == 0) program.codes[at] = code;
    }
}

}  // namespace mimo::gpu
