// Runs a list of jobs: the body of the one kernel.
//
//   job           kernel        twin on the CPU                             test (tests/gpu)
//   Op::linear    linear.h      kernels/packed.h, ops.h linear + finish      device_linear_*, device_gate_*
//   Op::attention attention.h   ops.h attention                              device_attention_*, device_codec_*
//   Op::text      embed.h       ops.h add_row                                device_model_*
//   Op::codes     embed.h       lm/patch.h SpeechEmbeddings                  device_model_*
//   Op::sample    sample.h      lm/sampler.h                                 device_sampler_*
//   (apart)       rvq.h         codec/rvq.h                                  device_rvq_*
//   lists         sequence.cpp  engine/native.cpp                            device_model_*, device_conversations_*
//                 codec_layers  codec/layers.cpp                             device_codec_*
#pragma once

#include "cuda/attention.h"
#include "cuda/embed.h"
#include "cuda/sample.h"

namespace mimo::gpu {

// wait: for the inputs of this job.
template <typename Wait>
MIMO_DEVICE void run_job(const Program& program, int32_t index, int32_t row, Wait wait) {
    const bool once = index < program.before;
    const Call call = {.job = index, .step = once ? 0 : (index - program.before) / program.each, .row = row};
    const Job& job = program.jobs[once ? index : program.before + (index - program.before) % program.each];
    if (job.op == Op::linear) {
        run_linear(job.linear, program, call, wait);
        if (job.linear.unit_tiles > 0) run_attention(job.attention, program, call);
        return;
    }
    wait();
    switch (job.op) {
        case Op::linear:
            return;
        case Op::attention:
            return run_attention(job.attention, program, call);
        case Op::text:
            return run_text(job.text, program);
        case Op::codes:
            return run_codes(job.codes, program, call);
        case Op::sample:
            return run_sample(job.sample, program, call);
    }
}

struct GridWait {
    uint32_t* arrived;
    uint32_t count;

    MIMO_DEVICE void operator()() const {
        if (thread() == 0) wait_for(arrived, count);
        sync();
    }
};

// Jobs [first, last) in one launch. If they are several, every block must be resident: the host launches cooperatively.
MIMO_DEVICE void run_program(const Program& program, int32_t row, int32_t first, int32_t last) {
    for (int32_t index = first; index < last; ++index) {
        run_job(program, index, row, GridWait{program.arrived, static_cast<uint32_t>((index - first) * blocks())});
        if (index + 1 == last) return;
        sync();
        if (thread() == 0) arrive(program.arrived);
    }
}

}  // namespace mimo::gpu
