// The choice of an ISA: the best of the host, the forced one, and what is refused. With a name: that one is the best
// here.
#include "pykernels/isa.h"

#include <cstring>

#include "test.h"

using namespace pk;

int main(int argc, char** argv) {
  unsetenv("PYKERNELS_ISA");
  Isa isa;
  EXPECT(active_isa(&isa), "without a request");
  const std::vector<Isa> host = test::host_isas();
  EXPECT(isa == host.back(), "%s is in force, not the best, %s", isa_name(isa), isa_name(host.back()));
  if (argc > 1) EXPECT(std::strcmp(isa_name(isa), argv[1]) == 0, "%s is in force", isa_name(isa));
  EXPECT(host.front() == Isa::scalar, "scalar runs everywhere");
  for (int i = 0; i < kIsas; ++i) {
    const auto asked = static_cast<Isa>(i);
    const bool runs = isa_compiled(asked) && isa_supported(asked);
    const Status status = force_isa(isa_name(asked));
    EXPECT(static_cast<bool>(status) == runs, "%s", isa_name(asked));
    if (!runs) {
      const char* why = isa_compiled(asked) ? "which this CPU does not support" : "not compiled into this build";
      EXPECT(std::strstr(status.error, why) != nullptr, "%s: %s", isa_name(asked), status.error);
      continue;
    }
    EXPECT(active_isa(&isa) && isa == asked, "%s was forced", isa_name(asked));
  }
  EXPECT(!force_isa("nonsense"), "an unknown one");
  EXPECT(force_isa(nullptr) && active_isa(&isa) && isa == host.back(), "unforced");
  return test::finish();
}
