#include "process.h"

#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace adakv::runner {

Memory memory() {
  Memory found;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string key;
    int64_t kib = -1;
    words >> key >> kib;
    if (key == "VmRSS:") found.resident = kib * 1024;
    if (key == "VmHWM:") found.peak = kib * 1024;
    if (key == "RssAnon:") found.anonymous = kib * 1024;
    if (key == "RssFile:") found.file = kib * 1024;
  }
  if (found.peak < 0) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    found.peak = int64_t(usage.ru_maxrss);
#else
    found.peak = int64_t(usage.ru_maxrss) * 1024;
#endif
  }
  return found;
}

std::vector<int64_t> allowed_cores() {
  std::vector<int64_t> cores;
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  }
#endif
  return cores;
}

std::vector<int64_t> clocks_khz(const std::vector<int64_t>& cores) {
  std::vector<int64_t> clocks;
  for (const int64_t core : cores) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(core) + "/cpufreq/scaling_cur_freq");
    int64_t khz = 0;
    if (!(file >> khz)) return {};
    clocks.push_back(khz);
  }
  return clocks;
}

int64_t now_ns() {
  using std::chrono::steady_clock;
  static const steady_clock::time_point start = steady_clock::now();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now() - start).count();
}

void make_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
    throw std::runtime_error("cannot make the folder " + path + ": " + std::strerror(errno));
  }
}

void set_cpu_mask(const std::string& hex) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long mask = std::strtoull(hex.c_str(), &end, 16);
  if (hex.empty() || *end != '\0' || errno != 0 || mask == 0) {
    throw std::runtime_error("--cpu-mask takes a hexadecimal number above 0, not '" + hex + "'");
  }
#ifdef __linux__
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (int core = 0; core < 64; ++core) {
    if (mask >> core & 1) CPU_SET(core, &cores);
  }
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) {
    throw std::runtime_error("--cpu-mask " + hex + " cannot be used here: " + std::strerror(errno));
  }
#else
  throw std::runtime_error("--cpu-mask needs Linux or Android");
#endif
}

}  // namespace adakv::runner
