// Vector clocks of threads and of what they synchronise on, and for each 8 bytes of memory the latest accesses.
#include "simt/race.h"

#ifdef PK_SIMT_RACE

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt/simt.h"

namespace simt::race {
namespace {

// Times of the threads [first, first + times.size()), 0 for all others: most threads only ever meet those of their own
// block, and those of an elementwise kernel none.
struct Clock {
  unsigned first = 0;
  std::vector<uint32_t> times;

  uint32_t at(unsigned thread) const { return thread - first < times.size() ? times[thread - first] : 0; }
};

// The latest access of one thread to some of a granule's bytes.
struct Access {
  unsigned thread;
  uint32_t time;  // of the thread's own clock
  uint8_t bytes;  // a bit each; 0: nothing here
  bool write, atomic;
};
struct Granule {
  std::array<Access, 6> accesses = {};
  unsigned next = 0;  // to be replaced when all are taken
};

struct Detector {
  unsigned running = kNobody;
  std::vector<Clock> threads;
  std::unordered_map<const void*, Clock> objects;
  std::unordered_map<uintptr_t, Granule> memory;
  uintptr_t stacks = 0, stacks_end = 0;
};

Detector& detector() {
  static Detector d;
  return d;
}

Clock& clock_of(unsigned thread) {
  Clock& c = detector().threads[thread];
  if (c.times.empty()) c = {thread, {1}};
  return c;
}

void join(Clock& into, const Clock& from) {
  if (from.times.empty()) return;
  if (into.times.empty()) into.first = from.first;
  if (from.first < into.first) {
    into.times.insert(into.times.begin(), into.first - from.first, 0);
    into.first = from.first;
  }
  const size_t offset = from.first - into.first;
  if (into.times.size() < offset + from.times.size()) into.times.resize(offset + from.times.size(), 0);
  for (size_t i = 0; i < from.times.size(); ++i)
    into.times[offset + i] = std::max(into.times[offset + i], from.times[i]);
}

[[noreturn]] void report(const void* p, const Access& before, const Access& now) {
  const unsigned char* const shared = current->block->shared;
  const auto* byte = static_cast<const unsigned char*>(p);
  const bool is_shared = byte >= shared && byte < shared + current->block->shared_bytes;
  fail(std::string("race: a ") + (now.write ? "write" : "read") + " of " +
       (is_shared ? "shared memory at byte " + std::to_string(byte - shared) : std::string("global memory")) +
       " is not ordered after a " + (before.write ? "write" : "read") + " by thread number " +
       std::to_string(before.thread));
}

void touch_granule(uintptr_t granule, uint8_t bytes, const void* p, bool write, bool atomic) {
  Detector& d = detector();
  Clock& mine = clock_of(d.running);
  const Access now = {d.running, mine.at(d.running), bytes, write, atomic};
  Granule& g = d.memory[granule];
  Access* place = nullptr;
  for (Access& a : g.accesses) {
    if (a.bytes == 0) {
      if (!place) place = &a;
      continue;
    }
    const bool ordered = a.thread == d.running || a.time <= mine.at(a.thread);
    if (!ordered && (a.bytes & bytes) && (a.write || write) && !(a.atomic && atomic)) report(p, a, now);
    // What is ordered before this one and covered by it need not be kept, unless this is a read of what was written.
    if (ordered && (a.bytes & ~bytes) == 0 && (write || !a.write) && a.atomic == atomic) place = &a;
  }
  if (!place) place = &g.accesses[g.next++ % g.accesses.size()];
  *place = now;
}

void touch(const void* p, size_t n, bool write, bool atomic) {
  Detector& d = detector();
  const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + n;
  if (d.running == kNobody || (begin >= d.stacks && begin < d.stacks_end)) return;
  for (uintptr_t granule = begin / 8; granule * 8 < end; ++granule) {
    const uintptr_t from = std::max(begin, granule * 8) % 8;
    const uintptr_t to = std::min(end, granule * 8 + 8) - granule * 8;
    touch_granule(granule, static_cast<uint8_t>((1u << to) - (1u << from)), p, write, atomic);
  }
}

}  // namespace

void begin(unsigned threads, const void* stacks, const void* stacks_end) {
  Detector& d = detector();
  end();
  d.threads.resize(threads);
  d.stacks = reinterpret_cast<uintptr_t>(stacks);
  d.stacks_end = reinterpret_cast<uintptr_t>(stacks_end);
}

void end() {
  Detector& d = detector();
  d.running = kNobody;
  d.threads.clear();
  d.objects.clear();
  d.memory.clear();
}

void run(unsigned thread) { detector().running = thread; }

void release(const void* object) {
  Detector& d = detector();
  if (d.running == kNobody) return;
  Clock& mine = clock_of(d.running);
  join(d.objects[object], mine);
  ++mine.times[d.running - mine.first];
}

void acquire_for(unsigned thread, const void* object) {
  const auto found = detector().objects.find(object);
  if (thread != kNobody && found != detector().objects.end()) join(clock_of(thread), found->second);
}
void acquire(const void* object) { acquire_for(detector().running, object); }
void forget(const void* object) { detector().objects.erase(object); }
void fresh(const void* p, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t granule = begin / 8; granule * 8 < begin + bytes; ++granule) detector().memory.erase(granule);
}

void read(const void* p, size_t bytes) { touch(p, bytes, false, false); }
void write(const void* p, size_t bytes) { touch(p, bytes, true, false); }
void read_atomic(const void* p, size_t bytes) { touch(p, bytes, false, true); }
void write_atomic(const void* p, size_t bytes) { touch(p, bytes, true, true); }

}  // namespace simt::race

// What -fsanitize=thread calls.
#define PK_SIMT_HOOKS(n)                                                      \
  void __tsan_read##n(void* p) { simt::race::read(p, n); }                    \
  void __tsan_write##n(void* p) { simt::race::write(p, n); }                  \
  void __tsan_unaligned_read##n(void* p) { simt::race::read(p, n); }          \
  void __tsan_unaligned_write##n(void* p) { simt::race::write(p, n); }        \
  void __tsan_volatile_read##n(void* p) { simt::race::read(p, n); }           \
  void __tsan_volatile_write##n(void* p) { simt::race::write(p, n); }         \
  void __tsan_unaligned_volatile_read##n(void* p) { simt::race::read(p, n); } \
  void __tsan_unaligned_volatile_write##n(void* p) { simt::race::write(p, n); }
extern "C" {
PK_SIMT_HOOKS(1)
PK_SIMT_HOOKS(2)
PK_SIMT_HOOKS(4)
PK_SIMT_HOOKS(8)
PK_SIMT_HOOKS(16)
void __tsan_read_range(void* p, unsigned long n) { simt::race::read(p, n); }
void __tsan_write_range(void* p, unsigned long n) { simt::race::write(p, n); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif  // PK_SIMT_RACE
