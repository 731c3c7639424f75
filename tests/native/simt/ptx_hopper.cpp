// Bodies of the Hopper instructions: see ptx_hopper.h.
#include "simt/ptx_hopper.h"

#include <array>
#include <deque>
#include <memory>

#include "cuda/numeric.cuh"
#include "simt/ptx.h"
#include "simt/race.h"

namespace simt {

// What one wgmma will do: the parts of the 128 threads.
struct Product {
  pk::cuda::ptx::WgmmaPart parts[128];
};

struct Warpgroup {
  bool fenced = false;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;  // committed and unfinished, oldest first
};

// What a block has besides its shared memory.
struct HopperBlock {
  std::vector<unsigned char> async_image;  // shared memory as the async proxy sees it
  std::vector<Warpgroup> warpgroups;
};

}  // namespace simt

namespace pk::cuda::ptx {

namespace race = simt::race;
using simt::fail;

namespace {

simt::HopperBlock& hopper(simt::Block* block) {
  if (!block->hopper) {
    block->hopper = std::make_shared<simt::HopperBlock>();
    block->hopper->async_image.assign(block->shared_bytes, 0xff);
    block->hopper->warpgroups.resize(8);
  }
  return *block->hopper;
}

// Acts for the thread that issued an operation, wherever the operation runs.
class OnBehalf {
 public:
  explicit OnBehalf(simt::Thread* thread) : before_(simt::current) {
    simt::current = thread;
    race::run(thread->number);
  }
  ~OnBehalf() {
    simt::current = before_;
    race::run(before_ ? before_->number : race::kNobody);
  }
  OnBehalf(const OnBehalf&) = delete;
  OnBehalf& operator=(const OnBehalf&) = delete;

 private:
  simt::Thread* before_;
};

// Some bytes of a block's shared memory.
struct Place {
  simt::Block* block;
  uint32_t offset;
  unsigned char* bytes() const { return block->shared + offset; }
  unsigned char* image() const { return hopper(block).async_image.data() + offset; }
};

Place here(const void* shared) { return {simt::current->block, shared_address(shared)}; }

Place at_cluster_address(uint32_t address) {
  const auto& blocks = simt::current->block->cluster->blocks;
  const uint32_t rank = address >> 24, offset = address & 0xffffff;
  if (rank >= blocks.size()) fail("a cluster address of a block that is not in the cluster");
  if (offset >= blocks[rank]->shared_bytes) fail("a cluster address beyond the block's shared memory");
  return {blocks[rank], offset};
}

void check_alive(const Place& place, size_t bytes, const char* what) {
  if (place.offset + bytes > place.block->shared_bytes) fail(std::string(what) + ": beyond the block's shared memory");
  if (simt::has_ended(*place.block)) fail(std::string(what) + ": the block whose shared memory it touches has ended");
}

// ---- mbarriers ----
// 20 bits of arrivals pending, 20 of arrivals in a phase, 21 of transactions (plus 2^20), the phase's parity, and 01.
struct Barrier {
  int64_t pending, count, transactions;
  uint32_t parity;
};
constexpr int64_t kBias = 1 << 20;

Barrier load_barrier(const Place& place) {
  uint64_t word;
  if (place.offset % 8 || place.offset + 8 > place.block->shared_bytes) fail("an mbarrier that is not 8 aligned bytes");
  std::memcpy(&word, place.bytes(), 8);
  if (word >> 62 != 1) fail("an mbarrier that is not initialised");
  const auto field = [&](int from, int bits) { return static_cast<int64_t>(word >> from & ((1ull << bits) - 1)); };
  return {field(0, 20), field(20, 20), field(40, 21) - kBias, static_cast<uint32_t>(field(61, 1))};
}

void store_barrier(const Place& place, Barrier b) {
  if (b.pending < 0) fail("an mbarrier: more threads arrived than it counts");
  if (b.transactions <= -kBias || b.transactions >= kBias) fail("an mbarrier: more than 2^20 - 1 bytes under way");
  if (b.pending == 0 && b.transactions == 0) {
    b.pending = b.count;
    b.parity ^= 1;
    simt::unpark(place.bytes());
  }
  const auto wide = [](int64_t x) { return static_cast<uint64_t>(x); };
  const uint64_t word = wide(b.pending) | wide(b.count) << 20 | wide(b.transactions + kBias) << 40 |
                        uint64_t{b.parity} << 61 | uint64_t{1} << 62;
  std::memcpy(place.bytes(), &word, 8);
}

// `bytes` are expected (or have come, if negative), and `arrivals` happen.
void change(const Place& place, int64_t bytes, int64_t arrivals) {
  race::write_atomic(place.bytes(), 8);
  race::release(place.bytes());
  Barrier b = load_barrier(place);
  b.transactions += bytes;
  b.pending -= arrivals;
  store_barrier(place, b);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t count) {
  const Place place = here(barrier);
  if (place.offset % 8) fail("mbarrier.init: not aligned to 8 bytes");
  if (count == 0 || count >= kBias) fail("mbarrier.init: the count must be 1 to 2^20 - 1");
  race::forget(place.bytes());
  race::write(place.bytes(), 8);
  store_barrier(place, {count, count, 0, 0});
}

void mbarrier_arrive(uint64_t* barrier) {
  simt::yield();
  change(here(barrier), 0, 1);
}

void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  simt::yield();
  change(here(barrier), bytes, 1);
}

void mbarrier_arrive_cluster_read(uint32_t barrier) {
  simt::yield();
  const Place place = at_cluster_address(barrier);
  check_alive(place, 8, "mbarrier.arrive");
  change(place, 0, 1);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  const Place place = here(barrier);
  for (;;) {
    race::read_atomic(place.bytes(), 8);
    if (load_barrier(place).parity != (parity & 1)) return race::acquire(place.bytes());
    simt::park(barrier, "an mbarrier");
  }
}

// ---- TMA ----
namespace {

void async_write(const Place& to, const void* from, size_t bytes) {
  race::write(to.bytes(), bytes);
  std::memcpy(to.bytes(), from, bytes);
  std::memcpy(to.image(), from, bytes);
}

// Bytes that will land in a place of each block of `blocks`, and count on its barrier there.
void deliver(uint32_t offset, uint32_t barrier, std::vector<unsigned char> bytes, uint16_t blocks) {
  const Place place = {simt::current->block, offset};
  const auto& all = place.block->cluster->blocks;
  if (blocks == 0 || blocks >> all.size() != 0) fail("a multicast to blocks that are not in the cluster");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (!(blocks >> rank & 1)) continue;
    const Place to = {all[rank], place.offset}, counts = {all[rank], barrier};
    check_alive(to, bytes.size(), "a bulk copy");
    async_write(to, bytes.data(), bytes.size());
    change(counts, -static_cast<int64_t>(bytes.size()), 0);
  }
}

// A box in shared memory: where its byte i lies, from its start.
uint32_t swizzled(uint32_t address, bool swizzle) { return swizzle ? address ^ (address >> 7 & 7) << 4 : address; }

void check_box(const Place& place, const TensorMap& map) {
  if (map.data == nullptr) fail("TMA: the map is empty");
  if (place.offset % (map.swizzle ? 1024 : 128) != 0) {
    fail(map.swizzle ? "TMA: a swizzled box begins at a multiple of 1024 bytes of shared memory"
                     : "TMA: a box begins at a multiple of 128 bytes of shared memory");
  }
}

// Calls f(offset in the dense box, address in global memory or null) for each element of a tile at `at`.
template <class F>
void for_each_of_tile(const TensorMap& map, const int64_t (&at)[5], F f) {
  int64_t index[5] = {}, offset = 0;
  while (true) {
    const unsigned char* from = map.data;
    for (int d = 0; d < map.rank && from; ++d) {
      const int64_t x = at[d] + index[d];
      from = x >= 0 && x < map.size[d] ? from + x * map.stride_bytes[d] : nullptr;
    }
    f(offset, from);
    offset += map.element;
    int d = 0;
    while (d < map.rank && ++index[d] == map.box[d]) index[d++] = 0;
    if (d == map.rank) return;
  }
}

// The same for an im2col box.
template <class F>
void for_each_of_im2col(const TensorMap& map, int64_t c, int64_t w, int64_t h, int64_t n, int64_t offset_w,
                        int64_t offset_h, F f) {
  int64_t offset = 0;
  for (int64_t pixel = 0; pixel < map.pixels; ++pixel) {
    const int64_t y = h + offset_h, x = w + offset_w;
    const bool inside = x >= 0 && x < map.size[1] && y >= 0 && y < map.size[2] && n >= 0 && n < map.size[3];
    for (int64_t i = 0; i < map.channels; ++i, offset += map.element) {
      const bool valid = inside && c + i >= 0 && c + i < map.size[0];
      f(offset, valid ? map.data + (c + i) * map.stride_bytes[0] + x * map.stride_bytes[1] + y * map.stride_bytes[2] +
                            n * map.stride_bytes[3]
                      : nullptr);
    }
    w += map.step[0];
    if (w > map.far[0]) {
      w = map.near[0];
      h += map.step[1];
      if (h > map.far[1]) {
        h = map.near[1];
        ++n;
      }
    }
  }
}

// Loads what `each(f)` enumerates, `total` bytes.
template <class Each>
void load_box(void* shared, const TensorMap& map, uint64_t* barrier, size_t total, uint16_t blocks, Each each) {
  const Place place = here(shared), counts = here(barrier);
  check_box(place, map);
  (void)load_barrier(counts);
  simt::Thread* const thread = simt::current;
  simt::asynchronously([=] {
    const OnBehalf as(thread);
    // Boxes begin where the swizzle's pattern does, so places within the box are enough for it.
    std::vector<unsigned char> bytes(total);
    each([&](int64_t offset, const unsigned char* from) {
      unsigned char* const to = bytes.data() + swizzled(static_cast<uint32_t>(offset), map.swizzle);
      if (from) {
        race::read(from, static_cast<size_t>(map.element));
        std::memcpy(to, from, static_cast<size_t>(map.element));
      } else {
        std::memset(to, 0, static_cast<size_t>(map.element));
      }
    });
    deliver(place.offset, counts.offset, std::move(bytes), blocks);
  });
}

}  // namespace

void tma_load_tile(void* shared, const TensorMap* map, uint64_t* barrier, std::initializer_list<int> at,
                   uint16_t blocks) {
  const TensorMap m = *map;
  if (m.im2col || m.rank != static_cast<int>(at.size())) fail("TMA: a tile is loaded by a map of another kind or rank");
  std::array<int64_t, 5> coordinates = {};
  std::copy(at.begin(), at.end(), coordinates.begin());
  auto total = static_cast<size_t>(m.element);
  for (int d = 0; d < m.rank; ++d) total *= static_cast<size_t>(m.box[d]);
  load_box(shared, m, barrier, total, blocks, [=](auto f) {
    const int64_t start[5] = {coordinates[0], coordinates[1], coordinates[2], coordinates[3], coordinates[4]};
    for_each_of_tile(m, start, f);
  });
}

void tma_load_im2col(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                     uint16_t offset_w, uint16_t offset_h, uint16_t blocks) {
  const TensorMap m = *map;
  if (!m.im2col) fail("TMA: im2col by a map of tiles");
  if (offset_w > 255 || offset_h > 255) fail("TMA: im2col offsets are at most 255");
  if (w < m.near[0] || w > m.far[0] || h < m.near[1] || h > m.far[1]) {
    fail("TMA: the first base pixel lies outside of the im2col box");
  }
  load_box(shared, m, barrier, static_cast<size_t>(m.pixels * m.channels * m.element), blocks,
           [=](auto f) { for_each_of_im2col(m, c, w, h, n, offset_w, offset_h, f); });
}

// ---- wgmma ----
namespace {

simt::Warpgroup& warpgroup() { return hopper(simt::current->block).warpgroups[simt::current->warp / 4]; }

struct Descriptor {
  uint32_t start, stride;
};
Descriptor decode(uint64_t bits) {
  const auto field = [&](int from, int n) { return static_cast<uint32_t>(bits >> from & ((1ull << n) - 1)); };
  const Descriptor d = {field(0, 14) << 4, field(32, 14) << 4};
  if (field(62, 2) != 1) fail("wgmma: the harness knows only the 128-byte swizzle");
  if (field(49, 3) != 0 || (d.start >> 7 & 7) != 0) {
    fail("wgmma: a matrix in shared memory begins at a multiple of 1024 bytes, plus up to 96 along K");
  }
  return d;
}

// The 32 bytes of K of a row.
void row_of(const Descriptor& d, int row, unsigned char (&bytes)[32]) {
  simt::Block* const block = simt::current->block;
  const uint32_t at = d.start + static_cast<uint32_t>(row / 8) * d.stride + static_cast<uint32_t>(row % 8) * 128;
  if (at + 32 > block->shared_bytes) fail("wgmma: an operand reaches beyond shared memory");
  for (uint32_t half = 0; half < 32; half += 16) {
    const Place place = {block, swizzled(at + half, true)};
    race::read(place.bytes(), 16);
    std::memcpy(bytes + half, place.image(), 16);
  }
}

// Element k of 32 bytes.
template <class T>
auto element_of(const unsigned char* bytes, int k) {
  T x;
  std::memcpy(&x, bytes + sizeof(T) * static_cast<size_t>(k), sizeof(T));
  if constexpr (std::is_same_v<T, int8_t>) {
    return int32_t{x};
  } else {
    return to_float(x);
  }
}

// Sums of integers are exact modulo 2^32; the unit's own order and rounding of the others are not specified, and a
// double keeps this side of the error out.
template <class T, class Sum, class Wide>
void multiply(const simt::Product& product) {
  using Value = decltype(element_of<T>(nullptr, 0));
  constexpr int kK = static_cast<int>(32 / sizeof(T));
  const WgmmaPart& first = product.parts[0];
  const int n = first.n;
  std::vector<Value> right(static_cast<size_t>(kK) * 256);
  unsigned char bytes[32];
  const Descriptor b = decode(first.b);
  for (int j = 0; j < n; ++j) {
    row_of(b, j, bytes);
    for (int k = 0; k < kK; ++k) right[static_cast<size_t>(k) * 256 + j] = element_of<T>(bytes, k);
  }
  for (int row = 0; row < 64; ++row) {
    const int g = row % 8, warp = row / 16, high = row / 8 % 2;
    Value left[kK];
    row_of(decode(first.a), row, bytes);
    for (int k = 0; k < kK; ++k) left[k] = element_of<T>(bytes, k);
    Wide sums[256] = {};
    const auto d = [&](int column) -> Sum& {
      const WgmmaPart& part = product.parts[warp * 32 + g * 4 + column % 8 / 2];
      return static_cast<Sum*>(part.d)[column / 8 * 4 + high * 2 + column % 2];
    };
    if (first.accumulate) {
      for (int j = 0; j < n; ++j) sums[j] = static_cast<Wide>(d(j));
    }
    for (int k = 0; k < kK; ++k) {
      const Value* const line = right.data() + static_cast<size_t>(k) * 256;
      for (int j = 0; j < n; ++j) sums[j] += static_cast<Wide>(left[k]) * static_cast<Wide>(line[j]);
    }
    for (int j = 0; j < n; ++j) d(j) = static_cast<Sum>(sums[j]);
  }
}

void perform(const simt::Product& product) {
  switch (product.parts[0].element) {
    case WgmmaElement::f16:
      return multiply<f16, float, double>(product);
    case WgmmaElement::bf16:
      return multiply<bf16, float, double>(product);
    case WgmmaElement::s8:
      return multiply<int8_t, int32_t, uint32_t>(product);
  }
}

}  // namespace

void wgmma(WgmmaPart part) {
  simt::warpgroup_collective("wgmma.mma_async", &part, [](void** all) {
    simt::Warpgroup& group = warpgroup();
    if (!group.fenced) fail("wgmma: no wgmma_fence before the first product");
    simt::Product product;
    for (int t = 0; t < 128; ++t) {
      product.parts[t] = *static_cast<const WgmmaPart*>(all[t]);
      const WgmmaPart &mine = product.parts[t], &first = product.parts[0];
      if (mine.element != first.element || mine.n != first.n || mine.a != first.a || mine.b != first.b ||
          mine.accumulate != first.accumulate) {
        fail("wgmma: the threads of a warpgroup disagree on the product");
      }
    }
    group.open.push_back(product);
    if (simt::copies() == simt::Copies::eager || (simt::copies() == simt::Copies::random && simt::coin())) {
      for (auto& committed : group.groups) {
        for (const auto& p : committed) perform(p);
        committed.clear();
      }
      for (const auto& p : group.open) perform(p);
      group.open.clear();
      race::release(&group.groups);
    }
  });
}

void wgmma_fence() {
  simt::warpgroup_collective("wgmma.fence", nullptr, [](void**) { warpgroup().fenced = true; });
}

void wgmma_commit() {
  simt::warpgroup_collective("wgmma.commit_group", nullptr, [](void**) {
    simt::Warpgroup& group = warpgroup();
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}

void wgmma_wait(size_t pending) {
  simt::warpgroup_collective("wgmma.wait_group", &pending, [](void** all) {
    auto& groups = warpgroup().groups;
    while (groups.size() > *static_cast<const size_t*>(all[0])) {
      for (const auto& product : groups.front()) perform(product);
      groups.pop_front();
    }
    race::release(&groups);
  });
  race::acquire(&warpgroup().groups);
}

uint64_t wgmma_descriptor(const void* tile) {
  if (shared_address(tile) % 16) fail("wgmma: an operand is not aligned to 16 bytes");
  return static_cast<uint64_t>((shared_address(tile) & 0x3FFFF) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

// ---- Clusters ----
uint32_t cluster_address(const void* shared, uint32_t rank) {
  const uint32_t address = shared_address(shared) | rank << 24;
  (void)at_cluster_address(address);
  return address;
}

namespace {
Place checked(uint32_t address, size_t bytes, const char* what) {
  const Place place = at_cluster_address(address);
  if (place.offset % bytes) fail(std::string(what) + ": the address is not aligned");
  check_alive(place, bytes, what);
  return place;
}
}  // namespace

void st_async_16(uint32_t address, uint4 v, uint32_t barrier) {
  const Place to = checked(address, 16, "st.async"), counts = checked(barrier, 8, "st.async");
  if (to.block != counts.block) fail("st.async: destination and barrier lie in different blocks");
  (void)load_barrier(counts);
  simt::Thread* const thread = simt::current;
  simt::asynchronously([=] {
    const OnBehalf as(thread);
    check_alive(to, 16, "st.async");
    race::write(to.bytes(), 16);
    std::memcpy(to.bytes(), &v, 16);
    change(counts, -16, 0);
  });
}

}  // namespace pk::cuda::ptx
