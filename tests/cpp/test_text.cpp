// JSON, Unicode, the tokenizer and the text rules, without a bundle. Expected values: RFC 8259, the Unicode standard,
// and for the tokenizer the `tokenizers` library on the same file (tests/python/test_tokenizer.py compares at length).
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "io/json.h"
#include "io/text_rules.h"
#include "io/tokenizer.h"
#include "io/unicode.h"

using mimo::BundleError;
using mimo::InputError;
using mimo::Json;
using mimo::Tokenizer;

namespace {

Json parsed(const std::string& text) {
    return Json::parse(text, "test");
}

std::string nested(int depth) {
    return std::string(depth, '[') + std::string(depth, ']');
}

std::string normalized(std::u32string_view text) {
    return mimo::to_utf8(mimo::nfc(text));
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

constexpr const char* qwen2_split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The 256 byte tokens in order of their characters (byte b < 256 printing, then U+0100 onwards) and what is given.
struct TinyFile {
    std::string normalizer = R"({"type": "NFC"})";
    std::string split = qwen2_split;
    std::string merges = R"([["a", "b"], ["ab", "ab"], ["Ġ", "a"], ["b", "Ġ"]])";
    std::string model_options = R"("dropout": null, "end_of_word_suffix": "", "ignore_merges": false)";
    std::string added = R"([{"id": 260, "content": "<|x|>", "single_word": false, "lstrip": false, "rstrip": false,
                             "normalized": false, "special": true},
                            {"id": 261, "content": "<|x|>y", "single_word": false, "lstrip": false, "rstrip": false,
                             "normalized": false, "special": false}])";

    std::string text() const {
        std::string vocabulary;
        int id = 0;
        const auto add = [&](const std::string& token) {
            vocabulary += (id == 0 ? "" : ", ") + quoted(token) + ": " + std::to_string(id);
            ++id;
        };
        for (char32_t c = 0; c < 0x144; ++c) {
            const bool prints = (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c != 0xAD);
            if (prints) add(mimo::to_utf8(std::u32string(1, c)));
        }
        for (const char* token : {"ab", "abab", "Ġa", "bĠ"}) add(token);
        return R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": )" + added +
               R"(, "normalizer": )" + normalizer +
               R"(, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": )" +
               quoted(split) +
               R"(}, "behavior": "Isolated", "invert": false},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
                  "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false},
                  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
                  "model": {"type": "BPE", )" +
               model_options + R"(, "vocab": {)" + vocabulary + R"(}, "merges": )" + merges + "}}";
    }
};

Tokenizer tiny(const TinyFile& file = {}) {
    return Tokenizer::parse(file.text());
}

// The tokens of the text, with a bar between them.
std::string cut(const Tokenizer& tokenizer, std::string_view text) {
    std::string out;
    for (const int32_t id : tokenizer.encode(text)) out += (out.empty() ? "" : "|") + tokenizer.token_bytes(id);
    return out;
}

}  // namespace

TEST(json_reads_every_kind) {
    const Json root = parsed(R"( {"a": [1, -2.5e1, 0, true, false, null, "x\n\"\\\/\b\f\r\t"], "b": {}, "c": []} )");
    const Json::Array& items = root.at("a").array();
    CHECK_EQ(items[0].integer(), 1);
    CHECK_EQ(items[1].number(), -25.0);
    CHECK_EQ(items[2].integer(), 0);
    CHECK(items[3].boolean() && !items[4].boolean() && items[5].is_null());
    CHECK_EQ(items[6].string(), "x\n\"\\/\b\f\r\t");
    CHECK(root.at("b").object().empty() && root.at("c").array().empty());
    CHECK(root.find("d") == nullptr);
    CHECK_EQ(root.object()[1].first, "b");
    CHECK_THROWS(root.at("d"), BundleError, "the key \"d\"");
    CHECK_THROWS(items[1].string(), BundleError, "expected a string, got a number");
    CHECK_THROWS(parsed("1.5").integer(), BundleError, "an integer");
    CHECK_THROWS(parsed("1e300").integer(), BundleError, "an integer");
}

TEST(json_escapes) {
    CHECK_EQ(parsed(R"("\u00e9\u4eCA\u0000")").string(), std::string("\u00e9\u4eca\0", 6));
    CHECK_EQ(parsed(R"("\ud83d\uDE00")").string(), "\U0001F600");
    CHECK_THROWS(parsed(R"("\x")"), BundleError, "test: expected one of");
    CHECK_THROWS(parsed(R"("\u12g4")"), BundleError, "four hexadecimal digits, got 'g' at byte 5");
    CHECK_THROWS(parsed(R"("\ud83d")"), BundleError, "a low surrogate");
    CHECK_THROWS(parsed(R"("\ud83dx")"), BundleError, "a low surrogate");
    CHECK_THROWS(parsed(R"("\ud83d\u0041")"), BundleError, "a low surrogate");
    CHECK_THROWS(parsed(R"("\ude00")"), BundleError, "a high surrogate");
    CHECK_THROWS(parsed("\"a\nb\""), BundleError, "a control character");
    CHECK_THROWS(parsed("\"\xC3(\""), BundleError, "valid UTF-8, got byte 0xc3 at byte 1");
    CHECK_THROWS(parsed("\"\xED\xA0\x80\""), BundleError, "valid UTF-8");
}

TEST(json_refuses_what_is_not_json) {
    for (const char* text : {"",        " ",    "[1,]", "{\"a\":1,}", "{a:1}", "[1 2]", "01",
                             "-",       "+1",   ".5",   "1.",         "1e",    "0x1",   "tru",
                             "True",    "NaN",  "'a'",  "[",          "{",     "[1",    "{\"a\"",
                             "{\"a\":", "\"a",  "\"\\", "\"\\u12",    "1 2",   "[] []", "\xEF\xBB\xBF[]",
                             "// a\n1", "1e999"}) {
        CHECK_THROWS(parsed(text), BundleError, "json: test: expected");
    }
    CHECK_THROWS(parsed(std::string("1\0", 2)), BundleError, "the end of the text, got byte 0x00 at byte 1");
    CHECK_THROWS(parsed(R"({"a": 1, "b": 2, "a": 3})"), BundleError, "\"a\" twice");
}

TEST(json_nests_to_a_limit) {
    CHECK_EQ(parsed(nested(256)).array().size(), size_t{1});
    CHECK_THROWS(parsed(nested(257)), BundleError, "256 nested");
    CHECK_THROWS(parsed(std::string(1000000, '[')), BundleError, "256 nested");
}

TEST(utf8_is_strict) {
    for (const char* text : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                             "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE4\xB8", "\xF0\x9F\x98"}) {
        CHECK(!mimo::utf8_step(text).valid);
    }
    for (const char32_t c : {U'\0', U'\x7F', U'\x80', U'\u07FF', U'\u0800', U'\uD7FF', U'\uFFFF', U'\U0010FFFF'}) {
        CHECK(mimo::from_utf8(mimo::to_utf8(std::u32string(1, c)), "test") == std::u32string(1, c));
    }
    CHECK_THROWS(mimo::from_utf8("ab\xFFz", "test"), InputError, "test: expected valid UTF-8, got byte 0xff at byte 2");
}

TEST(utf8_replaces_each_longest_start) {  // Unicode 3.9, table 3-8 and its neighbours
    CHECK_EQ(mimo::lossy_utf8("a\xF0\x9F\x98"), "a\uFFFD");
    CHECK_EQ(mimo::lossy_utf8("\xE4\xB8z"), "\uFFFDz");
    CHECK_EQ(mimo::lossy_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
             "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
    CHECK_EQ(mimo::lossy_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
             "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
    CHECK_EQ(mimo::lossy_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
}

TEST(nfc_composes_and_orders) {  // lines of NormalizationTest.txt
    CHECK_EQ(normalized(U"\u1E0A\u0323"), "\u1E0C\u0307");
    CHECK_EQ(normalized(U"D\u0307\u0323"), "\u1E0C\u0307");
    CHECK_EQ(normalized(U"\u212B\u2126\u0344"), "\u00C5\u03A9\u0308\u0301");
    CHECK_EQ(normalized(U"a\u0315\u0300\u05AE\u0300b"), "\u00E0\u05AE\u0300\u0315b");
    CHECK_EQ(normalized(U"\u0958\uFB1D"), "\u0915\u093C\u05D9\u05B4");
    CHECK_EQ(normalized(U"\u09C7\u0334\u09BE"), "\u09C7\u0334\u09BE");
    CHECK_EQ(normalized(U"\u0061\u0301\u0301"), "\u00E1\u0301");
    CHECK_EQ(normalized(U"\u1100\u1161\u11A8\u1100\u1161"), "\uAC01\uAC00");
    CHECK_EQ(normalized(U"\uAC00\u11A7\uAC00\u11A8\uAC01\u11A8"), "\uAC00\u11A7\uAC01\uAC01\u11A8");
    CHECK_EQ(normalized(U"\U0001D15E\U0002F800"), "\U0001D157\U0001D165\u4E3D");
    CHECK_EQ(normalized(U"\u0301a"), "\u0301a");
    CHECK_EQ(normalized(U""), "");
}

TEST(nfc_is_idempotent) {
    for (char32_t c = 0; c < 0x30000; ++c) {
        if (c >= 0xD800 && c < 0xE000) continue;
        const std::u32string once = mimo::nfc(std::u32string{U'e', c, U'\u0323', U'\u0301'});
        if (mimo::nfc(once) != once) CHECK_EQ(static_cast<uint32_t>(c), 0u);
    }
}

TEST(tokenizer_merges_by_rank) {
    const Tokenizer tokenizer = tiny();
    CHECK_EQ(tokenizer.size(), 262);
    CHECK_EQ(cut(tokenizer, "ababab"), "abab|ab");
    CHECK_EQ(cut(tokenizer, "aabb"), "a|ab|b");
    CHECK_EQ(cut(tokenizer, "b ab a"), "b| |ab| a");
    CHECK_EQ(cut(tokenizer, ""), "");
    CHECK(tokenizer.encode("<|x|>ab") == std::vector<int32_t>({260, 256}));
    CHECK(tokenizer.encode("<|x|>yab") == std::vector<int32_t>({261, 256}));
    CHECK_EQ(cut(tokenizer, "<|x|"), "<|||x||");
    TinyFile reversed{.merges = R"(["#version: 0.2", "a b", "Ġ a"])"};
    CHECK_EQ(cut(tiny(reversed), " abab"), " |ab|ab");
    TinyFile whole{.merges = "[]", .model_options = R"("ignore_merges": true)"};
    CHECK_EQ(cut(tiny(whole), "abab aba"), "abab| |a|b|a");
}

TEST(tokenizer_normalizes) {
    CHECK(tiny().encode("e\u0301") == tiny().encode("\u00e9"));
    CHECK(tiny({.normalizer = "null"}).encode("e\u0301") != tiny().encode("\u00e9"));
    // An added token is cut out of the raw text: the mark behind it stays alone.
    CHECK(tiny().encode("<|x|>\u0301").size() == 3);
}

TEST(tokenizer_splits_as_the_expression) {
    // Two letters merge only within a piece: " a" is one token, and "b " must never be one.
    const Tokenizer tokenizer = tiny();
    CHECK_EQ(cut(tokenizer, "ab ab"), "ab| |ab");
    CHECK_EQ(cut(tokenizer, "b  a"), "b| | a");
    CHECK_EQ(cut(tokenizer, "b \na"), "b| |\n|a");
    // "'s" ends a piece in any case and with the long s: what follows is a new one, so "ab" stays whole.
    const Tokenizer quote = tiny({.merges = R"([["a", "b"], ["b", "Ġ"]])"});
    CHECK_EQ(cut(quote, "'Sab'\u017Fab"), "'|S|ab|'|\xC5|\xBF|ab");
}

TEST(tokenizer_decodes) {
    const Tokenizer tokenizer = tiny();
    for (const char* text : {"", "ab", " ab\r\n", "\u4eca\u5929 \U0001F600", "<|x|>yz", "\u00e9"}) {
        CHECK_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    }
    const std::vector<int32_t> ids = tokenizer.encode("\u4eca");
    CHECK_EQ(tokenizer.decode(std::vector<int32_t>{ids[0], ids[1]}), "\uFFFD");
    CHECK_EQ(tokenizer.decode(std::vector<int32_t>{ids[0], 260, ids[1], ids[2]}), "\uFFFD<|x|>\uFFFD\uFFFD");
    CHECK_EQ(tokenizer.decode(std::vector<int32_t>{-1, 262, 1 << 30, 256}), "ab");
    CHECK_EQ(tokenizer.token_bytes(258), " a");
    CHECK_EQ(tokenizer.token_bytes(262), "");
    CHECK(tokenizer.find("<|x|>") == 260 && tokenizer.find("Ġa") == 258 && !tokenizer.find(" a"));
}

TEST(tokenizer_refuses_broken_text) {
    CHECK_THROWS(tiny().encode("ab\xED\xA0\x80"), InputError,
                 "tokenizer: expected valid UTF-8, got byte 0xed at byte 2");
    CHECK_THROWS(tiny().encode("\xE4\xB8"), InputError, "at byte 0");
}

TEST(tokenizer_refuses_other_files) {
    CHECK_THROWS(tiny({.normalizer = R"({"type": "NFKC"})"}), BundleError,
                 "normalizer.type to be \"NFC\", got \"NFKC\"");
    CHECK_THROWS(tiny({.split = R"(\p{N}{1,3})"}), BundleError, "pattern.Regex");
    CHECK_THROWS(tiny({.merges = R"([["a", "c"]])"}), BundleError, "model.merges");
    CHECK_THROWS(tiny({.merges = R"(["a b c"])"}), BundleError, "model.merges");
    CHECK_THROWS(tiny({.merges = R"([["a", 1]])"}), BundleError, "model.merges");
    CHECK_THROWS(tiny({.model_options = R"("dropout": 0.1)"}), BundleError, "model.dropout to be null, got 0.1");
    CHECK_THROWS(tiny({.model_options = R"("end_of_word_suffix": "</w>")"}), BundleError, "end_of_word_suffix");
    const auto token = [](const std::string& id, const std::string& word) {
        return TinyFile{.added = R"([{"id": )" + id + R"(, "content": "z", "single_word": )" + word +
                                 R"(, "lstrip": false, "rstrip": false, "normalized": false, "special": true}])"};
    };
    CHECK_THROWS(tiny(token("260", "true")), BundleError, "single_word to be false, got true");
    CHECK_THROWS(tiny(token("300", "false")), BundleError, "added_tokens[\"z\"].id to be");
    CHECK_THROWS(Tokenizer::parse("{}"), BundleError, "version to be \"1.0\", got nothing");
    CHECK_THROWS(Tokenizer::parse("[]"), BundleError, "an object");
}

TEST(tokenizer_takes_linear_time) {  // seconds if merging were quadratic, hours with 10^6
    const Tokenizer tokenizer = tiny();
    std::string letters;
    for (int i = 0; i < 100000; ++i) letters += "ab";
    CHECK_EQ(tokenizer.encode(letters).size(), size_t{50000});
    CHECK_EQ(tokenizer.encode(std::string(200000, ' ')).size(), size_t{200000});
}

TEST(capitalize_text_as_python) {
    using mimo::capitalize_text;
    CHECK_EQ(capitalize_text("HELLO WORLD"), "Hello world");
    CHECK_EQ(capitalize_text("hello"), "Hello");
    CHECK_EQ(capitalize_text("don't STOP"), "don't STOP");
    CHECK_EQ(capitalize_text("Hello"), "Hello");
    CHECK_EQ(capitalize_text(""), "");
    CHECK_EQ(capitalize_text("123"), "123");
    CHECK_EQ(capitalize_text("\u00df"), "Ss");
    CHECK_EQ(capitalize_text("\u01c6 abc"), "\u01c5 abc");
    CHECK_EQ(capitalize_text("\u01c5"), "\u01c5");
    CHECK_EQ(capitalize_text("\ufb03x"), "Ffix");
    CHECK_EQ(capitalize_text("\u00c9COLE"), "\u00c9cole");
    CHECK_EQ(capitalize_text("A\u0130"), "Ai\u0307");
    CHECK_EQ(capitalize_text("\u039f\u0394\u039f\u03a3"), "\u039f\u03b4\u03bf\u03c2");    // final sigma
    CHECK_EQ(capitalize_text("\u03a3\u0391\u03a3.\u03a3"), "\u03a3\u03b1\u03c3.\u03c2");  // the dot is ignorable
    CHECK_EQ(capitalize_text("\u03a3 \u03a3 \u0391\u03a3\u0301"),
             "\u03a3 \u03c3 \u03b1\u03c2\u0301");  // alone: not final
    CHECK_THROWS(capitalize_text("a\xFF"), InputError, "at byte 1");
}

TEST(has_han_is_one_block) {
    CHECK(mimo::has_han("abc\u4e00") && mimo::has_han("\u9fff"));
    CHECK(!mimo::has_han("\u4dff\ua000\u3042\uac00 abc") && !mimo::has_han("") && !mimo::has_han("\xE4\xB8"));
}
