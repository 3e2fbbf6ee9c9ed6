#include "cuda/sequence.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mimo::gpu {

CudaSequence::CudaSequence(const Config& config, std::shared_ptr<const LmWeights> weights, const Device& device,
                           int64_t capacity)
    : config_(config),
      weights_(std::move(weights)),
      width_(config.lm.group_size * config.lm.audio_channels),
      device_(device),
      request_(static_cast<int64_t>(sizeof(Request)) + kMaxRows * width_ * 4),
      reply_(std::max({static_cast<int64_t>(sizeof(Answer)) + width_ * 4, config.lm.vocab_size * 4,
                       kMaxRows * config.lm.hidden_size * 4, weights_->heads.rows * int64_t{4}})) {
    if (config.lm.group_size > kMaxRows)
        throw DeviceError(
            message("cuda: expected patches of at most ", kMaxRows, " code frames, got ", config.lm.group_size));
    *request_.as<Request>() = {};
    lay_out(capacity);
    arena_.allocate();
    lay_out(capacity);
    grid_ = grid_of(device, shared_bytes_);
}

// Runs twice: to count, then to hand out memory and write the jobs.
void CudaSequence::lay_out(int64_t capacity) {
    const LmConfig& lm = config_.lm;
    const LmWeights& w = *weights_;
    asked_ = arena_.take<char>(static_cast<int64_t>(sizeof(Request)) + kMaxRows * width_ * 4);
    answer_ = reinterpret_cast<Answer*>(arena_.take<char>(static_cast<int64_t>(sizeof(Answer)) + width_ * 4));
    codes_ = reinterpret_cast<int32_t*>(answer_ + 1);
    arrived_ = arena_.take<uint32_t>(1);
    logits_ = arena_.take<float>(lm.vocab_size);
    scores_ = arena_.take<float>(w.heads.rows);
    auto* mass = arena_.take<float>(std::max<int64_t>(lm.vocab_size, w.heads.rows));
    auto* sum = arena_.take<float>(lm.input_local_dim);
    backbone_ = StackBuffers(arena_, w.backbone, kMaxRows, capacity);
    const StackBuffers &backbone = backbone_, encoder(arena_, w.encoder, lm.group_size, lm.group_size),
                       decoder(arena_, w.decoder, 1, lm.local_steps());
    x_ = backbone.x;
    local_ = decoder.x;

    std::vector<Job> jobs;
    Job job = {};
    job.op = Op::codes;
    job.codes = {.levels = w.levels, .out = encoder.x, .cols = static_cast<int32_t>(lm.input_local_dim), .made = 0};
    jobs.push_back(job);
    add_stack(jobs, w.encoder, encoder, static_cast<int32_t>(lm.group_size), Clock::zero, !lm.input_full_attention);
    job = with_norm(linear_job(w.encoder_down, encoder.x, 0, x_, lm.hidden_size, Finish::store, 1), w.encoder.norm,
                    lm.input_local_dim, w.encoder.eps);
    job.linear.out_call = lm.hidden_size;
    jobs.push_back(job);
    encode_ = put(jobs, static_cast<int32_t>(jobs.size()), 0);

    jobs.clear();
    job = {};
    job.op = Op::text;
    job.text = {.table = w.text, .x = x_, .empty_token = config_.tokens.empty};
    jobs.push_back(job);
    add_stack(jobs, w.backbone, backbone, 0, Clock::request, true);
    append_ = put(jobs, static_cast<int32_t>(jobs.size()), 0);

    const auto after_backbone = [&](const SlabMatrix& matrix, float* out) {
        Job last = with_norm(linear_job(matrix, x_, lm.hidden_size, out, 0, Finish::store, 1), w.backbone.norm,
                             lm.hidden_size, w.backbone.eps);
        last.linear.last = 1;
        return last;
    };
    jobs = {after_backbone(w.text_head, logits_)};
    head_ = put(jobs, 1, 0);
    job = {};
    job.op = Op::sample;
    job.sample = {
        .levels = {}, .text = 1, .vocabulary = static_cast<int32_t>(lm.vocab_size), .logits = logits_, .mass = mass};
    jobs.push_back(job);
    token_ = put(jobs, 2, 0);

    jobs = {after_backbone(w.enter, local_)};
    enter_ = put(jobs, 1, 0);
    add_stack(jobs, w.decoder, decoder, 1, Clock::step, true);
    job = with_norm(linear_job(w.heads, local_, 0, scores_, 0, Finish::store, 1), w.decoder.norm, lm.local_dim,
                    w.decoder.eps);
    job.linear.levels = w.levels;
    jobs.push_back(job);
    scores_ready_ = static_cast<int32_t>(jobs.size()) - 1;
    job = {};
    job.op = Op::sample;
    job.sample = {.levels = w.levels, .text = 0, .vocabulary = 0, .logits = scores_, .mass = mass};
    jobs.push_back(job);
    job = {};
    job.op = Op::codes;
    job.codes = {
        .levels = w.levels, .out = w.widen ? sum : local_, .cols = static_cast<int32_t>(lm.input_local_dim), .made = 1};
    jobs.push_back(job);
    if (w.widen) jobs.push_back(linear_job(w.to_local, sum, 0, local_, 0, Finish::store, 1));
    patch_ = put(jobs, 1, static_cast<int32_t>(lm.local_steps()));
}

Program CudaSequence::put(std::vector<Job>& jobs, int32_t before, int32_t steps) {
    for (Job& job : jobs) shared_bytes_ = std::max(shared_bytes_, fit(job, kMaxRows, device_));
    auto* to = arena_.take<Job>(std::ssize(jobs));
    if (!arena_.counting()) {
        stream_.copy_in(to, jobs.data(), std::ssize(jobs) * static_cast<int64_t>(sizeof(Job)));
        stream_.wait();
    }
    const auto* request = reinterpret_cast<const Request*>(asked_);
    return {.jobs = to,
            .before = before,
            .each = static_cast<int32_t>(jobs.size()) - before,
            .steps = steps,
            .request = request,
            .patches = reinterpret_cast<const int32_t*>(request + 1),
            .answer = answer_,
            .codes = codes_,
            .arrived = arrived_};
}

void CudaSequence::send() {
    stream_.copy_in(asked_, request_.as<char>(), static_cast<int64_t>(sizeof(Request)) + kMaxRows * width_ * 4);
}

Array CudaSequence::append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                           const Tap& tap) {
    const auto count = std::ssize(tokens);
    Array all(tap ? count : 0, config_.lm.hidden_size);
    int64_t n = (count - 1) % kMaxRows + 1;  // the last launch is a full one, for `look`
    for (int64_t begin = 0; begin < count; begin += n, n = kMaxRows) {
        read_rows(first + begin, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)),
                  codes.subspan(static_cast<size_t>(begin * width_), static_cast<size_t>(n * width_)));
        if (tap) {
            const Array part = hidden_of(0, static_cast<int32_t>(n));
            std::copy(part.data.begin(), part.data.end(), all.row(begin));
        } else if (begin + n < count) {
            stream_.wait();  // the request's memory is written again
        }
    }
    tap("backbone.hidden", all);
    read_ = request_.as<Request>()->rows;
    return hidden_of(read_ - 1, 1);
}

Array CudaSequence::look(int64_t back) {
    auto& request = *request_.as<Request>();
    request.rows = read_ - static_cast<int32_t>(back);
    send();
    return hidden_of(request.rows - 1, 1);
}

void CudaSequence::read_rows(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes) {
    auto& request = *request_.as<Request>();
    request.rows = static_cast<int32_t>(tokens.size());
    request.length = static_cast<int32_t>(first);
    std::copy(tokens.begin(), tokens.end(), request.tokens);
    std::copy(codes.begin(), codes.end(), reinterpret_cast<int32_t*>(&request + 1));
    const auto work = [&] {
        send();
        for (size_t row = 0; row < tokens.size(); ++row) {
            if (tokens[row] == config_.tokens.empty) stream_.run(encode_, static_cast<int32_t>(row), grid_);
        }
        stream_.run(append_, 0, grid_);
    };
    // The step of a reply: two graphs, one for a patch and one for a token.
    if (tokens.size() == 1) return stream_.replay(tokens[0] == config_.tokens.empty ? 1 : 0, work);
    work();
}

// After the final norm, which the device computes for itself where it needs it.
Array CudaSequence::hidden_of(int32_t row, int32_t rows) {
    const int64_t cols = config_.lm.hidden_size;
    stream_.copy_out(reply_.as<float>(), x_ + row * cols, rows * cols * 4);
    stream_.wait();
    Array hidden(rows, cols);
    for (int64_t i = 0; i < rows; ++i) {
        plain_kernels().rms_norm(reply_.as<float>() + i * cols, weights_->backbone_norm, weights_->backbone.eps,
                                 hidden.row(i));
    }
    return hidden;
}

std::vector<float> CudaSequence::text_logits() {
    stream_.run(head_, 0, grid_);
    stream_.copy_out(reply_.as<float>(), logits_, config_.lm.vocab_size * 4);
    stream_.wait();
    return {reply_.as<float>(), reply_.as<float>() + config_.lm.vocab_size};
}

Array CudaSequence::local_hidden() {
    Array local(1, config_.lm.local_dim);
    stream_.run(enter_, 0, grid_);
    stream_.copy_out(local.data.data(), local_, local.cols * 4);
    stream_.wait();
    return local;
}

std::vector<std::vector<float>> CudaSequence::local_step(int64_t step, std::span<const int32_t> made, const Tap&) {
    const LmConfig& lm = config_.lm;
    const Program& p = patch_;
    const auto at = static_cast<int32_t>(step);
    std::vector<int32_t> codes(static_cast<size_t>(width_));  // read until the wait below
    int32_t first = 0;

    if (step > 0) {  // from the embedding of what was made on
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            const int32_t code = made[static_cast<size_t>(level)];
            const int64_t frame = step - 1 - lm.delay_pattern[static_cast<size_t>(level)];
            if (code >= 0) codes[static_cast<size_t>(level * lm.group_size + frame)] = code;
        }
        stream_.copy_in(codes_, codes.data(), width_ * 4);
        first = p.before + (at - 1) * p.each + scores_ready_ + 1;
    }
    stream_.run(p, 0, grid_, first, p.before + at * p.each + scores_ready_);
    stream_.copy_out(reply_.as<float>(), scores_, weights_->heads.rows * int64_t{4});
    stream_.wait();
    std::vector<std::vector<float>> scores;
    for (size_t level = 0; level < weights_->first_of_level.size(); ++level) {
        const float* from = reply_.as<float>() + weights_->first_of_level[level];
        scores.emplace_back(from, from + lm.speech_vocab_size[level]);
    }
    return scores;
}

// Calls visit(device memory, floats) for all that a conversation of `length` positions is: the last hidden state, then
// the keys and values of each layer and head.
template <typename Visit>
void CudaSequence::visit_saved(int64_t length, Visit visit) const {
    const Heads& h = weights_->backbone.heads;
    const int64_t floats = (length + kKeyLanes - 1) / kKeyLanes * kKeyLanes * h.head_dim;
    visit(x_ + (request_.as<Request>()->rows - 1) * config_.lm.hidden_size, config_.lm.hidden_size);
    for (const Cache& cache : backbone_.caches) {
        for (int64_t head = 0; head < h.kv_heads; ++head) {
            visit(cache.keys + head * cache.capacity * h.head_dim, floats);
            visit(cache.values + head * cache.capacity * h.head_dim, floats);
        }
    }
}

std::vector<float> CudaSequence::save() const {
    const Request& request = *request_.as<Request>();
    std::vector<float> saved;
    if (request.rows == 0) return saved;
    visit_saved(request.length + request.rows,
                [&](const float*, int64_t n) { saved.resize(saved.size() + static_cast<size_t>(n)); });
    float* to = saved.data();
    visit_saved(request.length + request.rows, [&](const float* from, int64_t n) {
        stream_.copy_out(to, from, n * 4);
        to += n;
    });
    stream_.wait();
    return saved;
}

void CudaSequence::load(std::span<const float> saved, int64_t length) {
    auto& request = *request_.as<Request>();
    request.rows = length > 0 ? 1 : 0;
    request.length = static_cast<int32_t>(length - request.rows);
    int64_t expected = 0;
    if (length > 0) visit_saved(length, [&](const float*, int64_t n) { expected += n; });
    expect_made("saved floats", {expected}, {std::ssize(saved)});
    if (length == 0) return;
    const float* from = saved.data();
    visit_saved(length, [&](float* to, int64_t n) {
        stream_.copy_in(to, from, n * 4);
        from += n;
    });
    send();
    stream_.wait();
}

std::optional<int32_t> CudaSequence::sample_token(const Sampling& sampling, std::span<const int32_t> removed,
                                                  const Draw& draw) {
    if (std::ssize(removed) > kMaxRemoved || !(sampling.temperature > 0)) return {};  // the core does, or says why not
    auto& request = *request_.as<Request>();
    request.text = sampling;
    request.seed = draw.seed;
    request.stream = draw.stream;
    request.position = draw.position;
    request.removed_count = static_cast<int32_t>(removed.size());
    std::copy(removed.begin(), removed.end(), request.removed);
    stream_.replay(2, [&] {
        send();
        stream_.run(token_, 0, grid_);
        stream_.copy_out(reply_.as<char>(), answer_, static_cast<int64_t>(sizeof(Answer)));
    });
    check_answer();
    return reply_.as<Answer>()->token;
}

std::optional<Codes> CudaSequence::decode_patch(const Sampling& sampling, const Draw& draw) {
    if (!(sampling.temperature > 0)) return {};
    auto& request = *request_.as<Request>();
    request.speech = sampling;
    request.seed = draw.seed;
    request.stream = draw.stream;
    request.position = draw.position;
    stream_.replay(3, [&] {
        send();
        stream_.run(patch_, 0, grid_);
        stream_.copy_out(reply_.as<char>(), answer_, static_cast<int64_t>(sizeof(Answer)) + width_ * 4);
    });
    check_answer();
    Codes codes(config_.lm.audio_channels, config_.lm.group_size);
    std::copy_n(reinterpret_cast<const int32_t*>(reply_.as<Answer>() + 1), width_, codes.data.begin());
    return codes;
}

void CudaSequence::check_answer() {
    stream_.wait();
    const int32_t trouble = reply_.as<Answer>()->trouble;
    if (trouble == 0) return;
    const Answer none = {};
    stream_.copy_in(answer_, &none, static_cast<int64_t>(sizeof(none)));
    stream_.wait();
    if (trouble & kBroken) throw InputError(kBrokenScores);
    throw InputError("sample: expected at least one candidate, got none after removal");
}

CudaSequence::Times CudaSequence::time(int64_t length, int repeats) {
    const auto each = [&](const auto& work) {
        work();  // recorded, loaded, warm
        return stream_.time([&] {
            for (int i = 0; i < repeats; ++i) work();
        }) / static_cast<float>(repeats);
    };
    const std::vector<int32_t> token = {config_.tokens.empty}, codes(static_cast<size_t>(width_));
    const Sampling sampling = {.sample = true, .temperature = 0.9f, .top_p = 0.95f};
    request_.as<Request>()->text = request_.as<Request>()->speech = sampling;
    return {.append = each([&] { read_rows(length, token, codes); }),
            .token = each([&] { stream_.run(token_, 0, grid_); }),
            .patch = each([&] { stream_.run(patch_, 0, grid_); })};
}

CudaBackend::CudaBackend(const Config& config, const Weights& weights, const Pool& pool,
                         std::shared_ptr<const Backend> rest, int device)
    : config_(config),
      index_(device),
      device_(use_device(device)),
      weights_(std::make_shared<LmWeights>(config, Tensors(weights), pool)),
      layers_(device, pool),
      rest_(std::move(rest)) {}

std::shared_ptr<Sequence> CudaBackend::sequence(int64_t capacity) const {
    use_device(index_);
    return std::make_shared<CudaSequence>(config_, weights_, device_, capacity);
}

Array CudaBackend::encode(const Array& mel, int64_t longest, const Tap& tap) const {
    return rest_->encode(mel, longest, tap);
}

std::vector<float> CudaBackend::decode(const Codes& codes, const Tap& tap) const {
    return rest_->decode(codes, tap);
}

}  // namespace mimo::gpu
