// Bodies of csrc/cuda/ptx.cuh that keep state of the harness or order memory: compiled without race.h's hooks, which
// they call themselves.
#include "simt/ptx.h"

#include "simt/race.h"

namespace pk::cuda::ptx {

namespace race = simt::race;

// ---- cp.async ----
static void perform(const simt::AsyncCopy& copy) {
  race::read(copy.from, static_cast<size_t>(copy.valid_bytes));
  race::write(copy.to, static_cast<size_t>(copy.bytes));
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid_bytes));
  std::memset(static_cast<char*>(copy.to) + copy.valid_bytes, 0, static_cast<size_t>(copy.bytes - copy.valid_bytes));
}

void cp_async(void* shared, const void* global, int bytes, bool valid) {
  if (shared_address(shared) % static_cast<unsigned>(bytes)) {
    simt::fail("cp.async: the shared address is not aligned to the copy's size");
  }
  if (reinterpret_cast<uintptr_t>(global) % static_cast<unsigned>(bytes)) {
    simt::fail("cp.async: the global address is not aligned to the copy's size");
  }
  const simt::AsyncCopy copy = {shared, global, bytes, valid ? bytes : 0};
  const bool now = simt::copies() == simt::Copies::eager || (simt::copies() == simt::Copies::random && simt::coin());
  if (now) {
    perform(copy);
  } else {
    simt::current->open_copies.push_back(copy);
  }
}

void cp_async_commit() {
  simt::current->copy_groups.push_back(std::move(simt::current->open_copies));
  simt::current->open_copies.clear();
}

void cp_async_wait(size_t pending) {
  auto& groups = simt::current->copy_groups;
  while (groups.size() > pending) {
    for (const auto& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

// ---- Memory that other blocks write and read ----
uint4 load_relaxed_16(const void* p) {
  race::read_atomic(p, 16);
  return *static_cast<const uint4*>(p);
}
void store_relaxed(uint32_t* p, uint32_t value) {
  simt::yield();
  race::write_atomic(p, 4);
  *p = value;
}
void store_relaxed_16(void* p, uint4 v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  const unsigned first = simt::coin() ? 0 : 3;
  for (unsigned i = 0; i < 4; ++i) {
    simt::yield();
    race::write_atomic(static_cast<uint32_t*>(p) + (i ^ first), 4);
    static_cast<uint32_t*>(p)[i ^ first] = words[i ^ first];
  }
}

}  // namespace pk::cuda::ptx
