# The cache kernels without any ExecuTorch dependency: target adakv_kernels. Included by every build of them
# (the wheel, the sanitizer tests, Android).
set(_csrc "${CMAKE_CURRENT_LIST_DIR}")
find_package(Threads REQUIRED)

# GCC would reassociate sums of integer vectors into trees, whose many partial sums do not fit the registers.
set(_chains "$<$<CXX_COMPILER_ID:GNU>:-fno-tree-reassoc;-fno-tree-ter>")

# Sanitizers check the same accesses at any level, and at -O3 a file of intrinsics takes minutes to compile with them.
set(_optimize -O3)
if(ADAKV_SANITIZE)
  set(_optimize -O1)
endif()

# Attention, one file for each instruction set. Nobody reads floating point exceptions: without them, loops with a
# comparison vectorise; nothing is contracted, so that results do not depend on the set.
set(_kernels)
function(adakv_attend_kernels name)
  add_library(adakv_attend_${name} OBJECT "${_csrc}/cache/attend_${name}.cpp")
  target_include_directories(adakv_attend_${name} PRIVATE "${_csrc}")
  # GCC 12 takes the intrinsics' own undefined vectors for mistakes.
  target_compile_options(adakv_attend_${name} PRIVATE ${_optimize} -Wall -Wextra -Wno-unused-function -Wno-maybe-uninitialized
                                                      -ffp-contract=off -fno-trapping-math ${_chains} ${ARGN})
  set(_kernels ${_kernels} $<TARGET_OBJECTS:adakv_attend_${name}> PARENT_SCOPE)
endfunction()
adakv_attend_kernels(scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  adakv_attend_kernels(avx2 -mavx2 -mfma -mf16c)
  adakv_attend_kernels(avxvnni -mavx2 -mfma -mf16c -mavxvnni)
  adakv_attend_kernels(avx512vnni -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
  set(_have_avx2 ADAKV_HAVE_AVX2)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  adakv_attend_kernels(neon)
  adakv_attend_kernels(neondot -march=armv8.2-a+dotprod)
  adakv_attend_kernels(neoni8mm -march=armv8.2-a+dotprod+i8mm)
endif()

# Products with weight matrices: a file for every instruction set.
set(_rows)
function(adakv_linear isa)
  add_library(adakv_linear_${isa} OBJECT "${_csrc}/linear/linear_${isa}.cpp")
  target_include_directories(adakv_linear_${isa} PRIVATE "${_csrc}")
  # Nobody reads floating point exceptions: without them, loops with a comparison vectorise. Results are the same.
  target_compile_options(adakv_linear_${isa} PRIVATE ${_optimize} -Wall -Wextra -Wno-unused-function -ffp-contract=off
                                                     -fno-trapping-math ${_chains} ${ARGN})
  set(_rows ${_rows} $<TARGET_OBJECTS:adakv_linear_${isa}> PARENT_SCOPE)
endfunction()
adakv_linear(baseline)
if(_have_avx2)
  adakv_linear(avx2 -mavx2 -mfma -mf16c)
  adakv_linear(avxvnni -mavx2 -mfma -mf16c -mavxvnni)
  # GCC 12 takes the intrinsics' own undefined vectors for mistakes.
  adakv_linear(avx512vnni -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
               -Wno-maybe-uninitialized)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  adakv_linear(neon)
  adakv_linear(dotprod -march=armv8.2-a+dotprod)
  adakv_linear(i8mm -march=armv8.2-a+dotprod+i8mm)
  set(_have_dotprod ADAKV_HAVE_DOTPROD)
endif()

add_library(adakv_kernels STATIC
  "${_csrc}/cpu.cpp" "${_csrc}/cache/quantizer.cpp" "${_csrc}/cache/bookkeeping.cpp" "${_csrc}/cache/attend.cpp"
  "${_csrc}/cache/attend_dispatch.cpp" "${_csrc}/linear/linear.cpp" "${_csrc}/linear/table.cpp"
  "${_csrc}/linear/int4.cpp" ${_rows} ${_kernels})
target_include_directories(adakv_kernels PUBLIC "${_csrc}")
target_compile_definitions(adakv_kernels PRIVATE ${_have_avx2} ${_have_dotprod})
# Packed bytes must not depend on whether the compiler fuses multiplications and additions.
target_compile_options(adakv_kernels PRIVATE -ffp-contract=off)
target_link_libraries(adakv_kernels PUBLIC Threads::Threads)
target_compile_options(adakv_kernels PRIVATE ${_optimize} -Wall -Wextra -Wno-unused-function)
