// What every file that registers operators with ExecuTorch needs: its types, argument checks, its thread pool.
#pragma once

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <array>

#include "parallel.h"

namespace adakv {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

#define ADAKV_CHECK(condition) ET_KERNEL_CHECK(ctx, condition, InvalidArgument, out)

// ExecuTorch's thread pool as a ParallelFor.
inline ParallelFor pool() {
  const auto start = [](int n, const std::function<void(int)>& worker) {
    executorch::extension::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) worker(int(i));
    });
  };
  return {int(executorch::extension::get_thread_count()), start};
}

// Logs the first token id outside the vocabulary; true if there is none.
inline bool tokens_ok(const Tensor& tokens, int64_t vocab) {
  const int64_t* ids = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      ET_LOG(Error, "adakv: token id %lld is outside the vocabulary of %lld", (long long)ids[i], (long long)vocab);
      return false;
    }
  }
  return true;
}

template <size_t N>
bool resize(Tensor& out, const std::array<SizesType, N>& sizes) {
  return executorch::runtime::resize_tensor(out, {sizes.data(), N}) == Error::Ok;
}

}  // namespace adakv
