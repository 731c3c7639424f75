# libpykernels_cuda: the CUDA kernels, free of torch. libpykernels_torch_cuda: their binding.
#
# PK_CUDA_ARCHS names targets without the dot. Each gets machine code; the last plain one gets PTX too, which the driver
# compiles for whatever is newer. "90a" is Hopper with wgmma, TMA and clusters, and runs on 9.0 alone.
set(PK_CUDA_ARCHS "80;90a" CACHE STRING "CUDA targets")

# NVIDIA's PyPI wheels keep the runtime in lib/, where nvcc, who looks into lib64/, does not find it.
get_filename_component(pk_cuda_root "${CMAKE_CUDA_COMPILER}" REALPATH)
get_filename_component(pk_cuda_root "${pk_cuda_root}/../.." ABSOLUTE)
if(EXISTS "${pk_cuda_root}/lib/libcudart_static.a" AND NOT EXISTS "${pk_cuda_root}/lib64/libcudart_static.a")
  set(CMAKE_CUDA_FLAGS_INIT "-L${pk_cuda_root}/lib")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF) # the targets are named per source, below
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

set(pk_plain_archs ${PK_CUDA_ARCHS})
list(FILTER pk_plain_archs EXCLUDE REGEX "[af]$")
set(pk_ptx_arch "")
if(pk_plain_archs)
  list(GET pk_plain_archs -1 pk_ptx_arch)
endif()
if("90a" IN_LIST PK_CUDA_ARCHS)
  set(pk_sm90_archs 90a)
else()
  # Kernels without bodies (PK_HAS_SM90A is 0), which current_device keeps everyone from choosing.
  list(GET PK_CUDA_ARCHS 0 pk_sm90_archs)
endif()

# pk_gencode(OUT ARCH...): nvcc's flags for these targets.
function(pk_gencode out)
  set(flags "")
  foreach(arch IN LISTS ARGN)
    if(arch STREQUAL pk_ptx_arch)
      list(APPEND flags "-gencode=arch=compute_${arch},code=[compute_${arch},sm_${arch}]")
    else()
      list(APPEND flags "-gencode=arch=compute_${arch},code=sm_${arch}")
    endif()
  endforeach()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

# What `python -m pykernels info` tells, and what decides whether a GPU is covered.
string(REPLACE ";" " " pk_archs_text "${PK_CUDA_ARCHS}")
if(pk_ptx_arch)
  string(REGEX REPLACE "(^| )${pk_ptx_arch}( |$)" "\\1${pk_ptx_arch}+ptx\\2" pk_archs_text "${pk_archs_text}")
endif()

file(GLOB_RECURSE PK_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
set(pk_sm90_sources ${PK_CUDA_SOURCES})
list(FILTER pk_sm90_sources INCLUDE REGEX "_sm90\\.cu$")
list(FILTER PK_CUDA_SOURCES EXCLUDE REGEX "_sm90\\.cu$")

add_library(pykernels_cuda SHARED csrc/cuda/build.cpp)
set_property(SOURCE csrc/cuda/build.cpp PROPERTY COMPILE_DEFINITIONS PK_CUDA_ARCHS="${pk_archs_text}"
                                                 PK_NVCC_VERSION="${CMAKE_CUDA_COMPILER_VERSION}")
foreach(group all sm90)
  if(group STREQUAL "all")
    set(sources ${PK_CUDA_SOURCES})
    pk_gencode(flags ${PK_CUDA_ARCHS})
  else()
    set(sources ${pk_sm90_sources})
    pk_gencode(flags ${pk_sm90_archs})
  endif()
  if(sources)
    add_library(pk_cuda_${group} OBJECT ${sources})
    target_include_directories(pk_cuda_${group} PRIVATE csrc csrc/include)
    target_compile_options(pk_cuda_${group} PRIVATE ${flags} ${PK_NVCC_FLAGS})
    target_compile_definitions(pk_cuda_${group} PRIVATE PK_BUILT_SM90A=$<IN_LIST:90a,${PK_CUDA_ARCHS}>)
    target_sources(pykernels_cuda PRIVATE $<TARGET_OBJECTS:pk_cuda_${group}>)
  endif()
endforeach()
target_include_directories(pykernels_cuda PUBLIC csrc csrc/include)
# The runtime is linked in, with its symbols kept to itself: torch brings one of its own.
set_target_properties(pykernels_cuda PROPERTIES LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static
                                                LIBRARY_OUTPUT_DIRECTORY "${PK_OUTPUT_DIR}")
target_link_options(pykernels_cuda PRIVATE -Wl,--exclude-libs,ALL)

if(PK_PYTHON)
  # A CPU-only torch can be built against: the one symbol that is torch_cuda's comes from a stand-in of its name, which
  # is not shipped. At run time libtorch_cuda.so is there, for torch loads it before us.
  set(pk_torch_cuda "${PK_TORCH_DIR}/lib/libtorch_cuda.so")
  if(NOT EXISTS "${pk_torch_cuda}")
    add_library(torch_cuda SHARED cmake/torch_cuda.cpp)
    set_target_properties(torch_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/stand-in")
    set(pk_torch_cuda torch_cuda)
  endif()
  file(GLOB PK_TORCH_CUDA_SOURCES CONFIGURE_DEPENDS csrc/torch/cuda/*.cpp)
  if(PK_TORCH_CUDA_SOURCES)
    pk_add_binding(pykernels_torch_cuda MODULE ${PK_TORCH_CUDA_SOURCES})
    target_compile_definitions(pykernels_torch_cuda PRIVATE USE_CUDA)
    target_link_libraries(pykernels_torch_cuda PRIVATE pykernels_cuda "-Wl,--no-as-needed" ${pk_torch_cuda})
  endif()
endif()
