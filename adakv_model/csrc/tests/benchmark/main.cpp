// Kernels of the cache and of the weights against the memory's bandwidth; scripts/bench_kernels.py reads the output.
//   kernel_benchmark [rounds=9] [threads=1,2] [slots=512,4096] [bits=2,3,4,8,16,...] [isas=avx2,...] [queries=3]
//                    [dim=64] [megabytes=128] [weights=1]
// One line of JSON a cell, with the nanoseconds of every run. All cells of a number of threads are run in turn, round
// after round. bits as in the layout: a width, or a byte for each band. The clock's cell counts cycles: its unit is
// one addition that waits for the one before it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cells.h"

namespace {

using namespace adakv;
using Clock = std::chrono::steady_clock;

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::vector<int> numbers(const std::string& text) {
  std::vector<int> out;
  for (const std::string& part : split(text)) out.push_back(std::atoi(part.c_str()));
  return out;
}

void print(const Cell& cell, int threads) {
  std::printf("{\"kind\": \"%s\", \"isa\": \"%s\", \"place\": \"%s\", \"bits\": %d, \"slots\": %d, \"threads\": %d",
              cell.kind.c_str(), cell.isa.c_str(), cell.place.c_str(), cell.bits, cell.slots, threads);
  std::printf(", \"units\": %lld, \"bytes\": %lld, \"ns\": [", static_cast<long long>(cell.units),
              static_cast<long long>(cell.bytes));
  for (size_t i = 0; i < cell.ns.size(); ++i) std::printf("%s%.0f", i > 0 ? ", " : "", cell.ns[i]);
  std::printf("]}\n");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  bool weights = true;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals),
                      value = equals < argument.size() ? argument.substr(equals + 1) : "";
    if (name == "rounds") {
      options.rounds = std::atoi(value.c_str());
    } else if (name == "threads") {
      options.threads = numbers(value);
    } else if (name == "slots") {
      options.slots = numbers(value);
    } else if (name == "bits") {
      options.bits = numbers(value);
    } else if (name == "isas") {
      options.isas = split(value);
    } else if (name == "queries") {
      options.queries = std::atoi(value.c_str());
    } else if (name == "dim") {
      options.dim = std::atoi(value.c_str());
    } else if (name == "megabytes") {
      options.megabytes = std::atoi(value.c_str());
    } else if (name == "weights") {
      weights = value != "0";
    } else {
      std::fprintf(stderr, "kernel_benchmark: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  Memory memory(int64_t(options.megabytes) << 20);
  for (int threads : options.threads) {
    SpinningPool pool(threads);
    std::vector<Cell> cells;
    add_memory_cells(cells, memory, pool);
    add_row_cells(cells, options, memory, pool);
    if (weights) add_weight_cells(cells, options, pool);
    for (int round = 0; round <= options.rounds; ++round) {  // the first one warms up
      for (Cell& cell : cells) {
        const auto start = Clock::now();
        cell.run();
        const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
        if (round > 0) cell.ns.push_back(ns);
      }
    }
    for (const Cell& cell : cells) print(cell, threads);
  }
}
