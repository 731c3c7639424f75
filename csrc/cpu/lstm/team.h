// A team of threads that walks a chain of steps, each step cut into one share per member, with one barrier a step and
// a progress guarantee: a thread waits only for a share that another thread has claimed and is working on, never for
// one that nobody has begun. The system may take that thread away in the middle; the others then wait until it runs
// again. So the walk ends as long as every thread that has claimed a share is scheduled eventually.
//
// done(s) counts the steps of share s that are finished, claimed(s) those that somebody has begun. Share s of step t
// may be claimed once every share has finished step t - 1. A member claims its own share first, so that its slice of
// the weights stays in its cache. It takes an absent member's share at once, and a present one's after a bounded wait:
// so the chain is finished even if one thread runs all members one after the other.
#pragma once

#include <sched.h>

#include <cstdint>

#include "cpu/parallel_for.h"
#include "cpu/vec.h"
#include "pykernels/lstm.h"

namespace pk {
namespace {

struct Share {
  int64_t claimed, done;
  int64_t present;
  char padding[128 - 3 * sizeof(int64_t)];  // two lines: neighbours are fetched in pairs
};

// Below this many multiply-adds a second thread costs more than it brings: in a layer, and in each share of a step.
inline constexpr int64_t kLayerWork = 1 << 18;
inline constexpr int64_t kShareWork = 1 << 14;

// Members that a step is worth which can be cut into `blocks`.
inline int team_size(const LstmShape& s, int threads, int64_t blocks) {
  const int64_t step = 4 * s.hidden * s.hidden * s.batch * s.directions;
  int64_t team = threads;
  if (step * s.steps < kLayerWork) team = 1;
  if (team > step / kShareWork) team = step / kShareWork;
  if (team > blocks) team = blocks;
  return team < 1 ? 1 : static_cast<int>(team);
}

// About 20 us of waiting before a present member counts as absent, or a claimed share's thread as descheduled.
inline constexpr int kSpins = 600;

struct Chain {
  Share* shares;
  int count;

  void reset() {
    for (int s = 0; s < count; ++s) shares[s].claimed = shares[s].done = shares[s].present = 0;
  }

  void arrive(int member) { __atomic_store_n(&shares[member].present, 1, __ATOMIC_RELEASE); }

  // Runs work(share) if nobody has claimed `share` of step t yet; every share must have finished step t - 1.
  template <class Work>
  bool claim(int share, int64_t t, const Work& work) {
    int64_t expected = t;
    Share& s = shares[share];
    if (__atomic_load_n(&s.claimed, __ATOMIC_ACQUIRE) != t ||
        !__atomic_compare_exchange_n(&s.claimed, &expected, t + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      return false;
    work(share);
    __atomic_store_n(&s.done, t + 1, __ATOMIC_RELEASE);
    return true;
  }

  // Returns when every share has finished its first t steps; runs those of step t - 1 whose members stay away.
  template <class Work>
  void finish(int member, int64_t t, const Work& work) {
    if (t == 0) return;
    for (int i = 1; i <= count; ++i) {
      const int share = (member + i) % count;
      Share& s = shares[share];
      for (int spins = 0; __atomic_load_n(&s.done, __ATOMIC_ACQUIRE) < t; ++spins) {
        const bool waiting = __atomic_load_n(&s.claimed, __ATOMIC_ACQUIRE) < t;
        if (waiting && (spins > kSpins || !__atomic_load_n(&s.present, __ATOMIC_ACQUIRE))) {
          __atomic_store_n(&s.present, 0, __ATOMIC_RELEASE);
          claim(share, t - 1, work);
        } else if (spins > kSpins) {
          sched_yield();
        } else {
          PK_ISA::pause();
        }
      }
    }
  }
};

// Walks `chains` side by side, `steps` steps each: work(chain, share, step). To be called once per member; the same
// shares give the same bits whoever runs them.
template <class Work>
void walk(Chain* chains, int chain_count, int member, int64_t steps, const Work& work) {
  for (int64_t t = 0; t < steps; ++t) {
    for (int c = 0; c < chain_count; ++c) {
      Chain& chain = chains[c];
      chain.finish(member, t, [&](int share) { work(c, share, t - 1); });
      chain.arrive(member);
      chain.claim(member, t, [&](int share) { work(c, share, t); });
    }
  }
}

// Runs a chain for each direction: work(direction, share, shares, step). An even team splits, one half for each
// direction, so that fewer threads wait for each other. An odd team walks both directions.
template <class Work>
void walk_layer(Share* shares, int team, int directions, int64_t steps, const Executor& executor, const Work& work) {
  if (team == 1) {
    for (int d = 0; d < directions; ++d)
      for (int64_t t = 0; t < steps; ++t) work(d, 0, 1, t);
    return;
  }
  const int sides = directions == 2 && team % 2 == 0 ? 2 : 1, count = team / sides;
  Chain chains[2];
  for (int d = 0; d < directions; ++d) {
    chains[d] = {shares + d * count, count};
    chains[d].reset();
  }
  parallel_for(executor, 0, team, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const int side = static_cast<int>(m) / count, member = static_cast<int>(m) % count;
      walk(chains + side, directions / sides, member, steps,
           [&](int chain, int share, int64_t step) { work(side + chain, share, count, step); });
    }
  });
}

}  // namespace
}  // namespace pk
