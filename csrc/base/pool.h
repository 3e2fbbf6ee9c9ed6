// Worker threads for one model. Work is cut by index, never by timing, so results do not depend on the thread count.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mimo {

class Pool {
public:
    explicit Pool(int threads);  // threads >= 1, the caller's own included
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(begin, end) on parts of [0, count) that together cover it once; returns when all are done.
    // Parts begin at multiples of `grain`. A second conversation that finds the pool busy computes on its own thread.
    void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) const;

private:
    void work(int index);
    void run_part(int index) const;

    std::vector<std::thread> workers_;
    mutable std::mutex busy_;
    mutable std::atomic<uint32_t> epoch_{0};  // counts the calls of run
    mutable std::atomic<int> pending_{0};     // workers still at work on this epoch
    mutable const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    mutable int64_t count_ = 0;
    mutable int64_t grain_ = 1;
    std::atomic<bool> stop_{false};
};

}  // namespace mimo
