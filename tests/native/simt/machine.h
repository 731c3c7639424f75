// What the scheduler (simt.cpp) and the threads' meeting places (sync.cpp) share: a launch's state.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>

#include "simt/race.h"
#include "simt/simt.h"

namespace simt {

enum class State { ready, spinning, waiting, done };

struct Fiber {
  Thread thread;
  jmp_buf context;
  ucontext_t start;
  void* stack = nullptr;
  bool started = false;
  State state = State::ready;
  bool victim = false;
  const char* waits_for = "";
  size_t place = 0;  // in its list
};

struct Rendezvous {
  uint32_t mask, arrived = 0;
  const char* tag;
  void* arguments[kWarp] = {};
};

struct GroupRendezvous {
  const char* tag = nullptr;
  unsigned arrived = 0;
  void* arguments[128] = {};
};

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
};

struct LiveCluster;

struct LiveBlock : Block {
  std::vector<Fiber*> fibers;
  std::vector<std::vector<Rendezvous>> rendezvous;  // of each warp
  std::vector<GroupRendezvous> group_rendezvous;    // of each warpgroup
  std::map<int, Barrier> barriers;
  unsigned alive = 0;
  LiveCluster* live_cluster = nullptr;
};

struct LiveCluster : Cluster {
  std::vector<std::unique_ptr<LiveBlock>> live;
  unsigned alive = 0;    // threads
  unsigned arrived = 0;  // at the cluster's barrier, in this phase
  unsigned phase = 0;
  std::map<Fiber*, unsigned> arrival_phase;
  std::vector<Fiber*> waiting;
};

inline const Schedule kDefault = {"in order", false, Starve::nobody, 0, Copies::lazy, 1};

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Not one of <random>: the linker could take the copy of its functions
// that a watched test has, and the race detector would watch the harness itself.
struct Random {
  using result_type = uint64_t;
  uint64_t state = 1;
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
};

struct Machine {
  Schedule schedule = kDefault;
  Random random;
  jmp_buf scheduler;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  size_t launches = 0;
  std::vector<Fiber*> ready, victims, spinning;
  std::map<const void*, std::vector<Fiber*>> parked;
  std::deque<std::function<void()>> operations;
  std::vector<std::unique_ptr<LiveCluster>> clusters;
  unsigned char* stacks = nullptr;  // all in one piece, so that an address tells whether it is on one
  size_t stacks_made = 0;
  std::vector<void*> free_stacks;
  size_t failed_polls = 0;  // since something else has happened
  size_t turn = 0;
  bool failing = false;
  std::string error;
};

Machine& machine();

inline LiveBlock& block_of(Fiber* f) { return *static_cast<LiveBlock*>(f->thread.block); }

void set_state(Fiber* f, State state);
inline void wake(Fiber* f) { set_state(f, State::ready); }
// The running fiber goes on when another one wakes it.
void wait_here(const char* for_what);

// A barrier whose threads are all there, and a cluster's that may be.
void release(Barrier* barrier);
void finish_cluster_phase(LiveCluster& cluster);

}  // namespace simt
