#include "io/tokenizer.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "base/error.h"
#include "io/json.h"
#include "io/unicode.h"

namespace mimo {

namespace {

// The only Split expression known here; split_piece() below is its matcher.
constexpr std::string_view split_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr int64_t id_limit = 1 << 24;  // far above any vocabulary; keeps a broken file from asking for a huge table

// ---- bytes as printable characters (GPT-2): a byte that prints stands for itself, the others for U+0100 onwards

constexpr bool prints(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
}

constexpr std::array<char32_t, 256> byte_spellings = [] {
    std::array<char32_t, 256> spellings{};
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) spellings[byte] = prints(byte) ? static_cast<char32_t>(byte) : next++;
    return spellings;
}();

std::string spell(std::string_view bytes) {
    std::string out;
    for (const char byte : bytes) append_utf8(out, byte_spellings[static_cast<unsigned char>(byte)]);
    return out;
}

// The bytes a token stands for; one that holds any other character stands for itself.
std::string unspell(std::string_view spelling) {
    constexpr std::array<int16_t, 0x144> bytes = [] {
        std::array<int16_t, 0x144> table{};
        table.fill(-1);
        for (int byte = 0; byte < 256; ++byte) table[byte_spellings[byte]] = static_cast<int16_t>(byte);
        return table;
    }();
    std::string out;
    for (size_t at = 0; at < spelling.size();) {
        const Utf8Step step = utf8_step(spelling.substr(at));
        if (step.code_point >= bytes.size() || bytes[step.code_point] < 0) return std::string(spelling);
        out += static_cast<char>(bytes[step.code_point]);
        at += step.bytes;
    }
    return out;
}

// ---- the fields of tokenizer.json

std::string shown(const Json* value) {
    if (value == nullptr) return "nothing";
    if (value->is_null()) return "null";
    if (value->is_string()) return "\"" + value->string() + "\"";
    if (value->is_number()) return message(value->number());
    if (value->is_array()) return message("an array of ", value->array().size());
    if (value->is_object()) {
        const Json* type = value->find("type");
        return type == nullptr ? "an object" : "an object of type " + shown(type);
    }
    return value->boolean() ? "true" : "false";
}

[[noreturn]] void refuse(std::string_view field, std::string_view expected, std::string_view got) {
    throw BundleError(message("tokenizer: expected ", field, " to be ", expected, ", got ", got,
                              "; only tokenizers of the Qwen2 family are read"));
}

bool is_text(const Json* value, std::string_view text) {
    return value != nullptr && value->is_string() && value->string() == text;
}

bool is_null(const Json* value) {
    return value == nullptr || value->is_null();
}

// Where the text must be, it is; path is what the error calls the parent.
void expect_text(const Json& parent, const std::string& path, std::string_view key, std::string_view text) {
    if (!parent.is_object())
        refuse(path.empty() ? "the file" : path.substr(0, path.size() - 1), "an object", shown(&parent));
    const Json* value = parent.find(key);
    if (!is_text(value, text)) refuse(message(path, key), message("\"", text, "\""), shown(value));
}

bool flag(const Json& parent, const std::string& path, std::string_view key) {
    const Json* value = parent.find(key);
    const std::string got = shown(value);
    if (got != "true" && got != "false") refuse(message(path, key), "true or false", got);
    return value->boolean();
}

void expect_false(const Json& parent, const std::string& path, std::string_view key) {
    if (flag(parent, path, key)) refuse(message(path, key), "false", "true");
}

int32_t token_id(const Json& value, const std::string& token) {
    if (!value.is_number()) refuse(message("the id of \"", token, "\""), "a number", shown(&value));
    const int64_t id = value.integer();
    if (id < 0 || id >= id_limit) {
        refuse(message("the id of \"", token, "\""), message("in [0, ", id_limit, ")"), message(id));
    }
    return static_cast<int32_t>(id);
}

bool reads_nfc(const Json& root) {
    const Json* normalizer = root.find("normalizer");
    if (is_null(normalizer)) return false;
    expect_text(*normalizer, "normalizer.", "type", "NFC");
    return true;
}

void expect_split_then_bytes(const Json& root) {
    const Json& sequence = root.at("pre_tokenizer");
    if (!sequence.is_object()) refuse("pre_tokenizer", "an object of type \"Sequence\"", shown(&sequence));
    expect_text(sequence, "pre_tokenizer.", "type", "Sequence");
    const Json::Array& steps = sequence.at("pretokenizers").array();
    if (steps.size() != 2)
        refuse("pre_tokenizer.pretokenizers", "Split and ByteLevel", message(steps.size(), " steps"));
    const std::string split = "pre_tokenizer.pretokenizers[0].", bytes = "pre_tokenizer.pretokenizers[1].";
    expect_text(steps[0], split, "type", "Split");
    expect_text(steps[0].at("pattern"), split + "pattern.", "Regex", split_regex);
    expect_text(steps[0], split, "behavior", "Isolated");
    expect_false(steps[0], split, "invert");
    expect_text(steps[1], bytes, "type", "ByteLevel");
    expect_false(steps[1], bytes, "add_prefix_space");
    expect_false(steps[1], bytes, "use_regex");
}

// What stands around the model. The other options of the ByteLevel steps change offsets only.
void expect_known_frame(const Json& root) {
    expect_text(root, "", "version", "1.0");
    for (const char* field : {"truncation", "padding"}) {
        if (const Json* value = root.find(field); !is_null(value)) refuse(field, "null", shown(value));
    }
    expect_split_then_bytes(root);
    if (const Json* value = root.find("post_processor"); !is_null(value)) {
        expect_text(*value, "post_processor.", "type", "ByteLevel");
    }
    expect_text(root.at("decoder"), "decoder.", "type", "ByteLevel");
}

// unk_token, fuse_unk and byte_fallback are not read: every byte has a token, so nothing is ever unknown.
void expect_known_model(const Json& model) {
    expect_text(model, "model.", "type", "BPE");
    if (const Json* value = model.find("dropout"); !is_null(value)) refuse("model.dropout", "null", shown(value));
    for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        const Json* value = model.find(field);
        if (!is_null(value) && !is_text(value, "")) refuse(message("model.", field), "null or \"\"", shown(value));
    }
}

// "a b" in older files, ["a", "b"] in newer ones.
std::pair<std::string_view, std::string_view> merge_parts(const Json& merge) {
    if (merge.is_string()) {
        const std::string_view line = merge.string();
        const size_t space = line.find(' ');
        if (space != line.npos && line.find(' ', space + 1) == line.npos) {
            return {line.substr(0, space), line.substr(space + 1)};
        }
    } else if (merge.is_array() && merge.array().size() == 2) {
        const Json &left = merge.array()[0], &right = merge.array()[1];
        if (left.is_string() && right.is_string()) return {left.string(), right.string()};
    }
    refuse("every item of model.merges", "a pair of tokens", shown(&merge));
}

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

// ---- the Split expression

struct Letter {
    char32_t code_point;
    CharClass kind;
    size_t start;  // byte
};

bool is_newline(const Letter& letter) {
    return letter.code_point == '\n' || letter.code_point == '\r';
}

template <typename Test>
size_t run_end(std::span<const Letter> text, size_t at, Test test) {
    while (at < text.size() && test(text[at])) ++at;
    return at;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d); letters taken, 0 if none matches. Beside A-Z, only the long s folds to one of these.
size_t contraction(std::span<const Letter> text, size_t at) {
    const auto folded = [&](size_t i) -> char32_t {
        if (i >= text.size()) return 0;
        const char32_t c = text[i].code_point;
        return c == U'\u017F' ? 's' : c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
    };
    if (text[at].code_point != '\'') return 0;
    const char32_t first = folded(at + 1), second = folded(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    const bool pair = ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    return pair ? 3 : 0;
}

// \s*[\r\n]+ | \s+(?!\S) | \s+: to the last newline of the run; else all but its last if anything follows.
size_t space_end(std::span<const Letter> text, size_t at) {
    const size_t end = run_end(text, at, [](const Letter& letter) { return letter.kind == CharClass::space; });
    for (size_t i = end; i > at; --i) {
        if (is_newline(text[i - 1])) return i;
    }
    return end == text.size() || end - at == 1 ? end : end - 1;
}

// The end of the piece that starts at `at`: the alternatives in their order, the first that matches wins.
size_t split_piece(std::span<const Letter> text, size_t at) {
    const auto is_letter = [](const Letter& letter) { return letter.kind == CharClass::letter; };
    const auto is_symbol = [](const Letter& letter) { return letter.kind == CharClass::other; };
    const Letter& first = text[at];
    if (const size_t letters = contraction(text, at); letters != 0) return at + letters;

    const bool may_lead = !is_letter(first) && first.kind != CharClass::number && !is_newline(first);
    const size_t word = at + (may_lead ? 1 : 0);
    if (const size_t end = run_end(text, word, is_letter); end > word) return end;

    if (first.kind == CharClass::number) return at + 1;

    const size_t symbols = at + (first.code_point == ' ' ? 1 : 0);
    if (const size_t end = run_end(text, symbols, is_symbol); end > symbols) return run_end(text, end, is_newline);

    return space_end(text, at);
}

std::vector<Letter> letters_of(std::string_view utf8) {
    std::vector<Letter> letters;
    letters.reserve(utf8.size());
    for (size_t at = 0; at < utf8.size();) {
        const Utf8Step step = utf8_step(utf8.substr(at));
        letters.push_back({step.code_point, char_class(step.code_point), at});
        at += step.bytes;
    }
    return letters;
}

// ---- white space beside an added token

size_t start_of_space_before(std::string_view text, size_t at) {
    while (at > 0) {
        size_t previous = at - 1;
        while ((text[previous] & 0xC0) == 0x80) --previous;
        if (char_class(utf8_step(text.substr(previous)).code_point) != CharClass::space) break;
        at = previous;
    }
    return at;
}

size_t end_of_space_after(std::string_view text, size_t at) {
    while (at < text.size()) {
        const Utf8Step step = utf8_step(text.substr(at));
        if (char_class(step.code_point) != CharClass::space) break;
        at += step.bytes;
    }
    return at;
}

}  // namespace

Tokenizer Tokenizer::parse(std::string_view tokenizer_json) {
    const Json root = Json::parse(tokenizer_json, "tokenizer.json");
    expect_known_frame(root);
    const Json& model = root.at("model");
    expect_known_model(model);

    Tokenizer tokenizer;
    tokenizer.normalize_ = reads_nfc(root);
    tokenizer.whole_pieces_ = model.find("ignore_merges") != nullptr && flag(model, "model.", "ignore_merges");
    tokenizer.read_vocabulary(model);
    tokenizer.read_merges(model);
    if (const Json* tokens = root.find("added_tokens"); !is_null(tokens)) tokenizer.read_added_tokens(*tokens);
    return tokenizer;
}

void Tokenizer::read_vocabulary(const Json& model) {
    const Json::Object& tokens = model.at("vocab").object();
    vocabulary_.reserve(tokens.size());
    for (const auto& [token, value] : tokens) {
        const int32_t id = token_id(value, token);
        if (static_cast<size_t>(id) < bytes_.size() && bytes_[id]) {
            refuse(message("the id of \"", token, "\""), "its own", message(id, " a second time"));
        }
        name_token(id, token);
        vocabulary_.emplace(token, id);
    }
    for (int byte = 0; byte < 256; ++byte) {
        const std::string spelling = spell(std::string(1, static_cast<char>(byte)));
        const auto found = vocabulary_.find(spelling);
        if (found == vocabulary_.end()) refuse("model.vocab", "a token for every byte", message("none for ", byte));
        byte_ids_[byte] = found->second;
    }
    size_ = static_cast<int32_t>(tokens.size());
}

void Tokenizer::read_merges(const Json& model) {
    const auto id_of = [&](std::string_view token) {
        const auto found = vocabulary_.find(token);
        if (found == vocabulary_.end()) {
            refuse("every token of model.merges", "in model.vocab", message("\"", token, "\", which is not"));
        }
        return found->second;
    };
    const Json::Array& merges = model.at("merges").array();
    merges_.reserve(merges.size());
    int32_t rank = 0;
    for (const Json& merge : merges) {
        if (merge.is_string() && merge.string().starts_with("#version")) continue;  // kept from merges.txt
        const auto [left, right] = merge_parts(merge);
        const int32_t whole = id_of(std::string(left) + std::string(right));
        merges_.insert_or_assign(pair_key(id_of(left), id_of(right)), Merge{.rank = rank++, .id = whole});
    }
}

// `tokenizers` ignores the ids of the file and counts on from the vocabulary: a file where they differ is refused.
void Tokenizer::read_added_tokens(const Json& tokens) {
    for (const Json& token : tokens.array()) {
        const std::string& content = token.at("content").string();
        const std::string path = message("added_tokens[\"", content, "\"].");
        if (content.empty() || added_.contains(content)) refuse(path + "content", "a new token", "\"" + content + "\"");
        flag(token, path, "special");  // of no effect here: special tokens are cut out and kept like the others
        expect_false(token, path, "single_word");
        const bool normalized = flag(token, path, "normalized");
        if (normalized && normalize_ && to_utf8(nfc(from_utf8(content, "tokenizer"))) != content) {
            refuse(path + "content", "in normalisation form C", "\"" + content + "\"");
        }
        const auto in_vocabulary = vocabulary_.find(content);
        const bool is_new = in_vocabulary == vocabulary_.end();
        const int32_t id = token_id(token.at("id"), content);
        const int32_t expected = is_new ? size_ : in_vocabulary->second;
        if (id != expected) refuse(path + "id", std::to_string(expected), std::to_string(id));
        if (is_new) ++size_;

        name_token(id, content);
        added_.emplace(content, id);
        (normalized ? normal_tokens_ : raw_tokens_)
            .push_back({.content = content,
                        .id = id,
                        .strip_left = flag(token, path, "lstrip"),
                        .strip_right = flag(token, path, "rstrip")});
    }
    const auto longer = [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); };
    std::sort(raw_tokens_.begin(), raw_tokens_.end(), longer);
    std::sort(normal_tokens_.begin(), normal_tokens_.end(), longer);
}

void Tokenizer::name_token(int32_t id, std::string_view spelling) {
    if (static_cast<size_t>(id) >= bytes_.size()) bytes_.resize(id + size_t{1});
    bytes_[id] = unspell(spelling);
}

// Leftmost, then longest; what a token strips away does not move the search on.
std::vector<Tokenizer::Cut> Tokenizer::cut_out(std::string_view text, const std::vector<AddedToken>& tokens) {
    std::array<bool, 256> begins{};
    for (const AddedToken& token : tokens) begins[static_cast<unsigned char>(token.content[0])] = true;
    std::vector<Cut> cuts;
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
        const auto here = [&](const AddedToken& token) { return text.substr(at).starts_with(token.content); };
        const auto token = begins[static_cast<unsigned char>(text[at])]
                               ? std::find_if(tokens.begin(), tokens.end(), here)
                               : tokens.end();
        if (token == tokens.end()) {
            ++at;
            continue;
        }
        const size_t start = token->strip_left ? std::max(start_of_space_before(text, at), done) : at;
        at += token->content.size();
        const size_t stop = token->strip_right ? end_of_space_after(text, at) : at;
        if (done < start) cuts.push_back({done, start, std::nullopt});
        cuts.push_back({start, stop, token->id});
        done = stop;
    }
    if (done != text.size()) cuts.push_back({done, text.size(), std::nullopt});
    return cuts;
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8) const {
    std::vector<int32_t> ids;
    from_utf8(utf8, "tokenizer");
    for (const Cut& cut : cut_out(utf8, raw_tokens_)) {
        if (cut.id) {
            ids.push_back(*cut.id);
            continue;
        }
        std::string text(utf8.substr(cut.start, cut.stop - cut.start));
        if (normalize_) text = to_utf8(nfc(from_utf8(text, "tokenizer")));
        for (const Cut& inner : cut_out(text, normal_tokens_)) {
            if (inner.id) {
                ids.push_back(*inner.id);
            } else {
                encode_text(std::string_view(text).substr(inner.start, inner.stop - inner.start), ids);
            }
        }
    }
    return ids;
}

void Tokenizer::encode_text(std::string_view normalized, std::vector<int32_t>& ids) const {
    const std::vector<Letter> letters = letters_of(normalized);
    const auto start_of = [&](size_t i) { return i < letters.size() ? letters[i].start : normalized.size(); };
    for (size_t at = 0; at < letters.size();) {
        const size_t end = split_piece(letters, at);
        encode_piece(normalized.substr(start_of(at), start_of(end) - start_of(at)), ids);
        at = end;
    }
}

const Tokenizer::Merge* Tokenizer::find_merge(int32_t left, int32_t right) const {
    const auto found = merges_.find(pair_key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

// Applies the merge of lowest rank, the leftmost first, until none is left. A heap of candidates over a linked list of
// symbols: a long piece costs n log n. A candidate whose symbols changed meanwhile is stale and skipped.
void Tokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
    if (whole_pieces_) {
        if (const auto found = vocabulary_.find(spell(piece)); found != vocabulary_.end()) {
            ids.push_back(found->second);
            return;
        }
    }
    struct Symbol {
        int32_t id;  // -1: merged into the one before
        size_t previous, next;
    };
    struct Candidate {
        int32_t rank;
        size_t at;  // the left symbol
        int32_t whole;
        bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
    };
    constexpr size_t none = static_cast<size_t>(-1);
    const size_t size = piece.size();
    std::vector<Symbol> symbols(size);
    for (size_t i = 0; i < size; ++i) {
        symbols[i] = {byte_ids_[static_cast<unsigned char>(piece[i])], i == 0 ? none : i - 1,
                      i + 1 == size ? none : i + 1};
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    const auto propose = [&](size_t left, size_t right) {
        if (left == none || right == none) return;
        const Merge* merge = find_merge(symbols[left].id, symbols[right].id);
        if (merge != nullptr) candidates.push({merge->rank, left, merge->id});
    };
    for (size_t i = 0; i + 1 < size; ++i) propose(i, i + 1);
    while (!candidates.empty()) {
        const Candidate best = candidates.top();
        candidates.pop();
        Symbol& left = symbols[best.at];
        if (left.id < 0 || left.next == none) continue;
        Symbol& right = symbols[left.next];
        // Compares the result, not the rank, as `tokenizers` does: two pairs may merge to the same token.
        const Merge* merge = find_merge(left.id, right.id);
        if (merge == nullptr || merge->id != best.whole) continue;
        left.id = best.whole;
        left.next = right.next;
        right.id = -1;
        if (left.next != none) symbols[left.next].previous = best.at;
        propose(left.previous, best.at);
        propose(best.at, left.next);
    }
    for (const Symbol& symbol : symbols) {
        if (symbol.id >= 0) ids.push_back(symbol.id);
    }
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
    std::string bytes;
    for (const int32_t id : ids) {
        if (id >= 0 && static_cast<size_t>(id) < bytes_.size() && bytes_[id]) bytes += *bytes_[id];
    }
    return lossy_utf8(bytes);
}

std::string Tokenizer::token_bytes(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < bytes_.size() ? bytes_[id].value_or("") : "";
}

std::optional<int32_t> Tokenizer::find(std::string_view token) const {
    for (const Vocabulary* tokens : {&added_, &vocabulary_}) {
        if (const auto found = tokens->find(token); found != tokens->end()) return found->second;
    }
    return std::nullopt;
}

}  // namespace mimo
