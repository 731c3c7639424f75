// The scheduler: fibers on stacks of their own, switched by setjmp and longjmp (a context is made once per fiber by
// ucontext, whose own switch would cost two system calls).
#ifdef _FORTIFY_SOURCE
#undef _FORTIFY_SOURCE  // its longjmp refuses to leave for another stack
#endif
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "simt/machine.h"

namespace simt {

Thread* current = nullptr;
dim3 block_dim, grid_dim;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kResident = 2048;  // threads of a grid that is not cooperative that run side by side
constexpr size_t kMostStacks = 1 << 16;
constexpr int64_t kMostSwitches = int64_t{2000} * 1000 * 1000;

}  // namespace

Machine& machine() {
  static Machine* const m = [] {
    std::atexit([] {
      if (machine().error.empty()) return;
      std::fprintf(stderr, "simt: a kernel failed and no test asked why: %s\n", machine().error.c_str());
      std::_Exit(1);
    });
    return new Machine;
  }();
  return *m;
}

static std::vector<Fiber*>* list_of(Fiber* f) {
  Machine& m = machine();
  if (f->state == State::ready) return f->victim ? &m.victims : &m.ready;
  if (f->state == State::spinning) return &m.spinning;
  return nullptr;
}

void set_state(Fiber* f, State state) {
  if (auto* list = list_of(f)) {
    list->back()->place = f->place;
    (*list)[f->place] = list->back();
    list->pop_back();
  }
  f->state = state;
  if (auto* list = list_of(f)) {
    f->place = list->size();
    list->push_back(f);
  }
}

// Out of the running fiber, to the scheduler.
__attribute__((noinline)) static void leave() {
  Fiber* const f = machine().running;
  if (_setjmp(f->context) == 0) _longjmp(machine().scheduler, 1);
}

void wait_here(const char* for_what) {
  Machine& m = machine();
  m.running->waits_for = for_what;
  set_state(m.running, State::waiting);
  leave();
}

namespace {

void fiber_main() {
  Machine& m = machine();
  (*m.kernel)();
  Fiber* const f = m.running;
  LiveBlock& block = block_of(f);
  set_state(f, State::done);
  --block.alive;
  // Threads that have returned are not waited for.
  Barrier& barrier = block.barriers[0];
  if (barrier.expected == 0 && barrier.arrived > 0 && barrier.arrived >= block.alive) {
    release(&barrier);
    race::forget(&barrier);
  }
  --block.live_cluster->alive;
  finish_cluster_phase(*block.live_cluster);
  _longjmp(m.scheduler, 1);
}

// Not inlined: setjmp asks that no variable of its function changes between its two returns.
__attribute__((noinline)) void switch_to(Fiber* f) {
  Machine& m = machine();
  m.running = f;
  current = &f->thread;
  race::run(f->thread.number);
  if (_setjmp(m.scheduler) == 0) {
    if (f->started) _longjmp(f->context, 1);
    f->started = true;
    setcontext(&f->start);
  }
  race::run(race::kNobody);
  m.running = nullptr;
  current = nullptr;
}

void* take_stack() {
  Machine& m = machine();
  if (!m.free_stacks.empty()) {
    void* stack = m.free_stacks.back();
    m.free_stacks.pop_back();
    return stack;
  }
  if (!m.stacks) {
    void* all =
        mmap(nullptr, kMostStacks * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) {
      std::perror("simt: mmap of the stacks");
      std::abort();
    }
    m.stacks = static_cast<unsigned char*>(all);
  }
  if (m.stacks_made == kMostStacks) {
    std::fprintf(stderr, "simt: more than %zu threads at once\n", kMostStacks);
    std::abort();
  }
  return m.stacks + kStack * m.stacks_made++;
}

// Not inlined, for getcontext counts as a function that returns twice.
__attribute__((noinline)) void prepare(Fiber* f) {
  f->stack = take_stack();
  getcontext(&f->start);
  f->start.uc_stack.ss_sp = f->stack;
  f->start.uc_stack.ss_size = kStack;
  f->start.uc_link = nullptr;
  makecontext(&f->start, fiber_main, 0);
}

bool is_victim(const Schedule& s, const Thread& t, unsigned block, unsigned warps, unsigned blocks) {
  switch (s.starve) {
    case Starve::nobody:
      return false;
    case Starve::warp:
      return t.warp == s.victim % warps;
    case Starve::lane:
      return t.lane == s.victim % kWarp;
    case Starve::block:
      return block == s.victim % blocks;
  }
  return false;
}

void start_cluster(const Grid& grid, unsigned first_block) {
  Machine& m = machine();
  auto cluster = std::make_unique<LiveCluster>();
  const unsigned threads = grid.block.x * grid.block.y * grid.block.z;
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  const unsigned blocks = grid.grid.x * grid.grid.y * grid.grid.z;
  for (int rank = 0; rank < grid.cluster; ++rank) {
    auto block = std::make_unique<LiveBlock>();
    const unsigned number = first_block + rank;
    block->index = dim3(number % grid.grid.x, number / grid.grid.x % grid.grid.y, number / grid.grid.x / grid.grid.y);
    block->cluster_rank = rank;
    block->cluster = cluster.get();
    block->live_cluster = cluster.get();
    block->shared_bytes = grid.shared_bytes;
    // The end touches an unmapped page where the size is a multiple of the alignment; else behind it is padding.
    const size_t padded = (static_cast<size_t>(grid.shared_bytes) + 1023) / 1024 * 1024;
    block->shared = static_cast<unsigned char*>(guarded_allocate(padded));
    std::memset(block->shared, 0xff, padded);
    race::fresh(block->shared, padded);
    block->alive = threads;
    block->rendezvous.resize(warps);
    block->group_rendezvous.resize((warps + 3) / 4);
    for (unsigned t = 0; t < threads; ++t) {
      auto* f = new Fiber;
      f->thread.index = dim3(t % grid.block.x, t / grid.block.x % grid.block.y, t / grid.block.x / grid.block.y);
      f->thread.block = block.get();
      f->thread.lane = t % kWarp;
      f->thread.warp = t / kWarp;
      f->victim = is_victim(m.schedule, f->thread, number, warps, blocks);
      prepare(f);
      f->thread.number = number * threads + t;
      f->state = State::waiting;
      block->fibers.push_back(f);
    }
    cluster->alive += threads;
    cluster->blocks.push_back(block.get());
    cluster->live.push_back(std::move(block));
  }
  for (auto& block : cluster->live) {
    for (Fiber* f : block->fibers) set_state(f, State::ready);
  }
  m.clusters.push_back(std::move(cluster));
}

void end_cluster(LiveCluster& cluster) {
  Machine& m = machine();
  for (auto& block : cluster.live) {
    for (Fiber* f : block->fibers) {
      set_state(f, State::done);
      m.free_stacks.push_back(f->stack);
      delete f;
    }
    guarded_free(block->shared);
  }
}

void set_error(const std::string& why) {
  Machine& m = machine();
  m.failing = true;
  if (m.error.empty()) m.error = why + " [schedule: " + m.schedule.name + "]";
}

void run_operation(bool at_random) {
  Machine& m = machine();
  const size_t i = at_random ? m.random() % m.operations.size() : 0;
  const std::function<void()> operation = std::move(m.operations[i]);
  m.operations.erase(m.operations.begin() + static_cast<std::ptrdiff_t>(i));
  m.failed_polls = 0;
  try {
    operation();
  } catch (const std::runtime_error& problem) {
    set_error(problem.what());
  }
}

std::string who_waits() {
  std::map<std::string, int> count;
  for (auto& cluster : machine().clusters) {
    for (auto& block : cluster->live) {
      for (Fiber* f : block->fibers) {
        if (f->state != State::waiting && f->state != State::spinning) continue;
        ++count[std::string(f->waits_for) + " (block " + std::to_string(block->index.x) + "," +
                std::to_string(block->index.y) + "," + std::to_string(block->index.z) + ")"];
      }
    }
  }
  std::string text;
  for (auto& [what, n] : count) {
    text += (text.empty() ? "" : ", ") + std::to_string(n) + " at " + what;
    if (text.size() > 500) return text + ", ...";
  }
  return text;
}

Fiber* pick(std::vector<Fiber*>& from) {
  Machine& m = machine();
  if (m.schedule.random) return from[m.random() % from.size()];
  return from[m.turn++ % from.size()];
}

// Runs what is resident until a cluster is done, all is done, or something fails.
void run_until_a_cluster_ends() {
  Machine& m = machine();
  const size_t before = m.clusters.size();
  for (int64_t switches = 0; !m.failing; ++switches) {
    if (switches > kMostSwitches) return set_error("the kernel doesn't end");
    if (!m.operations.empty() && m.schedule.copies == Copies::random && m.random() % 16 == 0) {
      run_operation(true);
      continue;
    }
    if (!m.ready.empty()) {
      m.failed_polls = 0;
      switch_to(pick(m.ready));
    } else if (!m.spinning.empty() && m.failed_polls <= 2 * m.spinning.size()) {
      // Each spinning fiber looks again, twice, before it counts as waiting.
      ++m.failed_polls;
      Fiber* const f = m.spinning[m.turn++ % m.spinning.size()];
      const size_t polls = m.failed_polls;
      set_state(f, State::ready);
      switch_to(f);
      m.failed_polls = f->state == State::spinning ? polls : 0;
    } else if (!m.victims.empty()) {
      m.failed_polls = 0;
      switch_to(pick(m.victims));
    } else if (!m.operations.empty()) {
      run_operation(m.schedule.random);
    } else {
      bool any = false;
      for (auto& cluster : m.clusters) any = any || cluster->alive > 0;
      if (any) return set_error("deadlock: " + who_waits());
    }
    for (size_t i = 0; i < m.clusters.size(); ++i) {
      if (m.clusters[i]->alive > 0) continue;
      // What still flies may write to the cluster's shared memory.
      while (!m.operations.empty()) run_operation(false);
      end_cluster(*m.clusters[i]);
      m.clusters.erase(m.clusters.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
    if (m.clusters.size() < before) return;
  }
}

}  // namespace

const std::vector<Schedule>& schedules() {
#ifdef PK_SIMT_RACE
  // A race is found whatever the order.
  static const std::vector<Schedule> all = {
      {"in order, late copies", false, Starve::nobody, 0, Copies::lazy, 1},
      {"random, early copies", true, Starve::nobody, 0, Copies::eager, 2},
  };
#else
  static const std::vector<Schedule> all = {
      {"in order, late copies", false, Starve::nobody, 0, Copies::lazy, 1},
      {"random, early copies", true, Starve::nobody, 0, Copies::eager, 2},
      {"random, random copies", true, Starve::nobody, 0, Copies::random, 3},
      {"starves warp 0, late copies", true, Starve::warp, 0, Copies::lazy, 4},
      {"starves warp 3, early copies", true, Starve::warp, 3, Copies::eager, 5},
      {"starves lane 5, random copies", true, Starve::lane, 5, Copies::random, 6},
      {"starves block 0, late copies", true, Starve::block, 0, Copies::lazy, 7},
      {"starves block 1, early copies", false, Starve::block, 1, Copies::eager, 8},
  };
#endif
  return all;
}

Use::Use(const Schedule& schedule) : before_(machine().schedule) { machine().schedule = schedule; }
Use::~Use() { machine().schedule = before_; }

pk::cuda::Device& device() {
  static pk::cuda::Device d;
  return d;
}

std::string take_error() {
  std::string error;
  error.swap(machine().error);
  return error;
}

void* guarded_allocate(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t body = (bytes + page - 1) / page * page;
  // One page before for the size, one unmapped page on each side of the body.
  auto* base = static_cast<unsigned char*>(
      mmap(nullptr, body + 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED || mprotect(base, page, PROT_READ | PROT_WRITE) != 0 ||
      (body > 0 && mprotect(base + 2 * page, body, PROT_READ | PROT_WRITE) != 0)) {
    std::perror("simt: mmap of a guarded array");
    std::abort();
  }
  *reinterpret_cast<size_t*>(base) = body + 3 * page;
  std::memset(base + 2 * page, 0xff, body);
  // Kernels may count on what an allocator gives, so the array begins at 16 bytes, and up to 15 behind it are mapped.
  return base + 2 * page + (body - bytes) / 16 * 16;
}

void guarded_free(void* p) {
  if (!p) return;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  // The header's page lies two pages before the page of the first byte; an empty array begins at the page behind.
  auto* base = reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(p) / page * page) - 2 * page;
  munmap(base, *reinterpret_cast<size_t*>(base));
}

void launch(const Grid& grid, const std::function<void()>& kernel) {
  Machine& m = machine();
  if (!m.error.empty()) {
    std::fprintf(stderr, "simt: a kernel failed and no test asked why: %s\n", m.error.c_str());
    std::abort();
  }
  const unsigned threads = grid.block.x * grid.block.y * grid.block.z;
  const unsigned blocks = grid.grid.x * grid.grid.y * grid.grid.z;
  const unsigned cluster = static_cast<unsigned>(grid.cluster);
  if (threads == 0 || threads > 1024) return set_error("a block has 1 to 1024 threads, not " + std::to_string(threads));
  if (grid.grid.y > 65535 || grid.grid.z > 65535) return set_error("a grid has at most 65535 blocks along y and z");
  if (grid.grid.x % cluster) return set_error("grid.x is no multiple of the cluster");
  if (grid.shared_bytes > device().shared_per_block) return set_error("more shared memory than a block can have");
  ++m.launches;
  m.random.state = m.schedule.seed;
  m.kernel = &kernel;
  m.failing = false;
  m.failed_polls = 0;
  if (int64_t{blocks} * threads >= race::kNobody) return set_error("more threads than can be told apart");
  if (!m.stacks) m.free_stacks.push_back(take_stack());
  race::begin(blocks * threads, m.stacks, m.stacks + kMostStacks * kStack);
  block_dim = grid.block;
  grid_dim = grid.grid;
  const unsigned clusters = blocks / cluster;
  const unsigned resident = grid.cooperative ? clusters : std::max(1u, kResident / (threads * cluster));
  // The hardware promises no order; a grid may be run from its last block on.
  std::vector<unsigned> order(clusters);
  for (unsigned i = 0; i < clusters; ++i) order[i] = i;
  if (m.schedule.random) std::shuffle(order.begin(), order.end(), m.random);
  unsigned next = 0;
  while (!m.failing && (next < clusters || !m.clusters.empty())) {
    while (next < clusters && m.clusters.size() < resident) start_cluster(grid, order[next++] * cluster);
    run_until_a_cluster_ends();
  }
  for (auto& c : m.clusters) end_cluster(*c);
  m.clusters.clear();
  m.operations.clear();
  m.ready.clear();
  m.victims.clear();
  m.spinning.clear();
  m.parked.clear();
  race::end();
}

size_t launches() { return machine().launches; }

void* dynamic_shared() { return current->block->shared; }

void yield() { leave(); }
void spin() {
  machine().running->waits_for = "a poll of memory";
  set_state(machine().running, State::spinning);
  leave();
}

bool has_ended(const Block& block) { return static_cast<const LiveBlock&>(block).alive == 0; }

void park(const void* key, const char* for_what) {
  machine().parked[key].push_back(machine().running);
  wait_here(for_what);
}
void unpark(const void* key) {
  const auto found = machine().parked.find(key);
  if (found == machine().parked.end()) return;
  const std::vector<Fiber*> waiting = std::move(found->second);
  machine().parked.erase(found);
  for (Fiber* f : waiting) wake(f);
}

void asynchronously(std::function<void()> operation) {
  Machine& m = machine();
  if (m.schedule.copies == Copies::eager) return operation();
  m.operations.push_back(std::move(operation));
}

Copies copies() { return machine().schedule.copies; }
bool coin() { return machine().random() & 1; }

void fail(const std::string& why) {
  Machine& m = machine();
  // An asynchronous operation runs in the scheduler, on a stack of its own.
  if (!m.running) throw std::runtime_error(why);
  const dim3 b = m.running->thread.block->index, t = m.running->thread.index;
  set_error(why + " (block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
            " thread " + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")");
  _longjmp(m.scheduler, 1);
}

}  // namespace simt
