// ISA detection and choice. Compiled once, for the baseline.
#include "pykernels/isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pk {
namespace {

constexpr const char* kNames[kIsas] = {"scalar", "avx2", "avx512", "avx512_vnni", "neon_dotprod"};

#if defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

bool detect(Isa isa) {
#if defined(__x86_64__)
  // libgcc's test asks cpuid and, for the wide registers, XGETBV: an OS that does not save them counts as no support.
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return detect(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512_vnni:
      return detect(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::neon_dotprod:
      return false;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon_dotprod) return has_dot_products();
#endif
  return isa == Isa::scalar;
}

struct Choice {
  Isa isa = Isa::scalar;
  char error[256] = "";
};

bool parse(const char* name, Isa* isa) {
  for (int i = 0; i < kIsas; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *isa = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

// Fills `choice`; `source` names where the request came from in the message.
void choose(const char* name, const char* source, Choice* choice) {
  if (name == nullptr || *name == '\0') {
    for (int i = 0; i < kIsas; ++i) {
      if (isa_compiled(static_cast<Isa>(i)) && isa_supported(static_cast<Isa>(i))) choice->isa = static_cast<Isa>(i);
    }
    return;
  }
  const bool known = parse(name, &choice->isa);
  if (known && isa_compiled(choice->isa) && isa_supported(choice->isa)) return;
  const char* why = !known                       ? ""
                    : !isa_compiled(choice->isa) ? ", which is not compiled into this build"
                                                 : ", which this CPU does not support";
  char runnable[64] = "";
  for (int i = 0; i < kIsas; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (!isa_compiled(isa) || !isa_supported(isa)) continue;
    if (*runnable) std::strcat(runnable, ", ");
    std::strcat(runnable, kNames[i]);
  }
  std::snprintf(choice->error, sizeof choice->error, "%s: expected one of %s, got %s'%.32s'%s", source, runnable,
                known ? "" : "the unknown ISA ", name, why);
}

const Choice& from_environment() {
  static const Choice choice = [] {
    Choice c;
    choose(std::getenv("PYKERNELS_ISA"), "PYKERNELS_ISA", &c);
    return c;
  }();
  return choice;
}

std::atomic<int> forced{-1};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_compiled(Isa isa) {
#if defined(PK_X86_ISAS)
  return isa <= Isa::avx512_vnni;
#elif defined(PK_ARM_ISAS)
  return isa == Isa::scalar || isa == Isa::neon_dotprod;
#else
  return isa == Isa::scalar;
#endif
}

bool isa_supported(Isa isa) {
  static const bool supported[kIsas] = {detect(Isa::scalar), detect(Isa::avx2), detect(Isa::avx512),
                                        detect(Isa::avx512_vnni), detect(Isa::neon_dotprod)};
  return supported[static_cast<int>(isa)];
}

Status active_isa(Isa* isa) {
  const int f = forced.load(std::memory_order_relaxed);
  if (f >= 0) {
    *isa = static_cast<Isa>(f);
    return kOk;
  }
  const Choice& choice = from_environment();
  if (choice.error[0] != '\0') return {choice.error};
  *isa = choice.isa;
  return kOk;
}

Status force_isa(const char* name) {
  if (name == nullptr) {
    forced.store(-1, std::memory_order_relaxed);
    return kOk;
  }
  thread_local Choice choice;
  choice = Choice{};
  choose(*name == '\0' ? "?" : name, "isa", &choice);
  if (choice.error[0] != '\0') return {choice.error};
  forced.store(static_cast<int>(choice.isa), std::memory_order_relaxed);
  return kOk;
}

}  // namespace pk
