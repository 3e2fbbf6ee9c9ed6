// Runs every TEST. Each argument NAME keeps those whose name contains it; -NAME leaves them out.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string_view>

#include "check.h"

int main(int count, char** arguments) {
    int passed = 0, failed = 0;
    for (const check::Case& test : check::cases()) {
        const auto wanted = [&](std::string_view rule) {
            const bool without = rule.starts_with('-');
            return (std::string_view(test.name).find(rule.substr(without)) == std::string_view::npos) == without;
        };
        if (!std::all_of(arguments + 1, arguments + count, wanted)) continue;
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
