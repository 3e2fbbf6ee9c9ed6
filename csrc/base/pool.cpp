#include "base/pool.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace mimo {
namespace {

// The work left is thought cut into so many parts a thread, and one of them taken: long ones first, which memory
// streams, and short ones last, so that a thread that falls behind keeps nobody waiting.
constexpr int64_t kPartsPerThread = 2;
constexpr int kLooks = 200;    // in a row, some 100 nanoseconds, before the processor is offered to others
constexpr int kWatches = 300;  // such offers before sleeping: together some 100 microseconds

// True as soon as `done` is; false after some time.
template <typename Done>
bool watch(Done done) {
    for (int i = 0; i < kWatches; ++i) {
        for (int look = 0; look < kLooks; ++look) {
            if (done()) return true;
        }
        std::this_thread::yield();
    }
    return done();
}

}  // namespace

Pool::Pool(int threads) {
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {
        const size_t made = workers_.size();
        stop();
        throw DeviceError(
            message("threads: expected ", threads, ", got ", made + 1, " (", error.what(), "); ask for fewer"));
    }
}

void Pool::stop() {
    stop_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) const {
    std::unique_lock lock(busy_, std::defer_lock);
    if (count <= grain || workers_.empty() || !lock.try_lock()) {
        if (count > 0) body(0, count);
        return;
    }
    body_ = &body;
    count_ = count;
    grain_ = grain;
    grains_ = (count + grain - 1) / grain;
    unfinished_.store(grains_);
    untaken_.store(grains_);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    while (take_part()) {
    }
    watch([this] { return unfinished_.load() == 0; });
    for (int64_t left = unfinished_.load(); left != 0; left = unfinished_.load()) unfinished_.wait(left);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool Pool::take_part() const {
    int64_t left = untaken_.load(), taken = 0;
    do {
        if (left == 0) return false;
        taken = std::max<int64_t>(1, left / (kPartsPerThread * threads()));
    } while (!untaken_.compare_exchange_weak(left, left - taken));
    const int64_t begin = (grains_ - left) * grain_, end = std::min(count_, begin + taken * grain_);
    try {
        (*body_)(begin, end);
    } catch (...) {
        const std::lock_guard lock(failing_);
        if (!failure_) failure_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(taken) == taken) unfinished_.notify_one();
    return true;
}

void Pool::work() const {
    while (true) {
        const uint32_t seen = epoch_.load();
        if (stop_) return;
        while (take_part()) {
        }
        if (!watch([&] { return epoch_.load() != seen; })) epoch_.wait(seen);
    }
}

}  // namespace mimo
