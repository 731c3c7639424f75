// Finds data races: two accesses to the same bytes by different threads, one of them a write, that no barrier and no
// release and acquire orders. Whether they went wrong in this schedule doesn't matter.
//
// How: the kernels are compiled once more with -fsanitize=thread, by which g++ puts a call before every load and store;
// race.cpp answers those calls instead of the sanitizer's runtime, with vector clocks (as in FastTrack, Flanagan and
// Freund, PLDI 2009). What the harness does for the kernels (barriers, copies, flags) it tells here by hand.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt::race {

#ifdef PK_SIMT_RACE
// A launch of so many threads begins, whose stacks lie in [stacks, stacks_end): nothing before it races with it.
void begin(unsigned threads, const void* stacks, const void* stacks_end);
void end();
// The thread that runs now, or none.
inline constexpr unsigned kNobody = ~0u;
void run(unsigned thread);
// What the running thread has done so far happens before what follows an acquire of the same object. `thread`: on
// behalf of another.
void release(const void* object);
void acquire(const void* object);
void acquire_for(unsigned thread, const void* object);
// The object is new. The memory is new.
void forget(const void* object);
void fresh(const void* p, size_t bytes);
// An access by the running thread that the compiler did not see.
void read(const void* p, size_t bytes);
void write(const void* p, size_t bytes);
// Accesses by words that are whole (relaxed): they race with plain accesses only.
void read_atomic(const void* p, size_t bytes);
void write_atomic(const void* p, size_t bytes);
#else
inline constexpr unsigned kNobody = ~0u;
inline void begin(unsigned, const void*, const void*) {}
inline void end() {}
inline void run(unsigned) {}
inline void release(const void*) {}
inline void acquire(const void*) {}
inline void acquire_for(unsigned, const void*) {}
inline void forget(const void*) {}
inline void fresh(const void*, size_t) {}
inline void read(const void*, size_t) {}
inline void write(const void*, size_t) {}
inline void read_atomic(const void*, size_t) {}
inline void write_atomic(const void*, size_t) {}
#endif

}  // namespace simt::race
