# The cache kernels without any ExecuTorch dependency: target adakv_kernels. Included by every build of them
# (the wheel, the sanitizer tests, Android).
set(_csrc "${CMAKE_CURRENT_LIST_DIR}")
find_package(Threads REQUIRED)

add_library(adakv_rows_baseline OBJECT "${_csrc}/rows.cpp")
target_compile_definitions(adakv_rows_baseline PRIVATE ADAKV_ISA=baseline)
set(_rows $<TARGET_OBJECTS:adakv_rows_baseline>)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  add_library(adakv_rows_avx2 OBJECT "${_csrc}/rows.cpp")
  target_compile_definitions(adakv_rows_avx2 PRIVATE ADAKV_ISA=avx2)
  target_compile_options(adakv_rows_avx2 PRIVATE -mavx2 -mfma -mf16c)
  list(APPEND _rows $<TARGET_OBJECTS:adakv_rows_avx2>)
  set(_have_avx2 ADAKV_HAVE_AVX2)
endif()

# Products with blocks of weights, the same way; arm64 adds a build for the dot product instructions of Armv8.2.
function(adakv_block_kernels isa)
  add_library(adakv_blocks_${isa} OBJECT "${_csrc}/block_kernels.cpp")
  target_compile_definitions(adakv_blocks_${isa} PRIVATE ADAKV_ISA=${isa})
  # Nobody reads floating point exceptions: without them, loops with a comparison vectorise. Results are the same.
  target_compile_options(adakv_blocks_${isa} PRIVATE -O3 -Wall -Wextra -Wno-unused-function -ffp-contract=off
                                                     -fno-trapping-math ${ARGN})
endfunction()
adakv_block_kernels(baseline)
list(APPEND _rows $<TARGET_OBJECTS:adakv_blocks_baseline>)
if(_have_avx2)
  adakv_block_kernels(avx2 -mavx2 -mfma -mf16c)
  adakv_block_kernels(avx512vnni -mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512vnni)
  # Two blocks at a time. GCC 12 takes the intrinsics' own undefined vectors for mistakes.
  adakv_block_kernels(avx512wide -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
                      -DADAKV_TWO_BLOCKS -Wno-maybe-uninitialized)
  list(APPEND _rows $<TARGET_OBJECTS:adakv_blocks_avx2> $<TARGET_OBJECTS:adakv_blocks_avx512vnni>
       $<TARGET_OBJECTS:adakv_blocks_avx512wide>)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  adakv_block_kernels(dotprod -march=armv8.2-a+dotprod)
  list(APPEND _rows $<TARGET_OBJECTS:adakv_blocks_dotprod>)
  set(_have_dotprod ADAKV_HAVE_DOTPROD)
endif()

add_library(adakv_kernels STATIC "${_csrc}/quantizer.cpp" "${_csrc}/bookkeeping.cpp" "${_csrc}/attend.cpp"
                                 "${_csrc}/cpu.cpp" "${_csrc}/dispatch.cpp" "${_csrc}/blocks.cpp" "${_csrc}/table.cpp"
                                 "${_csrc}/int4.cpp" ${_rows})
target_include_directories(adakv_kernels PUBLIC "${_csrc}")
target_compile_definitions(adakv_kernels PRIVATE ${_have_avx2} ${_have_dotprod})
# Packed bytes must not depend on whether the compiler fuses multiplications and additions.
target_compile_options(adakv_kernels PRIVATE -ffp-contract=off)
target_link_libraries(adakv_kernels PUBLIC Threads::Threads)
foreach(_target adakv_kernels adakv_rows_baseline adakv_rows_avx2)
  if(TARGET ${_target})
    target_compile_options(${_target} PRIVATE -O3 -Wall -Wextra -Wno-unused-function)
  endif()
endforeach()
