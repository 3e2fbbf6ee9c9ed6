// The checkpoint's text tokenizer: byte-level BPE as in a Hugging Face tokenizer.json of the Qwen2 family. Upstream
// calls it through `transformers`; the ids and texts here equal those of the `tokenizers` library, release 0.23.
//
//   text -> added tokens cut out -> NFC -> pieces of the Split expression -> bytes -> merges by rank -> ids
//   ids -> token bytes -> UTF-8, U+FFFD for broken bytes
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mimo {

class Json;

class Tokenizer {
public:
    // tokenizer_json: the whole file. Throws BundleError naming the field that this implementation does not know.
    static Tokenizer parse(std::string_view tokenizer_json);

    // Ids of the text, none added (add_special_tokens=False). Throws InputError if utf8 is not valid UTF-8.
    std::vector<int32_t> encode(std::string_view utf8) const;

    // Text of the ids, special tokens kept, unknown ids skipped, U+FFFD for bytes that are not UTF-8.
    std::string decode(std::span<const int32_t> ids) const;

    // Raw bytes, perhaps part of a character; "" if the id is unknown.
    std::string token_bytes(int32_t id) const;

    // token: as spelt in the file, an added token or one of the vocabulary ("Ġthe").
    std::optional<int32_t> find(std::string_view token) const;

    // Number of tokens, the added ones included.
    int32_t size() const { return size_; }

private:
    struct StringHash : std::hash<std::string_view> {
        using is_transparent = void;
    };
    using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;
    struct Merge {
        int32_t rank, id;
    };
    struct AddedToken {
        std::string content;
        int32_t id;
        bool strip_left, strip_right;  // takes the white space beside it along
    };
    struct Cut {  // bytes [start, stop) of a text; id: of the added token, or nothing
        size_t start, stop;
        std::optional<int32_t> id;
    };

    void read_vocabulary(const Json& model);
    void read_merges(const Json& model);
    void read_added_tokens(const Json& tokens);
    void name_token(int32_t id, std::string_view spelling);

    static std::vector<Cut> cut_out(std::string_view text, const std::vector<AddedToken>& tokens);
    void encode_text(std::string_view normalized, std::vector<int32_t>& ids) const;
    void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;
    const Merge* find_merge(int32_t left, int32_t right) const;

    Vocabulary vocabulary_, added_;
    std::unordered_map<uint64_t, Merge> merges_;          // left id << 32 | right id
    std::vector<AddedToken> raw_tokens_, normal_tokens_;  // cut out before and after NFC; longest first
    std::vector<std::optional<std::string>> bytes_;       // of each id
    std::array<int32_t, 256> byte_ids_{};
    bool normalize_ = false, whole_pieces_ = false;  // NFC; look a piece up before merging (ignore_merges)
    int32_t size_ = 0;
};

}  // namespace mimo
