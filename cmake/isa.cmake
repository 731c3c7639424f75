# One table: ISA -> compiler flags, 32-bit lanes of a vector, vector registers.
# PK_DOT4: int8 products are summed in fours (dot4 in vec.h), else in pairs.
# PK_INT8_ISAS differ from the one before them for int8 only, so only the int8 sources are compiled for them.
set(PK_ISAS scalar)
set(PK_FLAGS_scalar "")
set(PK_LANES_scalar 4)
set(PK_REGISTERS_scalar 16)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(PK_ISA_DEFINITION PK_X86_ISAS)
  set(PK_INT8_ISAS avx512_vnni)
  list(APPEND PK_ISAS avx2 avx512 avx512_vnni)

  set(PK_FLAGS_avx2 -mavx2 -mfma)
  set(PK_LANES_avx2 8)
  set(PK_REGISTERS_avx2 16)

  set(PK_FLAGS_avx512 ${PK_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  # Else g++ now and then keeps a tile's weights in memory, though registers are left: 1 to 12 % of a network's time.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND PK_FLAGS_avx512 -fira-region=one)
  endif()
  set(PK_LANES_avx512 16)
  set(PK_REGISTERS_avx512 32)

  set(PK_FLAGS_avx512_vnni ${PK_FLAGS_avx512} -mavx512vnni)
  set(PK_LANES_avx512_vnni 16)
  set(PK_REGISTERS_avx512_vnni 32)
  set(PK_DOT4_avx512_vnni ON)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(PK_ISA_DEFINITION PK_ARM_ISAS)
  set(PK_INT8_ISAS neon_dotprod)
  list(APPEND PK_ISAS neon_dotprod)
  set(PK_REGISTERS_scalar 32)  # of NEON, which every such CPU has
  # Else g++ moves loads up until the sums of a tile don't fit the registers.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(PK_FLAGS_scalar -fno-schedule-insns)
  endif()

  set(PK_FLAGS_neon_dotprod ${PK_FLAGS_scalar} -march=armv8.2-a+dotprod)
  # Else it loads the pixels' pointers anew for each group of channels.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND PK_FLAGS_neon_dotprod -fira-region=one)
  endif()
  set(PK_LANES_neon_dotprod 4)
  set(PK_REGISTERS_neon_dotprod 32)
  set(PK_DOT4_neon_dotprod ON)
endif()

# For the native tests only: the AVX-512 tilings on plain code, so that they run on every machine. They run for seconds,
# and g++ works on vectors that the machine hasn't for minutes at -O3 or -O1, for seconds at -Og.
set(PK_FLAGS_wide512 -Og)
set(PK_LANES_wide512 16)
set(PK_REGISTERS_wide512 32)
set(PK_DOT4_wide512 ON)

# pk_add_isa(NAME SOURCES...): the object library pk_NAME with everything in namespace pk::NAME.
function(pk_add_isa isa)
  add_library(pk_${isa} OBJECT ${ARGN})
  target_include_directories(pk_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/csrc/include)
  target_compile_definitions(pk_${isa} PRIVATE PK_ISA=${isa} PK_LANES=${PK_LANES_${isa}}
                                               PK_REGISTERS=${PK_REGISTERS_${isa}} ${PK_ISA_DEFINITION}
                                               $<$<BOOL:${PK_DOT4_${isa}}>:PK_DOT4>)
  target_compile_options(pk_${isa} PRIVATE ${PK_FLAGS_${isa}} ${PK_KERNEL_FLAGS})
  # Their results are the same to the bit on every ISA, with a fused multiply-add and without.
  set(uncontracted ${ARGN})
  list(FILTER uncontracted INCLUDE REGEX "/int8_(conv2d|lstm|pointwise)/|/int8\\.cpp$")
  set_source_files_properties(${uncontracted} PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
  # Else g++ keeps what the next columns of a stem read again, and spills.
  set(stems ${ARGN})
  list(FILTER stems INCLUDE REGEX "/conv_bn_act/merged\\.cpp$")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set_source_files_properties(${stems} PROPERTIES COMPILE_OPTIONS -fno-predictive-commoning)
  endif()
endfunction()
