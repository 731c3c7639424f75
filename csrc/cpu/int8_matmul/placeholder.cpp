// Keeps the ISA libraries from being empty until the family's kernels land.
#include "cpu/vec.h"
