# CUDA without CMake's CUDA language: its compiler check fails on the toolkit from PyPI (no lib64), and here each
# source has its own architectures and a log. Gives LOWBIT_NVCC (or an empty value), lowbit_nvcc() and
# LOWBIT_CUDART (static).

if(POLICY CMP0116)
  cmake_policy(SET CMP0116 NEW)  # dependency files hold absolute paths, so old and new agree
endif()
set(LOWBIT_CUDA "AUTO" CACHE STRING "ON, OFF, or AUTO: when there is an nvcc and torch is a CUDA build")
set(LOWBIT_CUDA_ARCHS "80;90a" CACHE STRING "SASS for these; 90a means the wgmma kernels. PTX of compute_80 is always added")
set(LOWBIT_NVCC_FLAGS "" CACHE STRING "more flags for nvcc, such as -lineinfo")

# $CUDA_HOME, then PATH, then `pip install "cuda-toolkit[nvcc,cudart,cccl]"` beside torch, then the usual place.
file(GLOB pypi "${TORCH_DIR}/../nvidia/cu*/bin")
find_program(LOWBIT_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS ${pypi} /usr/local/cuda/bin)

set(LOWBIT_HAVE_CUDA OFF)
if(LOWBIT_CUDA STREQUAL "AUTO")
  if(LOWBIT_NVCC AND EXISTS "${TORCH_DIR}/lib/libtorch_cuda.so")
    set(LOWBIT_HAVE_CUDA ON)
  endif()
elseif(LOWBIT_CUDA)
  if(NOT LOWBIT_NVCC)
    message(FATAL_ERROR "LOWBIT_CUDA=${LOWBIT_CUDA}, but no nvcc in CUDA_HOME, PATH or ${TORCH_DIR}/../nvidia. "
                        "Set LOWBIT_NVCC, or: pip install \"cuda-toolkit[nvcc,cudart,cccl]==13.0.*\"")
  endif()
  set(LOWBIT_HAVE_CUDA ON)
endif()
if(NOT LOWBIT_HAVE_CUDA)
  message(STATUS "CUDA kernels: no (LOWBIT_CUDA=${LOWBIT_CUDA}, nvcc ${LOWBIT_NVCC})")
  return()
endif()

# nvcc may be a wrapper script, so it is asked where its toolkit is.
execute_process(COMMAND "${LOWBIT_NVCC}" --dryrun -x cu -c /dev/null -o /dev/null ERROR_VARIABLE dryrun RESULT_VARIABLE failed)
if(failed OR NOT dryrun MATCHES "TOP=([^\r\n]+)")
  message(FATAL_ERROR "${LOWBIT_NVCC} does not work:\n${dryrun}")
endif()
get_filename_component(top "${CMAKE_MATCH_1}" ABSOLUTE)
find_library(LOWBIT_CUDART libcudart_static.a NO_DEFAULT_PATH
             PATHS "${top}/lib64" "${top}/lib" "${top}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib" "${top}/targets/sbsa-linux/lib")
if(NOT LOWBIT_CUDART)
  message(FATAL_ERROR "no libcudart_static.a under ${top}; with PyPI's toolkit: the extra cudart")
endif()
message(STATUS "CUDA kernels: ${LOWBIT_CUDA_ARCHS} by ${LOWBIT_NVCC}, ${LOWBIT_CUDART}")

# The -gencode flags for SASS of `archs`; "ptx80" among them adds the PTX that later cards compile themselves.
function(lowbit_gencode out)
  set(flags)
  foreach(arch IN LISTS ARGN)
    if(arch STREQUAL "ptx80")
      list(APPEND flags -gencode arch=compute_80,code=compute_80)
    else()
      list(APPEND flags -gencode arch=compute_${arch},code=sm_${arch})
    endif()
  endforeach()
  set(${out} ${flags} PARENT_SCOPE)
endfunction()

# lowbit_nvcc(OUT source archs...): compiles one source; appends the object to the list OUT. The object is
# cuda/<folder>/<name>.o under the build folder, and what ptxas said is beside it as .log.
function(lowbit_nvcc out source)
  lowbit_gencode(gencode ${ARGN})
  get_filename_component(path "${source}" ABSOLUTE)
  get_filename_component(folder "${path}" DIRECTORY)
  get_filename_component(folder "${folder}" NAME)
  get_filename_component(name "${path}" NAME_WE)
  set(object "${CMAKE_BINARY_DIR}/cuda/${folder}/${name}.o")
  get_filename_component(into "${object}" DIRECTORY)
  file(MAKE_DIRECTORY "${into}")
  string(REPLACE "\\;" ";" more "${LOWBIT_NVCC_FLAGS}")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${CMAKE_COMMAND}" "-DLOG=${object}.log" -P "${PROJECT_SOURCE_DIR}/cmake/nvcc.cmake" --
            "${LOWBIT_NVCC}" -std=c++17 -O3 -ccbin "${CMAKE_CXX_COMPILER}" --threads 2 ${gencode}
            -static-global-template-stub=true  # a kernel template of two files is two kernels (the default from 13.0)
            -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall -Xptxas=-v ${more}
            -MD -MF "${object}.d" -MT "${object}" -c "${path}" -o "${object}"
    DEPENDS "${path}" "${PROJECT_SOURCE_DIR}/cmake/nvcc.cmake"
    DEPFILE "${object}.d"
    COMMENT "nvcc ${folder}/${name}: ${ARGN}"
    VERBATIM)
  set(${out} ${${out}} "${object}" PARENT_SCOPE)
endfunction()
