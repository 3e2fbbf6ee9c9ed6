// Worker threads for one model. Work is cut by index, never by timing, so results do not depend on the thread count.
//
// A worker that has nothing to do watches for work for some microseconds, the pause between two steps of a layer, and
// then sleeps: a model at rest costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mimo {

class Pool {
public:
    explicit Pool(int threads);  // threads >= 1, the caller's own included; throws DeviceError if there are not so many
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(begin, end) on parts of [0, count) that together cover it once; returns when all are done.
    // Parts begin at multiples of `grain`. A second conversation that finds the pool busy computes on its own thread.
    // What a part throws, the first of them, is thrown here, when all are done.
    void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) const;

private:
    void work() const;
    bool take_part() const;  // false if there is none left
    void stop();

    std::vector<std::thread> workers_;
    mutable std::mutex busy_;
    mutable std::atomic<uint32_t> epoch_{0};   // counts the calls of run; sleepers wait for it to change
    mutable std::atomic<int64_t> untaken_{0};  // grains of this run that nobody has taken; all below is fixed while > 0
    mutable std::atomic<int64_t> unfinished_{0};
    mutable const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    mutable int64_t count_ = 0, grain_ = 1, grains_ = 0;
    mutable std::mutex failing_;
    mutable std::exception_ptr failure_;  // the first of this run
    std::atomic<bool> stop_{false};
};

}  // namespace mimo
