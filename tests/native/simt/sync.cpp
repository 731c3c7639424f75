// Where the threads of a warp, a warpgroup, a block and a cluster meet.
#include <string>

#include "simt/machine.h"

namespace simt {

void release(Barrier* barrier) {
  barrier->arrived = 0;
  barrier->expected = 0;
  std::vector<Fiber*> waiting;
  waiting.swap(barrier->waiting);
  for (Fiber* f : waiting) {
    race::acquire_for(f->thread.number, barrier);
    wake(f);
  }
}

void finish_cluster_phase(LiveCluster& cluster) {
  if (cluster.alive == 0 || cluster.arrived < cluster.alive) return;
  cluster.arrived = 0;
  ++cluster.phase;
  std::vector<Fiber*> waiting;
  waiting.swap(cluster.waiting);
  for (Fiber* f : waiting) wake(f);
}

void collective(uint32_t mask, const char* tag, void* argument, void (*body)(void** arguments, uint32_t mask)) {
  Machine& m = machine();
  Fiber* const f = m.running;
  const unsigned lane = f->thread.lane;
  LiveBlock& block = block_of(f);
  auto& pending = block.rendezvous[f->thread.warp];
  const size_t first = static_cast<size_t>(f->thread.warp) * kWarp;
  // A warp at the block's end may have fewer threads than lanes.
  if (block.fibers.size() - first < kWarp) mask &= (1u << (block.fibers.size() - first)) - 1;
  if (!(mask >> lane & 1)) fail(std::string(tag) + ": lane " + std::to_string(lane) + " is not in its own mask");
  Rendezvous* r = nullptr;
  for (auto& p : pending) {
    if (p.tag == tag && p.mask == mask && !(p.arrived >> lane & 1)) {
      r = &p;
    } else if (p.mask & mask) {
      fail(std::string("divergence: lane ") + std::to_string(lane) + " is at " + tag + " while others are at " + p.tag);
    }
  }
  if (!r) {
    pending.push_back({mask, 0, tag, {}});
    r = &pending.back();
  }
  r->arguments[lane] = argument;
  r->arrived |= 1u << lane;
  if (std::strcmp(tag, "__syncwarp") == 0) race::release(&pending);
  if (r->arrived != mask) {
    for (unsigned l = 0; l < kWarp; ++l) {
      if ((mask >> l & 1) && block.fibers[first + l]->state == State::done) {
        fail(std::string(tag) + ": lane " + std::to_string(l) + " has returned and will never come");
      }
    }
    return wait_here(tag);
  }
  const bool orders = std::strcmp(tag, "__syncwarp") == 0;  // the others promise nothing about memory
  Rendezvous all = *r;
  pending.erase(pending.begin() + (r - pending.data()));
  body(all.arguments, mask);
  for (unsigned l = 0; l < kWarp; ++l) {
    if (!(mask >> l & 1)) continue;
    if (orders) race::acquire_for(block.fibers[first + l]->thread.number, &pending);
    if (l != lane) wake(block.fibers[first + l]);
  }
}

void warpgroup_collective(const char* tag, void* argument, void (*body)(void** arguments)) {
  Machine& m = machine();
  Fiber* const f = m.running;
  LiveBlock& block = block_of(f);
  const unsigned group = f->thread.warp / 4;
  const unsigned place = f->thread.warp % 4 * kWarp + f->thread.lane;
  const size_t first = static_cast<size_t>(group) * 128;
  if (block.fibers.size() < first + 128) fail(std::string(tag) + ": needs a whole warpgroup of 128 threads");
  GroupRendezvous& r = block.group_rendezvous[group];
  if (r.arrived == 0) r.tag = tag;
  if (r.tag != tag) {
    fail(std::string("divergence: a thread of a warpgroup is at ") + tag + " while others are at " + r.tag);
  }
  r.arguments[place] = argument;
  if (++r.arrived < 128) return wait_here(tag);
  GroupRendezvous all = r;
  r.arrived = 0;
  body(all.arguments);
  for (unsigned t = 0; t < 128; ++t) {
    if (t != place) wake(block.fibers[first + t]);
  }
}

void barrier_sync(int id, unsigned threads) {
  Fiber* const f = machine().running;
  LiveBlock& block = block_of(f);
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived > 0 && barrier.expected != threads) {
    fail("barrier " + std::to_string(id) + ": threads disagree on how many take part");
  }
  barrier.expected = threads;
  ++barrier.arrived;
  const unsigned wanted = threads ? threads : block.alive;
  if (barrier.arrived > wanted) fail("barrier " + std::to_string(id) + ": more threads arrived than take part");
  race::release(&barrier);
  if (barrier.arrived == wanted) {
    race::acquire(&barrier);
    release(&barrier);
    return race::forget(&barrier);
  }
  barrier.waiting.push_back(f);
  wait_here("a barrier of the block");
}

void cluster_arrive() {
  Fiber* const f = machine().running;
  LiveCluster& cluster = *block_of(f).live_cluster;
  const auto before = cluster.arrival_phase.find(f);
  if (before != cluster.arrival_phase.end() && before->second == cluster.phase + 1) {
    fail("cluster barrier: a thread arrived twice without waiting");
  }
  cluster.arrival_phase[f] = cluster.phase + 1;
  race::release(&cluster);
  ++cluster.arrived;
  finish_cluster_phase(cluster);
}
void cluster_wait() {
  Fiber* const f = machine().running;
  LiveCluster& cluster = *block_of(f).live_cluster;
  const auto arrival = cluster.arrival_phase.find(f);
  if (arrival == cluster.arrival_phase.end()) fail("cluster barrier: a thread waits that has not arrived");
  while (cluster.phase < arrival->second) {
    cluster.waiting.push_back(f);
    wait_here("the cluster's barrier");
  }
  race::acquire(&cluster);
}

}  // namespace simt
