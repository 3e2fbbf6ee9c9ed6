#include "base/pool.h"

#include <algorithm>

namespace mimo {

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
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
    pending_.store(static_cast<int>(workers_.size()));
    epoch_.fetch_add(1);
    epoch_.notify_all();
    run_part(0);
    for (int left = pending_.load(); left != 0; left = pending_.load()) pending_.wait(left);
}

void Pool::run_part(int index) const {
    const int64_t grains = (count_ + grain_ - 1) / grain_;
    const int64_t begin = grains * index / threads() * grain_;
    const int64_t end = std::min(count_, grains * (index + 1) / threads() * grain_);
    if (begin < end) (*body_)(begin, end);
}

void Pool::work(int index) {
    uint32_t seen = 0;
    while (true) {
        epoch_.wait(seen);
        seen = epoch_.load();
        if (stop_) return;
        run_part(index);
        if (pending_.fetch_sub(1) == 1) pending_.notify_one();
    }
}

}  // namespace mimo
