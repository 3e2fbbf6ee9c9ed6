// SHA-256 (FIPS 180-4), for checking the files of a bundle.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace mimo {

std::string sha256_hex(std::span<const uint8_t> bytes);

}  // namespace mimo
