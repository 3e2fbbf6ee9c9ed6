// The bundle's files: hashes, safetensors, and what is said of damaged ones.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "check.h"
#include "io/bundle.h"
#include "io/sha256.h"

using namespace mimo;

namespace {

class TemporaryFolder {
public:
    TemporaryFolder() : path_(std::filesystem::temp_directory_path() / ("mimo-test-" + std::to_string(getpid()))) {
        std::filesystem::create_directories(path_);
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }

    std::filesystem::path write(const std::string& name, const std::string& bytes) const {
        std::ofstream(path_ / name, std::ios::binary) << bytes;
        return path_ / name;
    }
    const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

std::string safetensors(std::string header, size_t body_bytes) {
    header.resize((header.size() + 7) / 8 * 8, ' ');  // as the writers of such files do, so that the floats lie aligned
    std::string bytes(8, '\0');
    for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
    return bytes + header + std::string(body_bytes, '\0');
}

std::string hash(const std::string& text) {
    return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace

TEST(sha256_gives_the_published_hashes) {  // FIPS 180-4 examples, and a length on each side of the padding border
    CHECK_EQ(hash(""), std::string("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    CHECK_EQ(hash("abc"), std::string("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    CHECK_EQ(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
             std::string("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
    CHECK_EQ(hash(std::string(1000000, 'a')),
             std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
}

TEST(safetensors_reads_what_it_should) {
    const TemporaryFolder folder;
    const std::string header =
        R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}})";
    const Safetensors file(folder.write("w", safetensors(header, 32)));
    CHECK_EQ(file.get("a", {2, 3}).shape.size(), size_t{2});
    CHECK_EQ(file.unused().size(), size_t{1});
    CHECK(file.find("c") == nullptr);
    CHECK_THROWS(file.get("a", {3, 2}), BundleError, "expected shape [3, 2] for a, got [2, 3]");
    CHECK_THROWS(file.get("c", {1}), BundleError, "expected tensor c");
    CHECK_THROWS(Weights(file).vector("b", 4), BundleError, "expected F32 for b");
}

TEST(packed_tensors_are_checked) {
    const TemporaryFolder folder;
    const std::string header = R"({"a":{"dtype":"I8","shape":[2,2,16,4],"data_offsets":[0,256]},)"
                               R"("a_scale":{"dtype":"F32","shape":[2,1,16],"data_offsets":[256,384]},)"
                               R"("b":{"dtype":"U8","shape":[1,5,16,4],"data_offsets":[384,704]},)"
                               R"("b_scale":{"dtype":"F16","shape":[1,2,16],"data_offsets":[704,768]},)"
                               R"("c":{"dtype":"I8","shape":[1,1,16,4],"data_offsets":[768,832]},)"
                               R"("c_scale":{"dtype":"F16","shape":[1,1,16],"data_offsets":[832,864]},)"
                               R"("d":{"dtype":"F8_E4M3","shape":[1,1,16,4],"data_offsets":[864,928]}})";
    const Safetensors file(folder.write("w", safetensors(header, 928)));
    const Quantization quantization = {
        .recipe = "test", .group = 32, .cache = DType::f32, .activation_bits = {{"a", 16}, {"", 8}}};
    const Weights weights(file, &quantization);
    const Matrix a = weights.matrix("a", {17, 2, 4}), b = weights.matrix("b", {2, 8, 33}, 2);
    CHECK(a.rows == 17 && a.cols == 8 && a.type == DType::i8 && a.group == 8 && a.activation_bits == 16);
    CHECK(b.rows == 16 && b.cols == 33 && b.type == DType::i4 && b.group == 32 && b.activation_bits == 8);
    CHECK_THROWS(Weights(file).matrix("a", {17, 8}), BundleError, "expected 'quantization' in bundle.json");
    CHECK_THROWS(weights.matrix("a", {33, 8}), BundleError, "expected shape [3, 2, 16, 4] for a, got [2, 2, 16, 4]");
    CHECK_THROWS(weights.matrix("b", {16, 65}), BundleError, "expected shape [1, 9, 16, 4] for b");
    CHECK_THROWS(weights.matrix("c", {16, 4}), BundleError, "expected F32 for c_scale, got F16");
    CHECK_THROWS(weights.matrix("d", {16, 4}), BundleError, "expected tensor d_scale");
    CHECK(file.unused() == std::vector<std::string>{});
}

TEST(e4m3_weights_become_the_floats_they_mean) {
    const TemporaryFolder folder;
    const std::string header = R"({"a":{"dtype":"F8_E4M3","shape":[2,2,16,4],"data_offsets":[0,256]},)"
                               R"("a_scale":{"dtype":"F32","shape":[2,1,16],"data_offsets":[256,384]}})";
    std::string bytes = safetensors(header, 384);
    const size_t data = bytes.size() - 384;
    for (int code = 0; code < 256; ++code) bytes[data + static_cast<size_t>(code)] = static_cast<char>(code);
    for (int row = 0; row < 32; ++row) {
        const float scale = row == 0 ? 0.5f : 2.0f;
        std::memcpy(bytes.data() + data + 256 + static_cast<size_t>(row) * 4, &scale, 4);
    }
    const Safetensors file(folder.write("w", bytes));
    const Matrix a = Weights(file).matrix("a", {17, 8});
    const auto* values = static_cast<const float*>(a.data);
    CHECK(a.rows == 17 && a.cols == 8 && a.type == DType::f32);
    CHECK(values[0] == 0 && values[1] == 0.5f / 512);                     // codes 0 and 1: zero, the least subnormal
    CHECK(values[8] == 2 * 4.0f / 512);                                   // row 1 begins with code 4
    CHECK(values[3 * 8] == 2 * 12.0f / 512);                              // row 3: 0x0C = 2^-6 * 1.5
    CHECK(values[14 * 8] == 2 * 1.0f);                                    // row 14: 0x38 = 1
    CHECK(values[15 * 8 + 6] == 2 * std::ldexp(1.75f, 8));                // row 15, second chunk, byte 2: 0x7E = 448
    CHECK(std::isnan(values[15 * 8 + 7]));                                // 0x7F
    CHECK(values[16 * 8] == -0.0f && values[16 * 8 + 1] == -2.0f / 512);  // row 16: 0x80, 0x81
    CHECK(file.unused().empty());
}

TEST(safetensors_refuses_damage) {
    const TemporaryFolder folder;
    const auto refused = [&](const std::string& bytes, const char* part) {
        CHECK_THROWS(Safetensors(folder.write("w", bytes)), BundleError, part);
    };
    const std::string one = R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";
    std::string askew = safetensors(one, 24);  // floats at odd addresses
    askew.insert(askew.size() - 24, 1, ' ');
    ++askew[0];
    refused(askew, "truncated or altered");
    refused("", "truncated");
    refused(safetensors(one, 24).substr(0, 20), "truncated");
    refused(safetensors(one, 23), "truncated or altered");
    refused(safetensors(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]}})", 28), "gap or overlap");
    refused(safetensors(R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", 8), "got F64");
    refused(safetensors(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}})", 0), "sensible shape");
    refused(safetensors(R"({"a":{"dtype":"F32","shape":[4503599627370496,4503599627370496],"data_offsets":[0,0]}})", 0),
            "sensible shape");
    refused(safetensors("{", 0), "json");
    CHECK_THROWS(Safetensors(folder.path() / "nothing"), BundleError, "readable file");
    CHECK_THROWS(Safetensors(folder.path()), BundleError, "readable file");
}

TEST(bundle_says_what_is_wrong) {
    const TemporaryFolder folder;
    CHECK_THROWS(Bundle(folder.path(), false), BundleError, "mimo-edge build");
    folder.write("bundle.json", R"({"format": "something else"})");
    CHECK_THROWS(Bundle(folder.path(), false), BundleError, "another kind of file");
    folder.write("bundle.json", R"({"format": "mimo-edge bundle", "revision": 2})");
    CHECK_THROWS(Bundle(folder.path(), false), BundleError, "expected revision 1, got 2; update mimo-edge");
    folder.write("bundle.json", R"({"format": "mimo-edge bundle", "revision": 1})");
    CHECK_THROWS(Bundle(folder.path(), false), BundleError, "lm");
    folder.write("bundle.json", "[");
    CHECK_THROWS(Bundle(folder.path(), false), BundleError, "bundle.json");
}
