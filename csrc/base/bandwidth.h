// How fast this machine reads memory right now: what the speed of decoding is to be compared with.
#pragma once

#include "base/pool.h"

namespace mimo {

// Bytes a second that the threads of the pool read together from memory far larger than the caches; the best of several
// passes over 256 MiB. Takes about a fifth of a second. Throws DeviceError without that much memory.
double read_bandwidth(const Pool& pool);

}  // namespace mimo
