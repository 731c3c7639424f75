// One table of functions per op family and ISA; the entry points of the API look theirs up here.
//
// A family declares its table with PK_DECLARE_TABLES(ConvKernels, conv_kernels), defines it once in an ISA source as
// `extern const ConvKernels conv_kernels` inside namespace pk::PK_ISA, and picks it with PK_TABLE_OF(conv_kernels,
// isa). Choosing costs an atomic load and a switch, so it is done at every call and a forced ISA takes effect at once.
#pragma once

#include "pykernels/isa.h"

// avx512_vnni differs from avx512 for int8 only, and so does neon_dotprod from what ARM has as scalar: the other
// families declare their tables without them.
#if defined(PK_X86_ISAS)
#define PK_DECLARE_TABLES(Table, name) \
  namespace scalar {                   \
  extern const Table name;             \
  }                                    \
  namespace avx2 {                     \
  extern const Table name;             \
  }                                    \
  namespace avx512 {                   \
  extern const Table name;             \
  }
#define PK_DECLARE_DOT4_TABLE(Table, name) \
  namespace avx512_vnni {                  \
  extern const Table name;                 \
  }
#define PK_TABLE_OF(name, isa)                      \
  ((isa) >= ::pk::Isa::avx512 ? &::pk::avx512::name \
   : (isa) == ::pk::Isa::avx2 ? &::pk::avx2::name   \
                              : &::pk::scalar::name)
#define PK_DOT4_TABLE_OF(name, isa) \
  ((isa) == ::pk::Isa::avx512_vnni ? &::pk::avx512_vnni::name : PK_TABLE_OF(name, isa))
#else
#define PK_DECLARE_TABLES(Table, name) \
  namespace scalar {                   \
  extern const Table name;             \
  }
#define PK_TABLE_OF(name, isa) (&::pk::scalar::name)
#if defined(PK_ARM_ISAS)
#define PK_DECLARE_DOT4_TABLE(Table, name) \
  namespace neon_dotprod {                 \
  extern const Table name;                 \
  }
#define PK_DOT4_TABLE_OF(name, isa) \
  ((isa) == ::pk::Isa::neon_dotprod ? &::pk::neon_dotprod::name : PK_TABLE_OF(name, isa))
#else
#define PK_DECLARE_DOT4_TABLE(Table, name)
#define PK_DOT4_TABLE_OF(name, isa) PK_TABLE_OF(name, isa)
#endif
#endif
