// The goldens of the public reference without Python, for machines on which only the core runs: sound to codes, codes
// to sound, prompts to whole greedy replies. FOLDER is what tests/golden_cases.py wrote.
//
//   mimo_goldens FOLDER [KERNELS]
#include <cmath>
#include <cstdio>

#include "engine/generation.h"
#include "io/safetensors.h"

using namespace mimo;

namespace {

std::vector<float> floats(const Safetensors::Tensor& tensor) {
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    const auto* first = reinterpret_cast<const float*>(tensor.data);
    return {first, first + count};
}

std::vector<int32_t> ints(const Safetensors::Tensor& tensor) {
    const std::vector<float> values = floats(tensor);
    return {values.begin(), values.end()};
}

Codes codes(const Safetensors::Tensor& tensor) {
    Codes out(tensor.shape.at(0), tensor.shape.at(1));
    out.data = ints(tensor);
    return out;
}

float farthest(const std::vector<float>& a, const std::vector<float>& b) {
    float most = a.size() == b.size() ? 0.0f : INFINITY;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, std::abs(a[i] - b[i]));
    return most;
}

struct Count {
    const char* what;
    int passed = 0, failed = 0;

    void add(bool ok, const std::string& name) {
        (ok ? passed : failed) += 1;
        if (!ok) std::printf("%s: %s differs from the golden\n", what, name.c_str());
    }
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 && count != 3) {
        std::fprintf(
            stderr,
            "usage: mimo_goldens FOLDER [KERNELS]; FOLDER of tests/golden_cases.py, KERNELS an instruction set\n");
        return 2;
    }
    const std::filesystem::path folder = arguments[1];
    const auto model = Model::open(folder / "bundle", {.kernels = count == 3 ? arguments[2] : nullptr});
    const Safetensors cases(folder / "cases.safetensors");
    Count heard{"sound to codes"}, sounded{"codes to sound"}, replied{"greedy replies"};

    const float limit = floats(cases.get("wave_limit")).at(0);
    for (int i = 0; cases.find("encode." + std::to_string(i) + ".wave"); ++i) {
        const std::string name = "encode." + std::to_string(i);
        const Codes golden = codes(cases.get(name + ".codes")), got = model->encode(floats(cases.get(name + ".wave")));
        bool same = got.levels == golden.levels && got.frames == golden.frames;
        for (size_t at = 0; same && at < got.data.size(); ++at) {
            same = golden.data[at] == -1 || got.data[at] == golden.data[at];
        }
        heard.add(same, name);
    }
    for (int i = 0; cases.find("decode." + std::to_string(i) + ".codes"); ++i) {
        const std::string name = "decode." + std::to_string(i);
        const auto wave = model->decode(codes(cases.get(name + ".codes")));
        sounded.add(farthest(wave, floats(cases.get(name + ".wave"))) <= limit, name);
    }
    for (int i = 0; cases.find("reply." + std::to_string(i) + ".tokens"); ++i) {
        const std::string name = "reply." + std::to_string(i);
        const Positions prompt = {ints(cases.get(name + ".prompt_tokens")), ints(cases.get(name + ".prompt_codes"))};
        const std::vector<int32_t> bounds = ints(cases.get(name + ".most_and_least"));
        GenerationOptions options = {.task = {}, .max_new = bounds.at(0), .min_new = bounds.at(1), .guard = false};
        options.task.stop = ints(cases.get(name + ".stop"));
        Generation generation(std::make_shared<State>(model, 0, 0, 0), prompt, options);
        while (generation.next()) {
        }
        replied.add(generation.positions().tokens == ints(cases.get(name + ".tokens")) &&
                        generation.positions().codes == ints(cases.get(name + ".codes")),
                    name);
    }
    bool good = true;
    for (const Count& each : {heard, sounded, replied}) {
        std::printf("%s: %d passed, %d failed\n", each.what, each.passed, each.failed);
        good = good && each.failed == 0 && each.passed > 0;
    }
    return good ? 0 : 1;
}
