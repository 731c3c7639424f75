// Runs CUDA kernels on a CPU, to prove them where no GPU is. Every thread of a grid is a fiber of one OS thread;
// barriers and warp collectives are rendezvous; a scheduler picks who runs next, fairly, at random, or so that a victim
// (a warp, a lane, a block) runs only when all else waits. Asynchronous copies happen at once, at random, or as late as
// is legal.
//
// It finds wrong indices, tails and fragments, missing waits and barriers, deadlocks, divergent collectives. What a
// fiber stores all others see at once, so that no result shows a missing release or acquire: race.h looks for those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "simt/dim3.h"

namespace simt {

inline constexpr unsigned kWarp = 32;

// ---- What tests use ----

enum class Starve { nobody, warp, lane, block };
enum class Copies { eager, random, lazy };

struct Schedule {
  const char* name;
  bool random;    // who runs next: at random, or in order
  Starve starve;  // who waits until all else waits
  unsigned victim;
  Copies copies;
  unsigned seed;
};

// In order and at random; starving the first and the last warp, a lane, a block; copies early and late.
const std::vector<Schedule>& schedules();

// Puts a schedule in force for its lifetime.
class Use {
 public:
  explicit Use(const Schedule& schedule);
  ~Use();
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  Schedule before_;
};

// What kernels' host code is told of the GPU.
pk::cuda::Device& device();

// Why the last launches failed (deadlock, divergence, a barrier misused), or empty. Reading clears it. A launch that
// fails stops where it is; unread errors end the process with a message, so no test passes over one.
std::string take_error();

// An array whose end touches an unmapped page (but for up to 15 bytes, so that it begins at 16): an access behind it
// kills the process. Filled with 0xff: NaN, or -1.
void* guarded_allocate(size_t bytes);
void guarded_free(void* p);
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n) : size_(n), data_(static_cast<T*>(guarded_allocate(n * sizeof(T)))) {}
  explicit Guarded(const std::vector<T>& v) : Guarded(v.size()) {
    for (size_t i = 0; i < v.size(); ++i) data_[i] = v[i];
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> vector() const { return {data(), data() + size_}; }

 private:
  struct Free {
    void operator()(T* p) const { guarded_free(p); }
  };
  size_t size_;
  std::unique_ptr<T[], Free> data_;
};

// ---- What launch.cuh uses ----

struct Grid {
  dim3 grid, block;
  int cluster;
  int shared_bytes;
  bool cooperative;
};
void launch(const Grid& grid, const std::function<void()>& kernel);
// How many there have been.
size_t launches();

// ---- What the bodies of instructions use ----

struct Cluster;
struct HopperBlock;  // of ptx_hopper.cpp

// A block of the running grid.
struct Block {
  dim3 index;
  unsigned cluster_rank = 0;
  unsigned char* shared = nullptr;  // dynamic shared memory, poisoned with 0xff at the start
  size_t shared_bytes = 0;
  Cluster* cluster = nullptr;
  std::shared_ptr<HopperBlock> hopper;
};

// Blocks of one cluster; a cluster of one where there is none.
struct Cluster {
  std::vector<Block*> blocks;
};

// A copy of cp.async that has been issued and not done.
struct AsyncCopy {
  void* to;
  const void* from;
  int bytes, valid_bytes;
};

struct Thread {
  dim3 index;
  Block* block = nullptr;
  unsigned lane = 0, warp = 0;  // of the block
  unsigned number = 0;          // of the launch's threads
  std::vector<AsyncCopy> open_copies;
  std::vector<std::vector<AsyncCopy>> copy_groups;  // committed and unfinished, oldest first
};

extern Thread* current;  // the running thread
extern dim3 block_dim, grid_dim;

void* dynamic_shared();

// Waits for all lanes of `mask` in the caller's warp to call it with the same tag; then one of them runs `body` with
// the arguments of all lanes, indexed by lane. Tags are compared as addresses: one string literal per operation.
void collective(uint32_t mask, const char* tag, void* argument, void (*body)(void** arguments, uint32_t mask));
// The same for the 128 threads of the caller's warpgroup, arguments indexed by thread of the group.
void warpgroup_collective(const char* tag, void* argument, void (*body)(void** arguments));

// Barrier `id` of the block: waits for `threads` arrivals (0: every thread of the block that has not returned).
void barrier_sync(int id, unsigned threads);
// Barrier of the cluster: arrive, and later wait.
void cluster_arrive();
void cluster_wait();

// Lets others run. `spin`: a poll has failed, so don't come back before something else has run.
void yield();
void spin();
// Waits until another thread, or something asynchronous, unparks the key.
void park(const void* key, const char* for_what);
void unpark(const void* key);

// All its threads have returned.
bool has_ended(const Block& block);

// Something that happens by itself (a bulk copy): at once, at random or when all threads wait, as the schedule says.
void asynchronously(std::function<void()> operation);

Copies copies();
// A coin for choices that the schedule leaves open.
bool coin();
// Ends the running launch with an error; does not return.
[[noreturn]] void fail(const std::string& why);

}  // namespace simt
