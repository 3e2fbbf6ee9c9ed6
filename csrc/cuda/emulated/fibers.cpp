#include "cuda/emulated/fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"

namespace mimo::gpu::fibers {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = size_t{256} << 10;

// Where fibers meet: the generation grows when all have come.
struct Meeting {
    int expected = 0, arrived = 0;
    uint64_t generation = 0;
};

struct Warp {
    Meeting meeting;
    uint64_t values[2][kWarp];  // the next exchange may begin while the last is being read
};

struct State : Fiber {
    ucontext_t context;
    Meeting* block_meeting;
    Warp* warp;
    const Meeting* waits_at = nullptr;  // in which generation it came there
    uint64_t came_in = 0;
    bool done = false;

    bool can_run() const { return waits_at == nullptr || waits_at->generation != came_in; }
};

struct Launch {
    std::vector<State> fibers;
    ucontext_t scheduler;
    State* running = nullptr;
    const std::function<void()>* body = nullptr;
    uint64_t progress = 0;
};

thread_local Launch* launched = nullptr;
thread_local std::vector<std::unique_ptr<char[]>> stacks;  // kept from launch to launch

void enter() {
    Launch& launch = *launched;
    (*launch.body)();
    launch.running->done = true;
    ++launch.progress;
    swapcontext(&launch.running->context, &launch.scheduler);
}

void give_stack(State& fiber, char* stack, ucontext_t& then) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &then;
    makecontext(&fiber.context, enter, 0);
}

void meet(Meeting& meeting) {
    const uint64_t mine = meeting.generation;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.generation;
        note_progress();
        return;
    }
    State& fiber = *launched->running;
    fiber.waits_at = &meeting;
    fiber.came_in = mine;
    yield();  // until all have come
    fiber.waits_at = nullptr;
}

}  // namespace

const Fiber& self() {
    return *launched->running;
}

void note_progress() {
    ++launched->progress;
}

void yield() {
    swapcontext(&launched->running->context, &launched->scheduler);
}

void sync_block() {
    meet(*launched->running->block_meeting);
}

uint64_t exchange(uint64_t value, int mask) {
    Warp& warp = *launched->running->warp;
    const int lane = launched->running->thread % kWarp;
    uint64_t* values = warp.values[warp.meeting.generation % 2];
    values[lane] = value;
    meet(warp.meeting);
    return values[lane ^ mask];
}

void launch(int blocks, int threads, size_t shared_bytes, uint32_t order, const std::function<void()>& body) {
    if (threads % kWarp != 0 || threads < kWarp || blocks < 1) {
        throw DeviceError(message("launch: expected at least one block of whole warps, got ", blocks, " x ", threads));
    }
    Launch launch;
    launch.body = &body;
    launch.fibers = std::vector<State>(static_cast<size_t>(blocks * threads));
    std::vector<Meeting> meetings(static_cast<size_t>(blocks), Meeting{.expected = threads});
    std::vector<Warp> warps(static_cast<size_t>(blocks * threads / kWarp));
    for (Warp& warp : warps) warp.meeting.expected = kWarp;
    struct alignas(16) Bytes {
        char bytes[16];
    };
    const size_t shared_units = shared_bytes / sizeof(Bytes) + 1;
    std::vector<Bytes> shared(shared_units * static_cast<size_t>(blocks));
    std::fill_n(reinterpret_cast<char*>(shared.data()), shared.size() * sizeof(Bytes), static_cast<char>(0xFF));
    while (stacks.size() < launch.fibers.size()) stacks.push_back(std::make_unique_for_overwrite<char[]>(kStackBytes));
    Launch* const outer = launched;
    launched = &launch;
    for (int i = 0; i < blocks * threads; ++i) {
        State& fiber = launch.fibers[static_cast<size_t>(i)];
        fiber.thread = i % threads;
        fiber.threads = threads;
        fiber.block = i / threads;
        fiber.blocks = blocks;
        fiber.shared = shared[shared_units * static_cast<size_t>(fiber.block)].bytes;
        fiber.block_meeting = &meetings[static_cast<size_t>(fiber.block)];
        fiber.warp = &warps[static_cast<size_t>(i / kWarp)];
        give_stack(fiber, stacks[static_cast<size_t>(i)].get(), launch.scheduler);
    }
    std::vector<State*> turn;
    for (State& fiber : launch.fibers) turn.push_back(&fiber);
    std::mt19937 random(order);
    while (!turn.empty()) {
        if (order != 0) std::shuffle(turn.begin(), turn.end(), random);
        const uint64_t before = launch.progress;
        for (State* fiber : turn) {
            if (!fiber->can_run()) continue;
            launch.running = fiber;
            swapcontext(&launch.scheduler, &fiber->context);
        }
        std::erase_if(turn, [](const State* fiber) { return fiber->done; });
        if (launch.progress == before) {
            launched = outer;
            throw DeviceError(message("launch: expected all threads to reach their barriers, got ", turn.size(),
                                      " that wait for ever"));
        }
    }
    launched = outer;
}

}  // namespace mimo::gpu::fibers
