// From a recording to a spoken reply on the bundle that ships in the package, for the sanitizers to watch.
#include <cmath>
#include <limits>
#include <thread>

#include "check.h"
#include "codec/decoder_stream.h"
#include "engine/generation.h"
#include "engine/listener.h"
#include "engine/reply.h"

using namespace mimo;

namespace {

std::shared_ptr<const Model> open_model(int threads) {
    return Model::open(MIMO_SOURCE_DIR "/runtime/mimo_edge/demo/bundle", {.threads = threads, .check = true});
}

std::vector<float> tone(int64_t samples) {
    std::vector<float> wav;
    for (int64_t i = 0; i < samples; ++i)
        wav.push_back(0.3f * static_cast<float>(std::sin(0.05 * static_cast<double>(i))));
    return wav;
}

// Answers a recording: a reply of at most 30 positions, then whatever it says.
Positions answer(const std::shared_ptr<const Model>& model, std::span<const float> wav, uint32_t stream) {
    const Positions prompt = model->prompts.dialogue({{.user = true, .text = {}, .audio = model->encode(wav)}}, nullptr,
                                                     nullptr, true, false);
    GenerationOptions options = {.task = task_of("spoken_dialogue", model->config.tokens), .max_new = 30};
    Generation generation(std::make_shared<State>(model, 7, stream, 0), prompt, options);
    while (generation.next()) {
    }
    CHECK(generation.ending() != Ending::none);
    return generation.positions();
}

// A backend that notes how many positions its conversations read at once.
class Watched final : public Backend {
public:
    explicit Watched(const Backend& inner) : inner_(inner) {}

    std::shared_ptr<Sequence> sequence(int64_t capacity) const override {
        return std::make_shared<WatchedSequence>(inner_.sequence(capacity), reads);
    }
    Array encode(const Array& mel, int64_t longest, const Tap& tap) const override {
        return inner_.encode(mel, longest, tap);
    }
    std::vector<float> decode(const Codes& codes, const Tap& tap) const override { return inner_.decode(codes, tap); }

    mutable std::vector<int64_t> reads;

private:
    class WatchedSequence final : public Sequence {
    public:
        WatchedSequence(std::shared_ptr<Sequence> inner, std::vector<int64_t>& reads)
            : inner_(std::move(inner)), reads_(reads) {}
        Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                     const Tap& tap) override {
            reads_.push_back(std::ssize(tokens));
            return inner_->append(first, tokens, codes, tap);
        }
        int64_t most_ahead() const override { return inner_->most_ahead(); }
        Array look(int64_t back) override { return inner_->look(back); }
        std::vector<float> text_logits() override { return inner_->text_logits(); }
        Array local_hidden() override { return inner_->local_hidden(); }
        std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made,
                                                   const Tap& tap) override {
            return inner_->local_step(step, made, tap);
        }

    private:
        std::shared_ptr<Sequence> inner_;
        std::vector<int64_t>& reads_;
    };

    const Backend& inner_;
};

}  // namespace

TEST(what_is_foreseen_is_read_at_once_and_changes_nothing) {
    const auto inner = open_model(2);
    const auto watched = std::make_shared<Watched>(inner->backend());
    const auto model = Model::open(MIMO_SOURCE_DIR "/runtime/mimo_edge/demo/bundle", {.backend = watched});
    const char* text = "Turn on the seat heating.";
    const Positions prompt = model->prompts.tts(text, "Please convert this text to speech", nullptr, nullptr, false);
    const auto read_aloud = [&](std::vector<int32_t> script) {
        GenerationOptions options = {.task = task_of("tts", model->config.tokens), .max_new = 60, .script = script};
        Generation generation(std::make_shared<State>(model, 3), prompt, options);
        watched->reads.clear();
        while (generation.next()) {
        }
        return generation.positions();
    };
    const Positions plain = read_aloud({});
    const size_t straight = watched->reads.size();
    CHECK_EQ(static_cast<int64_t>(straight), plain.count());
    std::vector<int32_t> words = model->tokenizer.encode(text);
    CHECK(std::ssize(words) > kStreamTokens);
    CHECK(std::equal(words.begin(), words.begin() + kStreamTokens, plain.tokens.begin()));  // what this test stands on
    const Positions foreseen = read_aloud(words);
    CHECK(foreseen.tokens == plain.tokens && foreseen.codes == plain.codes);
    CHECK_EQ(watched->reads[0], prompt.count() + kStreamTokens);
    CHECK_EQ(watched->reads.size() + words.size() + 1, straight);  // <|eot|> too
    std::rotate(words.begin(), words.begin() + 1, words.end());
    words.front() = model->config.tokens.empty;  // which is no text
    const Positions mistaken = read_aloud(words);
    CHECK(mistaken.tokens == plain.tokens && mistaken.codes == plain.codes);
    CHECK_THROWS(read_aloud({-1}), InputError, "tokens of a script");
}

TEST(a_guess_that_came_true_is_the_position_itself) {
    const auto model = open_model(2);
    const Positions prompt = model->prompts.text("Turn on the light."), more = model->prompts.text(" Now, please!");
    const auto one = [&](size_t i) {
        Positions position;
        append(position, more.tokens[i], nullptr, model->config.lm);
        return position;
    };
    State straight(model, 1), ahead(model, 1);
    straight.prefill(prompt);
    ahead.prefill(prompt, {}, more.tokens);
    const auto check_same = [&] {
        CHECK(ahead.hidden().data == straight.hidden().data);
        State restored(model, 1);
        restored.restore(ahead.save(""));
        CHECK(restored.hidden().data == straight.hidden().data);
        restored.prefill(more);
        State further(model, 1);
        further.prefill(straight.positions());
        further.prefill(more);
        CHECK(restored.hidden().data == further.hidden().data);
        CHECK(ahead.text_logits() == straight.text_logits());
        CHECK(ahead.local_hidden().data == straight.local_hidden().data);
        CHECK(ahead.decode_patch({}).data == straight.decode_patch({}).data);
    };
    check_same();
    for (size_t i : {0, 1}) {
        straight.prefill(one(i));
        ahead.prefill(one(i));
        check_same();
    }
    straight.prefill(one(0));  // not what was foreseen
    ahead.prefill(one(0), {}, more.tokens);
    check_same();
    for (State* state : {&straight, &ahead}) {
        state->rewind(prompt.count());
        state->prefill(one(0));
    }
    check_same();
    const std::vector<int32_t> unknown = {static_cast<int32_t>(model->config.lm.vocab_size)};
    CHECK_THROWS(ahead.prefill(one(1), {}, unknown), InputError, "token");
    check_same();                                 // nothing has changed
    State full(model, 1, 0, prompt.count() + 1);  // no room for guesses
    full.prefill(prompt, {}, more.tokens);
    full.prefill(one(0));
    CHECK(full.hidden().data == straight.hidden().data);
}

TEST(a_recording_becomes_a_reply) {
    const auto model = open_model(2);
    const Positions reply = answer(model, tone(20000), 0);
    CHECK(reply.count() >= 1 && reply.count() <= 30);
    const Codes said = extract_reply(*model, reply).codes;
    if (said.frames == 0) return;
    CHECK_EQ(static_cast<int64_t>(model->decode(said).size()), said.frames * model->codec_decoder.samples_per_frame());
}

TEST(conversations_run_side_by_side) {
    const auto model = open_model(2);
    const auto wav = tone(9000);
    std::vector<Positions> alone, together(3);
    for (uint32_t i = 0; i < 3; ++i) alone.push_back(answer(model, wav, i));
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 3; ++i) threads.emplace_back([&, i] { together[i] = answer(model, wav, i); });
    for (auto& thread : threads) thread.join();
    for (size_t i = 0; i < 3; ++i) CHECK(together[i].tokens == alone[i].tokens && together[i].codes == alone[i].codes);
}

TEST(shortest_sound_goes_round) {
    const auto model = open_model(1);
    const Codes codes = model->encode(tone(model->mel.least_samples()));
    CHECK(codes.frames >= 1);
    CHECK_EQ(static_cast<int64_t>(model->decode(codes).size()),
             codes.frames * model->codec_decoder.samples_per_frame());
    CHECK_THROWS(model->encode(tone(model->mel.least_samples() - 1)), InputError, "too short");
    CHECK_THROWS(model->decode(Codes(1, 0)), InputError, "at least one code frame");
}

TEST(streamed_sound_has_every_sample) {
    const auto model = open_model(1);
    const Codes codes = model->encode(tone(60000));
    const Array hidden = model->rvq.decode(codes);
    StreamingDecoder decoder(30, 6);
    size_t samples = 0;
    for (int64_t first = 0; first < hidden.rows; first += 7) {
        const Array chunk = hidden.part(first, std::min<int64_t>(7, hidden.rows - first));
        const auto pieces = decoder.push(model->context(), model->codec_decoder, {chunk}, first + 7 >= hidden.rows);
        if (pieces[0]) samples += pieces[0]->size();
    }
    CHECK_EQ(static_cast<int64_t>(samples), hidden.rows * model->codec_decoder.samples_per_frame());
}

TEST(a_cancelled_reply_ends) {
    const auto model = open_model(1);
    Generation generation(std::make_shared<State>(model), model->prompts.text("hello"),
                          {.task = task_of("text_chat", model->config.tokens), .max_new = 100});
    CHECK(generation.next().has_value());
    generation.cancel();
    CHECK(!generation.next().has_value());
    CHECK(generation.ending() == Ending::cancelled || generation.ending() == Ending::stop_token);
    CHECK_EQ(generation.positions().count(), int64_t{1});
}

TEST(the_largest_limits_end_where_the_context_does) {
    const auto model = open_model(1);
    const Positions prompt = model->prompts.text("hello");
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    Generation generation(std::make_shared<State>(model, 0, 0, prompt.count() + 5), prompt,
                          {.task = task_of("text_chat", model->config.tokens), .max_new = kMost, .min_new = kMost});
    while (generation.next()) {
    }
    CHECK(generation.ending() == Ending::max_length);
    CHECK_EQ(generation.positions().count(), int64_t{5});
}

TEST(a_decoder_stream_is_the_offline_decode_of_its_policy) {
    const auto model = open_model(2);
    const Array hidden = model->rvq.decode(model->encode(tone(50000)));
    const StreamOptions options = {.norm = {.prior = {{{0.1, 1.2}, {-0.3, 2.0}}}, .weight_frames = 25},
                                   .history_frames = 20,
                                   .look_ahead_frames = 40};
    const std::vector<float> offline = model->codec_decoder(model->context(), hidden, options);
    DecoderStream stream(model->codec_decoder, options);
    std::vector<float> made;
    for (int64_t first = 0; first < hidden.rows; first += 3) {
        const Array chunk = hidden.part(first, std::min<int64_t>(3, hidden.rows - first));
        const auto more = stream.push(model->context(), chunk, first + 3 >= hidden.rows);
        made.insert(made.end(), more.begin(), more.end());
    }
    CHECK(made == offline);
    CHECK_THROWS(stream.push(model->context(), Array(0, hidden.cols), true), InputError, "ended");
}

TEST(a_listener_settles_to_what_was_heard_and_a_saved_state_goes_on) {
    const auto model = open_model(1);
    const auto wav = tone(40000);
    const Positions before = model->prompts.text("<|sosp|>");
    const auto state = std::make_shared<State>(model, 0, 0, 400);
    Listener listener(state, before);
    for (size_t first = 0; first < wav.size(); first += 7001) {
        const size_t count = std::min<size_t>(7001, wav.size() - first);
        CHECK_EQ(listener.feed({wav.data() + first, count}, 24000), static_cast<int64_t>(count));
        if (first > 10000) listener.settle();
    }
    listener.settle();
    Positions whole = before;
    append(whole, model->prompts.audio(model->encode(wav), false));
    CHECK(state->positions().codes == whole.codes);
    State straight(model);
    straight.prefill(whole);
    CHECK(state->text_logits() == straight.text_logits());

    const std::string saved = straight.save("note");
    State other(model, 0, 0, straight.length());
    CHECK_EQ(other.restore(saved), std::string("note"));
    CHECK(other.text_logits() == straight.text_logits());
    CHECK_THROWS(other.restore(std::string_view(saved).substr(0, saved.size() / 2)), InputError, "shorter");
    CHECK_THROWS(other.restore(std::string(saved.size(), 'x')), InputError, "other bytes");
    CHECK_EQ(other.keep(whole), whole.count() - 1);
}
