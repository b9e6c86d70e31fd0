// Runs every TEST, or those whose name contains the argument. Exit status 1 if any failed.
#include <chrono>
#include <cstring>

#include "cache/attend_kernels.h"
#include "check.h"
#include "linear/linear.h"

int main(int argc, char** argv) {
  using namespace adakv::testing;
  using Clock = std::chrono::steady_clock;
  std::printf("attention kernels: %s, linear kernels: %s\n", adakv::attend_kernels().name,
              adakv::linear_kernels().name);
  int run = 0;
  for (const Case& test : cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = failures();
    const auto start = Clock::now();
    test.body();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::printf("%-6s %5.2f s  %s\n", failures() == before ? "ok" : "FAILED", seconds, test.name);
    std::fflush(stdout);
    ++run;
  }
  std::printf("%d tests, %d failed\n", run, failures());
  return run > 0 && failures() == 0 ? 0 : 1;
}
