// mimo_edge._core: translates between numpy and the core, and computes nothing. Long calls release the GIL.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "backend/trt_graph.h"
#include "base/bandwidth.h"
#include "codec/decoder_stream.h"
#include "codec/resample.h"
#include "engine/generation.h"
#include "engine/listener.h"
#include "engine/reply.h"
#include "engine/split.h"
#include "io/text_rules.h"

namespace py = pybind11;

namespace mimo {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Integers of any width that int32 holds; other arrays are refused, never rounded or wrapped.
struct Ints : py::array_t<int32_t, py::array::c_style | py::array::forcecast> {
    using py::array_t<int32_t, py::array::c_style | py::array::forcecast>::array_t;
};

}  // namespace
}  // namespace mimo

template <>
struct pybind11::detail::type_caster<mimo::Ints> {
    PYBIND11_TYPE_CASTER(mimo::Ints, const_name("numpy.ndarray[int32]"));

    bool load(handle source, bool) {
        const auto array = pybind11::array::ensure(source);
        if (!array) return false;
        const char kind = array.dtype().kind();
        if (kind != 'i' && kind != 'u' && array.size() > 0)
            throw mimo::ShapeError(mimo::message("array: expected integers, got ", std::string(str(array.dtype()))));
        value = mimo::Ints(array_t<int32_t, pybind11::array::c_style | pybind11::array::forcecast>(array));
        if (array.itemsize() < 4 || (kind == 'i' && array.itemsize() == 4)) return true;
        const array_t<int64_t, pybind11::array::c_style | pybind11::array::forcecast> wide(array);
        for (ssize_t i = 0; i < wide.size(); ++i) {
            if (wide.data()[i] != value.data()[i])
                throw mimo::InputError(mimo::message("array: expected 32-bit integers, got ", wide.data()[i]));
        }
        return true;
    }
};

namespace mimo {
namespace {

// --- numpy -> core
// ---------------------------------------------------------------------------------------------------------------

void expect_rank(const py::array& array, py::ssize_t rank, const char* what) {
    if (array.ndim() != rank) throw ShapeError(message(what, ": expected ", rank, " dimensions, got ", array.ndim()));
}

std::span<const float> to_span(const Floats& array, const char* what) {
    expect_rank(array, 1, what);
    return {array.data(), static_cast<size_t>(array.size())};
}

Array to_array(const Floats& array, const char* what) {
    expect_rank(array, 2, what);
    return {array.shape(0), array.shape(1), {array.data(), static_cast<size_t>(array.size())}};
}

Codes to_codes(const Ints& array, const char* what) {
    expect_rank(array, 2, what);
    Codes codes(array.shape(0), array.shape(1));
    std::copy_n(array.data(), array.size(), codes.data.begin());
    return codes;
}

std::optional<Codes> to_optional_codes(const std::optional<Ints>& array, const char* what) {
    return array ? std::optional(to_codes(*array, what)) : std::nullopt;
}

// ids [K + 1, G * P] -> positions. Row 0 holds each token at the first column of its position; the others do not count.
Positions to_positions(const Ints& ids, const LmConfig& lm) {
    const int64_t rows = lm.audio_channels + 1;
    if (ids.ndim() != 2 || ids.shape(0) != rows || ids.shape(1) % lm.group_size != 0) {
        throw ShapeError(message("ids: expected [", rows, ", a multiple of ", lm.group_size, "], got ", ids.ndim(),
                                 " dimensions",
                                 ids.ndim() == 2 ? message(" [", ids.shape(0), ", ", ids.shape(1), "]") : ""));
    }
    const auto at = ids.unchecked<2>();
    Positions positions;
    Codes patch(lm.audio_channels, lm.group_size);
    for (int64_t first = 0; first < ids.shape(1); first += lm.group_size) {
        for (int64_t level = 0; level < lm.audio_channels; ++level) {
            for (int64_t i = 0; i < lm.group_size; ++i) patch.at(level, i) = at(level + 1, first + i);
        }
        append(positions, at(0, first), &patch, lm);
    }
    return positions;
}

// --- core -> numpy
// ---------------------------------------------------------------------------------------------------------------

template <typename Values>
py::array_t<typename Values::value_type> to_numpy(const Values& values, std::vector<py::ssize_t> shape) {
    py::array_t<typename Values::value_type> out(std::move(shape));
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

py::array_t<float> to_numpy(std::span<const float> values) {
    return to_numpy(values, {static_cast<py::ssize_t>(values.size())});
}
py::array_t<float> to_numpy(const Array& array) {
    return to_numpy(array.data, {array.rows, array.cols});
}
py::array_t<int32_t> to_numpy(const Codes& codes) {
    return to_numpy(codes.data, {codes.levels, codes.frames});
}

// fill: what row 0 holds beside the first column of a position: -100 in prompts, the token again in replies (upstream's
// layouts).
py::array_t<int32_t> to_ids(const Positions& positions, const LmConfig& lm, bool repeat_token) {
    py::array_t<int32_t> ids({lm.audio_channels + 1, positions.count() * lm.group_size});
    auto at = ids.mutable_unchecked<2>();
    for (int64_t p = 0; p < positions.count(); ++p) {
        const Codes patch = patch_of(positions, p, lm);
        for (int64_t i = 0; i < lm.group_size; ++i) {
            const int64_t column = p * lm.group_size + i;
            at(0, column) = i == 0 || repeat_token ? positions.tokens[static_cast<size_t>(p)] : -100;
            for (int64_t level = 0; level < lm.audio_channels; ++level) at(level + 1, column) = patch.at(level, i);
        }
    }
    return ids;
}

// A Python listener; called with the GIL, its exceptions end the call that it listens to.
using PyTap = std::optional<std::function<void(std::string, py::array_t<float>)>>;

Tap to_tap(const PyTap& listener) {
    if (!listener) return {};
    return Tap([listener](const std::string& name, const std::vector<int64_t>& shape, const float* values) {
        py::gil_scoped_acquire gil;
        py::array_t<float> array(std::vector<py::ssize_t>(shape.begin(), shape.end()));
        std::copy_n(values, array.size(), array.mutable_data());
        (*listener)(name, std::move(array));
    });
}

template <typename Function>
auto without_gil(Function function) {
    py::gil_scoped_release release;
    return function();
}

// The same for what threads may share: they take turns. Recursive, so that a tap may look at what it listens to.
template <typename Function>
auto in_turn(std::recursive_mutex& turn, Function function) {
    py::gil_scoped_release release;
    const std::lock_guard held(turn);
    return function();
}

// --- networks that Python computes: an object with the methods of Backend, checked by mimo_edge/backend.py's protocol
// ---------------------------------------------------------------------------------------------------------------

// Calls Python from threads that have let the GIL go. Nothing of Python is touched without it, the last reference
// included.
class PythonObject {
public:
    explicit PythonObject(py::object object)
        : object_(new py::object(std::move(object)), [](py::object* last) {
              py::gil_scoped_acquire gil;
              delete last;
          }) {}

    template <typename Use>
    auto with(Use use) const {
        py::gil_scoped_acquire gil;
        return use(*object_);
    }

private:
    std::shared_ptr<py::object> object_;
};

py::object tap_for_python(const Tap& tap) {
    if (!tap) return py::none();
    return py::cpp_function([tap](const std::string& name, const Floats& array) {
        tap(name, std::vector<int64_t>(array.shape(), array.shape() + array.ndim()), array.data());
    });
}

py::array_t<int32_t> ints_to_numpy(std::span<const int32_t> values, std::vector<py::ssize_t> shape) {
    py::array_t<int32_t> out(std::move(shape));
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
}

std::vector<float> floats_of(const py::handle& made, const char* what) {
    const auto values = to_span(py::cast<Floats>(made), what);
    return {values.begin(), values.end()};
}

class PythonSequence final : public Sequence {
public:
    explicit PythonSequence(py::object object) : object_(std::move(object)) {}

    Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                 const Tap& tap) override {
        return object_.with([&](const py::object& self) {
            const auto count = static_cast<py::ssize_t>(tokens.size());
            const py::object made = self.attr("append")(
                first, ints_to_numpy(tokens, {count}),
                ints_to_numpy(codes, {count, static_cast<py::ssize_t>(codes.size()) / count}), tap_for_python(tap));
            return to_array(py::cast<Floats>(made), "backend: append");
        });
    }

    std::vector<float> text_logits() override {
        return object_.with(
            [](const py::object& self) { return floats_of(self.attr("text_logits")(), "text_logits"); });
    }

    Array local_hidden() override {
        return object_.with([](const py::object& self) {
            return to_array(py::cast<Floats>(self.attr("local_hidden")()), "backend: local_hidden");
        });
    }

    std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap& tap) override {
        return object_.with([&](const py::object& self) {
            const auto levels = static_cast<py::ssize_t>(made.size());
            std::vector<std::vector<float>> scores;
            for (const py::handle level :
                 self.attr("local_step")(step, ints_to_numpy(made, {levels}), tap_for_python(tap)))
                scores.push_back(floats_of(level, "local_step"));
            return scores;
        });
    }

private:
    PythonObject object_;
};

class PythonBackend final : public Backend {
public:
    explicit PythonBackend(py::object object) : object_(std::move(object)) {}

    std::shared_ptr<Sequence> sequence(int64_t capacity) const override {
        return object_.with([&](const py::object& self) -> std::shared_ptr<Sequence> {
            return std::make_shared<PythonSequence>(self.attr("sequence")(capacity));
        });
    }

    Array encode(const Array& mel, int64_t longest, const Tap&) const override {
        return object_.with([&](const py::object& self) {
            return to_array(py::cast<Floats>(self.attr("encode")(to_numpy(mel), longest)), "backend: encode");
        });
    }

    std::vector<float> decode(const Codes& codes, const Tap&) const override {
        return object_.with(
            [&](const py::object& self) { return floats_of(self.attr("decode")(to_numpy(codes)), "decode"); });
    }

private:
    PythonObject object_;
};

// --- the faces of the core's classes
// ---------------------------------------------------------------------------------------------

using ModelPointer = std::shared_ptr<const Model>;
using PyModel = py::class_<Model, std::shared_ptr<Model>>;

// A prompt method: runs `make` on the model's prompts and returns ids.
template <typename... Args, typename Make>
auto prompt(Make make) {
    return [make](const Model& m, const Args&... args) { return to_ids(make(m.prompts, args...), m.config.lm, false); };
}

void bind_codec(PyModel& model) {
    model.def("mel_filterbank", [](const Model& m) { return to_numpy(m.mel.filterbank()); })
        .def("stft_window", [](const Model& m) { return to_numpy(m.mel.window()); })
        .def(
            "mel",
            [](const Model& m, const Floats& wav) {
                const auto samples = to_span(wav, "mel");
                return to_numpy(without_gil([&] { return m.mel(m.context(), samples); }));
            },
            py::arg("wav"))
        .def(
            "encode_mel",
            [](const Model& m, const Floats& mel, const PyTap& tap) {
                const Array frames = to_array(mel, "encode_mel");
                const Tap listener = to_tap(tap);
                const auto [hidden, codes] = without_gil([&] {
                    Array h = m.encode_mel(frames, listener);
                    Codes c = m.rvq.encode(m.context(), h);
                    return std::pair(std::move(h), std::move(c));
                });
                return py::make_tuple(to_numpy(hidden), to_numpy(codes));
            },
            py::arg("mel"), py::arg("tap") = py::none())
        .def(
            "encode",
            [](const Model& m, const Floats& wav, const PyTap& tap) {
                const auto samples = to_span(wav, "encode");
                const Tap listener = to_tap(tap);
                return to_numpy(without_gil([&] { return m.encode(samples, listener); }));
            },
            py::arg("wav"), py::arg("tap") = py::none())
        .def(
            "rvq_encode",
            [](const Model& m, const Floats& hidden) {
                return to_numpy(m.rvq.encode(m.context(), to_array(hidden, "rvq_encode")));
            },
            py::arg("hidden"))
        .def(
            "rvq_decode",
            [](const Model& m, const Ints& codes) { return to_numpy(m.rvq.decode(to_codes(codes, "rvq_decode"))); },
            py::arg("codes"))
        .def(
            "decode",
            [](const Model& m, const Ints& codes, const PyTap& tap) {
                const Codes c = to_codes(codes, "decode");
                const Tap listener = to_tap(tap);
                return to_numpy(without_gil([&] { return m.decode(c, listener); }));
            },
            py::arg("codes"), py::arg("tap") = py::none())
        .def(
            "mel_frames", [](const Model& m, int64_t samples) { return m.mel.frames_of(samples); }, py::arg("samples"))
        .def("least_samples", [](const Model& m) { return m.mel.least_samples(); })
        .def(
            "encoder_frames", [](const Model& m, int64_t frames) { return m.codec_encoder.frames_of(frames); },
            py::arg("mel_frames"));
}

void bind_text(PyModel& model) {
    model
        .def(
            "tokenize", [](const Model& m, const std::string& text) { return m.tokenizer.encode(text); },
            py::arg("text"))
        .def(
            "detokenize", [](const Model& m, const std::vector<int32_t>& ids) { return m.tokenizer.decode(ids); },
            py::arg("ids"))
        .def(
            "token_bytes", [](const Model& m, int32_t id) { return py::bytes(m.tokenizer.token_bytes(id)); },
            py::arg("id"));

    model
        .def("prompt_text", prompt<std::string>([](const Prompts& p, const std::string& text) { return p.text(text); }),
             py::arg("text"))
        .def("prompt_audio",
             prompt<Ints, bool, std::optional<std::vector<int64_t>>>(
                 [](const Prompts& p, const Ints& audio, bool marks, const auto& empty) {
                     return p.audio(to_codes(audio, "prompt_audio"), marks, empty ? &*empty : nullptr);
                 }),
             py::arg("audio"), py::arg("marks") = true, py::arg("empty") = py::none())
        .def("prompt_stream",
             prompt<std::string, Ints>([](const Prompts& p, const std::string& text, const Ints& audio) {
                 return p.stream(text, to_codes(audio, "prompt_stream"));
             }),
             py::arg("text"), py::arg("audio"))
        .def("prompt_asr",
             prompt<Ints, std::string>([](const Prompts& p, const Ints& audio, const std::string& instruction) {
                 return p.asr(to_codes(audio, "prompt_asr"), instruction);
             }),
             py::arg("audio"), py::arg("template"))
        .def("prompt_tts",
             prompt<std::string, std::string, std::optional<std::string>, std::optional<Ints>, bool, bool>(
                 [](const Prompts& p, const std::string& text, const std::string& instruction,
                    const std::optional<std::string>& instruct, const std::optional<Ints>& voice, bool read_text_only,
                    bool parity) {
                     const auto codes = to_optional_codes(voice, "prompt_tts");
                     const Codes* like = codes ? &*codes : nullptr;
                     if (!read_text_only) return p.tts_natural(text, like);
                     return p.tts(text, instruction, instruct ? &*instruct : nullptr, like, parity);
                 }),
             py::arg("text"), py::arg("template"), py::arg("instruct") = py::none(), py::arg("voice") = py::none(),
             py::arg("read_text_only") = true, py::arg("parity") = false)
        .def("prompt_understanding",
             prompt<Ints, std::string, bool>(
                 [](const Prompts& p, const Ints& audio, const std::string& text, bool thinking) {
                     return p.understanding(to_codes(audio, "prompt_understanding"), text, thinking);
                 }),
             py::arg("audio"), py::arg("text"), py::arg("thinking") = false)
        .def("prompt_dialogue",
             prompt<std::vector<std::tuple<std::string, std::optional<std::string>, std::optional<Ints>>>,
                    std::optional<std::string>, std::optional<Ints>, bool,
                    bool>([](const Prompts& p, const auto& messages, const std::optional<std::string>& system,
                             const std::optional<Ints>& voice, bool speech_out, bool thinking) {
                 std::vector<Turn> turns;
                 for (const auto& [role, text, audio] : messages) {
                     if (role != "user" && role != "assistant") {
                         throw InputError(message("dialogue: expected the role user or assistant, got '", role, "'"));
                     }
                     turns.push_back(
                         {.user = role == "user", .text = text, .audio = to_optional_codes(audio, "prompt_dialogue")});
                 }
                 const auto codes = to_optional_codes(voice, "prompt_dialogue");
                 return p.dialogue(turns, system ? &*system : nullptr, codes ? &*codes : nullptr, speech_out, thinking);
             }),
             py::arg("turns"), py::arg("system") = py::none(), py::arg("voice") = py::none(),
             py::arg("speech_out") = true, py::arg("thinking") = false)
        .def("prompt_in_context",
             prompt<std::string, std::vector<std::tuple<Ints, std::string, Ints>>, Ints>(
                 [](const Prompts& p, const std::string& instruction, const auto& solved, const Ints& audio) {
                     std::vector<Example> examples;
                     for (const auto& [input, transcription, output] : solved) {
                         examples.push_back({to_codes(input, "prompt_in_context"), transcription,
                                             to_codes(output, "prompt_in_context")});
                     }
                     return p.in_context(instruction, examples, to_codes(audio, "prompt_in_context"));
                 }),
             py::arg("instruction"), py::arg("examples"), py::arg("audio"))
        .def("prompt_continuation", prompt<Ints>([](const Prompts& p, const Ints& audio) {
                 return p.continuation(to_codes(audio, "prompt_continuation"));
             }),
             py::arg("audio"))
        .def(
            "extract",
            [](const Model& m, const Ints& ids) {
                const Reply reply = extract_reply(m, to_positions(ids, m.config.lm));
                return py::make_tuple(reply.text, to_numpy(reply.codes));
            },
            py::arg("ids"))
        .def(
            "task",
            [](const Model& m, const std::string& name) {
                const Task task = task_of(name, m.config.tokens);
                return py::make_tuple(task.text, task.speech, task.stop);
            },
            py::arg("name"));
}

void bind_state(py::module_& module) {
    py::class_<State, std::shared_ptr<State>>(module, "State")
        .def(py::init([](const std::shared_ptr<Model>& model, uint64_t seed, uint32_t stream, int64_t context) {
                 return std::make_shared<State>(model, seed, stream, context);
             }),
             py::arg("model"), py::arg("seed") = 0, py::arg("stream") = 0, py::arg("context") = 0)
        .def_property_readonly("length", [](const State& s) { return in_turn(s.turn(), [&] { return s.length(); }); })
        .def_property_readonly("capacity", &State::capacity)
        .def(
            "prefill",
            [](State& s, const Ints& ids, const PyTap& tap, const std::vector<int32_t>& guesses) {
                const Positions positions = to_positions(ids, s.model().config.lm);
                const Tap listener = to_tap(tap);
                in_turn(s.turn(), [&] { s.prefill(positions, listener, guesses); });
            },
            py::arg("ids"), py::arg("tap") = py::none(), py::arg("guesses") = std::vector<int32_t>{})
        .def(
            "rewind", [](State& s, int64_t length) { in_turn(s.turn(), [&] { s.rewind(length); }); }, py::arg("length"))
        .def("ids",
             [](const State& s) {
                 const Positions positions = in_turn(s.turn(), [&] { return s.positions(); });
                 return to_ids(positions, s.model().config.lm, false);
             })
        .def(
            "keep",
            [](State& s, const Ints& ids) {
                const Positions wanted = to_positions(ids, s.model().config.lm);
                return in_turn(s.turn(), [&] { return s.keep(wanted); });
            },
            py::arg("ids"))
        .def(
            "save",
            [](const State& s, const std::string& note) {
                return py::bytes(in_turn(s.turn(), [&] { return s.save(note); }));
            },
            py::arg("note") = "")
        .def(
            "restore",
            [](State& s, const py::buffer& saved) {
                const py::buffer_info info = saved.request();
                if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
                    throw InputError("restore: expected bytes side by side in memory, got a strided view");
                const std::span<const char> bytes(static_cast<const char*>(info.ptr),
                                                  static_cast<size_t>(info.size * info.itemsize));
                return in_turn(s.turn(), [&] { return s.restore(bytes); });
            },
            py::arg("saved"))
        .def("hidden", [](const State& s) { return to_numpy(in_turn(s.turn(), [&] { return s.hidden().data; })); })
        .def("text_logits", [](const State& s) { return to_numpy(in_turn(s.turn(), [&] { return s.text_logits(); })); })
        .def("local_hidden",
             [](const State& s) { return to_numpy(in_turn(s.turn(), [&] { return s.local_hidden().data; })); })
        .def(
            "decode_patch",
            [](State& s, const Sampling& speech, const PyTap& tap, const std::optional<Ints>& forced) {
                const Tap listener = to_tap(tap);
                const auto codes = to_optional_codes(forced, "decode_patch");
                return to_numpy(
                    in_turn(s.turn(), [&] { return s.decode_patch(speech, listener, codes ? &*codes : nullptr); }));
            },
            py::arg("speech"), py::arg("tap") = py::none(), py::arg("forced") = py::none());

    py::class_<Listener::Report>(module, "Heard")
        .def(py::init<>())
        .def_readonly("positions", &Listener::Report::positions)
        .def_readonly("kept", &Listener::Report::kept)
        .def_readonly("redone", &Listener::Report::redone)
        .def_readonly("heard_s", &Listener::Report::heard_s)
        .def_readonly("broken_samples", &Listener::Report::broken_samples)
        .def_readonly("encode_s", &Listener::Report::encode_s)
        .def_readonly("prefill_s", &Listener::Report::prefill_s);

    py::class_<Listener>(module, "Listener")
        .def(py::init([](const std::shared_ptr<State>& state, const Ints& before, double most_s) {
                 const Positions positions = to_positions(before, state->model().config.lm);
                 return in_turn(state->turn(), [&] { return std::make_unique<Listener>(state, positions, most_s); });
             }),
             py::arg("state"), py::arg("before"), py::arg("most_s") = 0.0)
        .def(
            "feed",
            [](Listener& l, const Floats& wav, int64_t rate_hz) {
                const auto samples = to_span(wav, "listener");
                return in_turn(l.turn(), [&] { return l.feed(samples, rate_hz); });
            },
            py::arg("wav"), py::arg("rate_hz"))
        .def("settle", [](Listener& l) { return in_turn(l.turn(), [&] { return l.settle(); }); })
        .def_property_readonly("heard_s",
                               [](const Listener& l) { return in_turn(l.turn(), [&] { return l.heard_s(); }); })
        .def_property_readonly("is_long_enough",
                               [](const Listener& l) { return in_turn(l.turn(), [&] { return l.is_long_enough(); }); });

    py::class_<Generation>(module, "Generation")
        .def(py::init([](const std::shared_ptr<State>& state, const Ints& ids, const Sampling& text,
                         const Sampling& speech, const std::vector<int32_t>& stop, int64_t max_new, int64_t min_new,
                         bool guard, const std::vector<int32_t>& script) {
                 GenerationOptions options = {{text, speech, stop}, max_new, min_new, guard, script};
                 return std::make_unique<Generation>(state, to_positions(ids, state->model().config.lm),
                                                     std::move(options));
             }),
             py::arg("state"), py::arg("ids"), py::arg("text"), py::arg("speech"), py::arg("stop"), py::arg("max_new"),
             py::arg("min_new") = 0, py::arg("guard") = true, py::arg("script") = std::vector<int32_t>{})
        .def(
            "next",
            [](Generation& g, const PyTap& tap) -> py::object {
                const Tap listener = to_tap(tap);
                const auto step = in_turn(g.turn(), [&] { return g.next(listener); });
                if (!step) return py::none();
                return py::make_tuple(step->token, step->patch ? py::object(to_numpy(*step->patch)) : py::none());
            },
            py::arg("tap") = py::none())
        .def("ids",
             [](const Generation& g) {
                 const Positions positions = in_turn(g.turn(), [&] { return g.positions(); });
                 return to_ids(positions, g.model().config.lm, true);
             })
        .def_property_readonly("reason",
                               [](const Generation& g) {
                                   switch (in_turn(g.turn(), [&] { return g.ending(); })) {
                                       case Ending::none:
                                           return "running";
                                       case Ending::stop_token:
                                           return "stop token";
                                       case Ending::max_length:
                                           return "max_length";
                                       case Ending::guard:
                                           return "guard";
                                       case Ending::cancelled:
                                           return "cancelled";
                                   }
                                   return "running";
                               })
        .def("cancel", &Generation::cancel);
}

// prior: [[mean, variance], [mean, variance]] of the two norms, or none.
StreamOptions stream_options(const std::optional<std::array<std::array<double, 2>, 2>>& prior, double weight_frames,
                             int64_t history_frames, int64_t look_ahead_frames) {
    StreamOptions options = {.norm = {.prior = {}, .weight_frames = weight_frames},
                             .history_frames = history_frames,
                             .look_ahead_frames = look_ahead_frames};
    if (!prior) {
        if (weight_frames > 0) throw InputError("decoder stream: expected a prior where it has a weight, got none");
        return options;
    }
    for (size_t i = 0; i < 2; ++i) {
        if (!((*prior)[i][1] >= 0)) throw InputError("decoder stream: expected variances of at least 0 in the prior");
        options.norm.prior[i] = {.mean = (*prior)[i][0], .variance = (*prior)[i][1]};
    }
    return options;
}

// A decoder stream that keeps its model.
class BoundDecoderStream {
public:
    BoundDecoderStream(ModelPointer model, const StreamOptions& options)
        : model_(std::move(model)), stream_(model_->codec_decoder, options) {}

    py::array_t<float> push(const Ints& codes, bool last) {
        const Codes more = to_codes(codes, "decoder stream");
        return to_numpy(in_turn(turn_, [&] {
            const Array hidden = more.frames > 0 ? model_->rvq.decode(more) : Array(0, model_->config.codec.d_model);
            return stream_.push(model_->context(), hidden, last);
        }));
    }

    int64_t waiting() const {
        return in_turn(turn_, [&] { return stream_.waiting_frames(); });
    }

private:
    mutable std::recursive_mutex turn_;
    ModelPointer model_;
    DecoderStream stream_;
};

// Upstream's streaming_decode bound to a model.
class BoundStreamingDecoder {
public:
    BoundStreamingDecoder(ModelPointer model, int64_t left_overlap, int64_t right_overlap)
        : model_(std::move(model)), decoder_(left_overlap, right_overlap) {}

    py::list push(const std::vector<Ints>& chunks, bool last) {
        std::vector<Array> hidden;
        for (const Ints& chunk : chunks) hidden.push_back(model_->rvq.decode(to_codes(chunk, "streaming decoder")));
        const auto pieces = in_turn(
            turn_, [&] { return decoder_.push(model_->context(), model_->codec_decoder, std::move(hidden), last); });
        py::list out;
        for (const auto& piece : pieces) out.append(piece ? py::object(to_numpy(*piece)) : py::none());
        return out;
    }

    std::vector<int64_t> processed() const {
        return counts([](const auto& stream) { return stream.processed; });
    }

    std::vector<int64_t> cached() const {
        return counts([](const auto& stream) { return stream.history.rows; });
    }

private:
    template <typename Count>
    std::vector<int64_t> counts(Count count) const {
        return in_turn(turn_, [&] {
            std::vector<int64_t> all;
            for (const auto& stream : decoder_.streams()) all.push_back(count(stream));
            return all;
        });
    }

    mutable std::recursive_mutex turn_;
    ModelPointer model_;
    StreamingDecoder decoder_;
};

}  // namespace
}  // namespace mimo

PYBIND11_MODULE(_core, module) {
    using namespace mimo;
    module.doc() = "The C++ core of mimo-edge. mimo_edge is its friendly face.";

    const auto error = py::register_exception<Error>(module, "Error");
    py::register_exception<ShapeError>(module, "ShapeError", error);
    py::register_exception<InputError>(module, "InputError", error);
    py::register_exception<BundleError>(module, "BundleError", error);
    py::register_exception<DeviceError>(module, "DeviceError", error);

    py::class_<Sampling>(module, "Sampling")
        .def(py::init([](bool sample, float temperature, int64_t top_k, float top_p) {
                 return Sampling{sample, temperature, top_k, top_p};
             }),
             py::arg("sample"), py::arg("temperature") = 1.0f, py::arg("top_k") = 0, py::arg("top_p") = 0.0f)
        .def_readonly("sample", &Sampling::sample)
        .def_readonly("temperature", &Sampling::temperature)
        .def_readonly("top_k", &Sampling::top_k)
        .def_readonly("top_p", &Sampling::top_p);

    py::class_<Backend, std::shared_ptr<Backend>>(module, "NativeBackend");  // opaque: made here, for Model.open
    module.def("tensorrt_version", &tensorrt_version);
    module.def(
        "open_tensorrt",
        [](const std::map<std::string, std::string>& paths) {
            py::gil_scoped_release release;
            std::map<std::string, MappedFile> files;
            std::map<std::string, std::span<const std::byte>> engines;
            for (const auto& [stage, path] : paths) {
                const MappedFile& file = files.emplace(stage, MappedFile(path)).first->second;
                engines[stage] = std::as_bytes(file.bytes());
            }
            return std::const_pointer_cast<Backend>(open_tensorrt(engines));
        },
        py::arg("engines"));

    PyModel model(module, "Model");
    model
        .def_static(
            "open",
            [](const std::string& path, int threads, bool check, const std::optional<std::string>& kernels,
               const py::object& backend, const std::string& device) {
                OpenOptions options = {threads, check, kernels ? kernels->c_str() : nullptr, nullptr, device};
                if (py::isinstance<Backend>(backend))
                    options.backend = py::cast<std::shared_ptr<Backend>>(backend);
                else if (!backend.is_none())
                    options.backend = std::make_shared<PythonBackend>(backend);
                return std::const_pointer_cast<Model>(without_gil([&] { return Model::open(path, options); }));
            },
            py::arg("path"), py::arg("threads") = 0, py::arg("check") = false, py::arg("kernels") = py::none(),
            py::arg("backend") = py::none(), py::arg("device") = "cpu")
        .def_property_readonly("config_json", [](const Model& m) { return m.bundle_json; })
        .def("read_bandwidth",
             [](const Model& m) { return without_gil([&] { return read_bandwidth(m.context().pool); }); })
        .def_property_readonly("threads", [](const Model& m) { return m.context().pool.threads(); })
        .def_property_readonly("kernels", [](const Model& m) { return m.context().kernels.name; });
    bind_codec(model);
    bind_text(model);
    bind_state(module);

    py::class_<BoundStreamingDecoder>(module, "StreamingDecoder")
        .def(py::init([](const std::shared_ptr<Model>& m, int64_t left, int64_t right) {
                 return std::make_unique<BoundStreamingDecoder>(m, left, right);
             }),
             py::arg("model"), py::arg("left_overlap") = 250, py::arg("right_overlap") = 40)
        .def("push", &BoundStreamingDecoder::push, py::arg("chunks"), py::arg("last"))
        .def_property_readonly("processed", &BoundStreamingDecoder::processed)
        .def_property_readonly("cached", &BoundStreamingDecoder::cached);

    using Prior = std::optional<std::array<std::array<double, 2>, 2>>;
    py::class_<BoundDecoderStream>(module, "DecoderStream")
        .def(py::init([](const std::shared_ptr<Model>& m, const Prior& prior, double weight_frames,
                         int64_t history_frames, int64_t look_ahead_frames) {
                 return std::make_unique<BoundDecoderStream>(
                     m, stream_options(prior, weight_frames, history_frames, look_ahead_frames));
             }),
             py::arg("model"), py::arg("prior") = py::none(), py::arg("weight_frames") = 0.0,
             py::arg("history_frames") = 250, py::arg("look_ahead_frames") = 40)
        .def("push", &BoundDecoderStream::push, py::arg("codes"), py::arg("last"))
        .def_property_readonly("waiting", &BoundDecoderStream::waiting);
    model
        .def(
            "decode_as_stream",
            [](const Model& m, const Ints& codes, const Prior& prior, double weight_frames, int64_t history_frames) {
                const Codes c = to_codes(codes, "decode");
                const StreamOptions options = stream_options(prior, weight_frames, history_frames, 0);
                return to_numpy(without_gil([&] { return m.codec_decoder(m.context(), m.rvq.decode(c), options); }));
            },
            py::arg("codes"), py::arg("prior") = py::none(), py::arg("weight_frames") = 0.0,
            py::arg("history_frames") = 250)
        .def(
            "measure_norms",
            [](const Model& m, const Ints& codes) {
                const Codes c = to_codes(codes, "measure");
                const auto moments = without_gil([&] { return m.codec_decoder.measure(m.context(), m.rvq.decode(c)); });
                std::array<std::array<double, 2>, 2> out;
                for (size_t i = 0; i < 2; ++i) out[i] = {moments[i].mean, moments[i].variance};
                return out;
            },
            py::arg("codes"))
        .def_property_readonly("exact_look_ahead", [](const Model& m) { return m.codec_decoder.exact_look_ahead(); });

    py::class_<Resampler>(module, "Resampler")
        .def(py::init<int64_t, int64_t>(), py::arg("from_hz"), py::arg("to_hz"))
        .def(
            "push",
            [](Resampler& r, const Floats& wav) {
                std::vector<float> out;
                r.push(to_span(wav, "resample"), out);
                return to_numpy(out);
            },
            py::arg("wav"));
    module.def(
        "resample",
        [](const Floats& wav, int64_t from_hz, int64_t to_hz) {
            const auto samples = to_span(wav, "resample");
            return to_numpy(without_gil([&] { return resample(samples, from_hz, to_hz); }));
        },
        py::arg("wav"), py::arg("from_hz"), py::arg("to_hz"));
    module.def(
        "filter_scores",
        [](const Floats& logits, const Sampling& sampling) {
            return to_numpy(filter_scores(to_span(logits, "filter_scores"), sampling));
        },
        py::arg("logits"), py::arg("sampling"));
    module.def(
        "sample",
        [](const Floats& logits, const Sampling& sampling, const std::vector<int32_t>& removed, uint64_t seed,
           uint32_t position) {
            return sample(to_span(logits, "sample"), sampling, removed, {.seed = seed, .position = position});
        },
        py::arg("logits"), py::arg("sampling"), py::arg("removed") = std::vector<int32_t>{}, py::arg("seed") = 0,
        py::arg("position") = 0);
    module.def(
        "is_done",
        [](int64_t total, int32_t last_token, const std::optional<std::vector<int32_t>>& stop, int64_t min_length,
           std::optional<int64_t> max_length) {
            return is_done(total, last_token, stop.value_or(std::vector<int32_t>{}), min_length,
                           max_length.value_or(0));
        },
        py::arg("total"), py::arg("last_token"), py::arg("stop"), py::arg("min_length"), py::arg("max_length"));
    module.def("group_segments", &group_segments, py::arg("lengths"), py::arg("max_length"));
    module.def("capitalize_text", [](const std::string& text) { return capitalize_text(text); }, py::arg("text"));
    module.def("detect_language", [](const std::string& text) { return has_han(text) ? "zh" : "en"; }, py::arg("text"));
    module.def(
        "split_at_pauses",
        [](const Floats& wav, int64_t rate_hz, double max_seconds) {
            std::vector<std::pair<int64_t, int64_t>> pieces;
            for (const auto& piece : split_at_pauses(to_span(wav, "split"), rate_hz, max_seconds))
                pieces.emplace_back(piece.begin, piece.end);
            return pieces;
        },
        py::arg("wav"), py::arg("rate_hz"), py::arg("max_seconds"));
}
