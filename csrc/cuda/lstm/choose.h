// How an LSTM runs on a device: a pure function of shape and device.
//
// Persistent: a worker (one layer and direction) is ceil(h / units) blocks, one to a multiprocessor, all resident at
// once. A block pins the 4 * units rows of W_hh that make its units: the first kHeldChunks pieces of K of each warp in
// registers, the rest in shared memory. Eight units a block are preferred (more blocks share the work of a step), 16
// where eight would need more multiprocessors than there are.
//
// Cluster (capability 90): the same with one cluster for a worker, so at most 16 blocks, in which h needs no trip
// through the L2 cache. A block's share of a step's products is larger than where a worker has the whole device, so
// this is for h and batches whose products take less than the trips saved.
//
// Spans: the recurrence runs in spans of time steps, so that the input products of a span stay in the L2 cache, and so
// that layers overlap: while layer l runs span s, layer l + 1 runs span s - 1 in the same launch (a wavefront).
#pragma once

#include <cstdint>

#include "common/rounding.h"
#include "cuda/device.h"
#include "pykernels/cuda/lstm.h"

namespace pk::cuda::lstm {

inline constexpr int kWorkers = 8;  // of one launch, at most
inline constexpr int kWarps = 8;    // of a persistent block
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kChunkBytes = 64;  // of K: what one 16-byte load per lane of a quad brings
inline constexpr int kTileRows = 8;     // sequences in one product of the matrix unit
inline constexpr int kTiles = 4;        // such products side by side: a group of 32 sequences
inline constexpr int64_t kPersistentBatch = 128;
inline constexpr int kClusterBlocks = 16;  // of a cluster, at most; more than 8 are not promised on any device
inline constexpr int kClusterMultiprocessors = 100;  // of a whole H100 (its parts may have no room for 16 blocks)
inline constexpr int kGroupMultiprocessors = 18;     // of a GPC, at most: a cluster runs in one
inline constexpr int64_t kClusterBatch = 16;         // more make products longer than the trips saved
inline constexpr int kPersistentSteps = 4;           // fewer don't pay for pinning
inline constexpr int kLaunchSteps = 8;  // what the launches of one more span cost, in steps of the recurrence

// Units of a block: 4 * m_tiles, in m_tiles (2 or 4) products of 16 gate rows.
constexpr int held_chunks(int m_tiles, int64_t element) {
  return m_tiles == 2 ? (element == 2 ? 3 : 2) : element == 2 ? 2 : 1;
}
constexpr int units_of(int m_tiles) { return 4 * m_tiles; }
// Floats between two sequences in the buffer of partial sums: the gate rows, and four more against bank conflicts.
constexpr int partial_pitch(int m_tiles) { return 16 * m_tiles + 4; }

constexpr int64_t chunks_of(int64_t hidden, int64_t element) {
  return (hidden * element + kChunkBytes - 1) / kChunkBytes;
}

// Bytes of dynamic shared memory of a persistent block: pinned weights, two buffers of partial sums, c.
constexpr int64_t persistent_shared(int m_tiles, int64_t element, int64_t chunks, int tiles, int64_t batch) {
  const int64_t of_warp = ceil_div(chunks, kWarps), held = held_chunks(m_tiles, element);
  const int64_t spilled = of_warp > held ? of_warp - held : 0;
  const int64_t rows = int64_t{tiles} * kTileRows, padded = round_up(batch, rows);
  const int64_t warps = chunks < kWarps ? chunks : kWarps;
  return spilled * kWarps * m_tiles * 1024 + 2 * warps * rows * partial_pitch(m_tiles) * 4 +
         padded * units_of(m_tiles) * 4;
}

// Bytes of a row of h in the shared memory of a cluster's blocks: an odd number of chunks, since the lanes that load
// together read two rows. Then, of what a block needs for it: two buffers of h, and two mbarriers.
constexpr int cluster_pitch(int64_t chunks) { return static_cast<int>(chunks | 1) * kChunkBytes; }
constexpr int64_t cluster_shared(int64_t chunks, int tiles) {
  return int64_t{2} * tiles * kTileRows * cluster_pitch(chunks) + 16;
}

inline int64_t integer_root(int64_t x) {
  int64_t r = 0;
  while ((r + 1) * (r + 1) <= x) ++r;
  return r;
}

// Does a persistent kernel with m_tiles fit? Fills in what it would be.
inline bool fits(const LstmShape& s, const Device& device, int m_tiles, Choice* choice) {
  const int64_t element = static_cast<int64_t>(size_of(s.dtype));
  const int64_t blocks = ceil_div(s.hidden, units_of(m_tiles)), chunks = chunks_of(s.hidden, element);
  if (blocks * s.directions > device.multiprocessors || s.batch > kPersistentBatch) return false;
  // A smaller group needs less room for partial sums, and meets more barriers.
  for (int tiles = static_cast<int>(ceil_div(s.batch < 32 ? s.batch : 32, kTileRows)); tiles >= 1; --tiles) {
    const int64_t bytes = persistent_shared(m_tiles, element, chunks, tiles, s.batch);
    if (bytes > device.shared_per_block) continue;
    choice->persistent = true;
    choice->m_tiles = m_tiles;
    choice->blocks = static_cast<int>(blocks);
    choice->tiles = tiles;
    choice->shared_bytes = static_cast<int>(bytes);
    choice->pinned_bytes = 4 * units_of(m_tiles) * s.hidden * element;
    return true;
  }
  return false;
}

// Does a cluster with m_tiles fit? One group of sequences, as its protocol needs.
inline bool fits_cluster(const LstmShape& s, const Device& device, int m_tiles, Choice* choice) {
  const int64_t element = static_cast<int64_t>(size_of(s.dtype));
  const int64_t blocks = ceil_div(s.hidden, units_of(m_tiles)), chunks = chunks_of(s.hidden, element);
  if (device.capability != 90 || device.multiprocessors < kClusterMultiprocessors) return false;
  if (blocks > kClusterBlocks || s.batch > kTiles * kTileRows) return false;
  const int tiles = static_cast<int>(ceil_div(s.batch, kTileRows));
  const int64_t bytes = persistent_shared(m_tiles, element, chunks, tiles, s.batch) + cluster_shared(chunks, tiles);
  if (bytes > device.shared_per_block) return false;
  choice->persistent = choice->cluster = true;
  choice->m_tiles = m_tiles;
  choice->blocks = static_cast<int>(blocks);
  choice->tiles = tiles;
  choice->shared_bytes = static_cast<int>(bytes);
  choice->pinned_bytes = 4 * units_of(m_tiles) * s.hidden * element;
  return true;
}

inline Choice choose(const LstmShape& s, const Device& device, LstmPath path) {
  Choice choice;
  const bool automatic = path == LstmPath::automatic && s.steps >= kPersistentSteps;
  if (s.batch > 0 && (path == LstmPath::cluster || (automatic && s.batch <= kClusterBatch))) {
    if (!fits_cluster(s, device, 2, &choice)) fits_cluster(s, device, 4, &choice);
  }
  const bool wanted = !choice.cluster && (automatic || path == LstmPath::persistent);
  if (wanted && s.batch > 0 && !fits(s, device, 2, &choice)) fits(s, device, 4, &choice);
  if (choice.persistent && s.directions == 1) {
    // All blocks of the grid have to be resident; clusters beyond those that are would only come later.
    const int64_t room = choice.cluster
                             ? device.multiprocessors / kGroupMultiprocessors * (kClusterBlocks / choice.blocks)
                             : device.multiprocessors / choice.blocks;
    const int64_t most = room < kWorkers ? room : kWorkers;
    choice.layers_at_once = static_cast<int>(s.layers < most ? s.layers : most);
  }
  // The input products of all workers of a launch, (span, b, 4h) floats each, take half of the L2 cache.
  const int64_t workers = int64_t{choice.layers_at_once} * s.directions;
  const int64_t step_bytes = workers * (s.batch > 0 ? s.batch : 1) * s.hidden * 16;
  int64_t longest = device.l2_bytes / 2 / step_bytes;
  longest = longest < 1 ? 1 : longest > s.steps ? s.steps : longest;
  // n spans take (n + layers - 1) (steps / n + kLaunchSteps) steps' time, least at n = sqrt(steps (layers - 1) /
  // kLaunchSteps).
  int64_t spans = choice.layers_at_once > 1 ? integer_root(s.steps * (choice.layers_at_once - 1) / kLaunchSteps) : 1;
  const int64_t fewest = ceil_div(s.steps, longest);
  spans = spans < fewest ? fewest : spans;
  choice.span = ceil_div(s.steps, spans < 1 ? 1 : spans);
  return choice;
}

// Tiles of product.cu: the large ones, which read the least, where they fill the device.
enum class ProductTile { few_rows, middle, large };
inline ProductTile choose_tile(int64_t rows, int64_t hidden, int64_t products, int multiprocessors) {
  if (rows <= 32) return ProductTile::few_rows;
  const int64_t tiles = ceil_div(rows, 128) * ceil_div(4 * hidden, 128) * products;
  return tiles < multiprocessors ? ProductTile::middle : ProductTile::large;
}

}  // namespace pk::cuda::lstm
