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

# Products with weight matrices: a file for every instruction set.
function(adakv_linear isa)
  add_library(adakv_linear_${isa} OBJECT "${_csrc}/linear_${isa}.cpp")
  # Nobody reads floating point exceptions: without them, loops with a comparison vectorise. Results are the same.
  target_compile_options(adakv_linear_${isa} PRIVATE -O3 -Wall -Wextra -Wno-unused-function -ffp-contract=off
                                                     -fno-trapping-math ${ARGN})
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

add_library(adakv_kernels STATIC "${_csrc}/quantizer.cpp" "${_csrc}/bookkeeping.cpp" "${_csrc}/attend.cpp"
                                 "${_csrc}/cpu.cpp" "${_csrc}/dispatch.cpp" "${_csrc}/linear.cpp" "${_csrc}/table.cpp"
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
