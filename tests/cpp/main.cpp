// Runs every TEST, or those whose name contains the first argument.
#include <cstdio>
#include <exception>
#include <string_view>

#include "check.h"

int main(int count, char** arguments) {
    const std::string_view filter = count > 1 ? arguments[1] : "";
    int passed = 0, failed = 0;
    for (const check::Case& test : check::cases()) {
        if (std::string_view(test.name).find(filter) == std::string_view::npos) continue;
        check::failures().clear();
        try {
            test.body();
        } catch (const std::exception& error) {
            check::fail(__FILE__, __LINE__, "it threw ", error.what());
        }
        (check::failures().empty() ? passed : failed) += 1;
        for (const std::string& failure : check::failures()) std::printf("%s: %s\n", test.name, failure.c_str());
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
