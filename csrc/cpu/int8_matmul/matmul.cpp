// The blocked int8 product.
//
//   rows of a in blocks of ~kMc, columns of b in chunks of ~kNc; a task is one block x one chunk. Each thread takes a
//   run of tasks, row block by row block, so that it packs (and quantises) the rows of a block once.
//   in a task: for each block of k, for each panel of b, for each tile of rows: kMr x kNr sums in registers.
//
// b comes packed; or is packed first, by all threads; or, where there is one row block, block by block by the thread
// that is about to use it, so that b is read from memory once. A panel that many tiles read is widened to 16 bits once,
// into L1; a few tiles widen it as they load it. Everything is integer up to the epilogue: the order of summing, and so
// the number of threads, does not change a bit of the result.
#include "cpu/int8_matmul/epilogue.h"
#include "cpu/int8_matmul/microkernel.h"
#include "cpu/int8_matmul/pack_a.h"
#include "cpu/int8_matmul/pack_b.h"

namespace pk {
namespace PK_ISA {
namespace {

// From this many tiles a block on, widening a panel beforehand wins over widening at each load.
constexpr int64_t kTilesToWiden = 4;

struct Slot {
  AValue* a;
  int32_t* sums;
  int8_t* panels;  // a block of k of the chunk, where b is packed on the way
  int16_t* wide;
  float* scales;
  int32_t* columns;
};

inline Slot slot_at(const Int8Blocking& cut, char* memory) {
  Slot s;
  s.a = reinterpret_cast<AValue*>(memory);
  s.sums = reinterpret_cast<int32_t*>(memory += cut.a_bytes);
  s.panels = reinterpret_cast<int8_t*>(memory += cut.sums_bytes);
  s.wide = reinterpret_cast<int16_t*>(memory += cut.panels_bytes);
  s.scales = reinterpret_cast<float*>(memory += cut.wide_bytes);
  s.columns = reinterpret_cast<int32_t*>(memory += cut.scale_bytes);
  return s;
}

// Rows before tile t of all tiles, of even height.
inline int64_t tile_row(const Int8MatmulArgs& p, const Int8Blocking& cut, int64_t t) {
  return share(p.m, t, cut.tiles);
}

// All tiles of a block against one panel and one block of k.
template <class BValue>
inline void tiles_of_panel(const Int8MatmulArgs& p, const Int8Blocking& cut, int64_t block, const AValue* a,
                           const BValue* panel, int64_t depth, int32_t* sums, bool first, bool last,
                           const Epilogue& epilogue, int64_t index, const int32_t* column_sums) {
  const int64_t begin = share(cut.tiles, block, cut.blocks), end = share(cut.tiles, block + 1, cut.blocks);
  const int64_t first_row = tile_row(p, cut, begin);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = tile_row(p, cut, t), rows = tile_row(p, cut, t + 1) - row, local = row - first_row;
    // A single block of k needs no sums kept: each tile is finished while it is in L1.
    int32_t* c = sums + (first && last ? 0 : local * kNr);
    run_tile(rows, a + local * kARow, panel, depth / kGroup, c, kNr, first);
    if (last) finish_tile(epilogue, c, kNr, row, rows, index, column_sums);
  }
}

inline void run_task(const Int8MatmulArgs& p, const Int8Blocking& cut, const Slot& s, const char* body, int64_t block,
                     int64_t chunk) {
  const PackedB b{p.k, p.n};
  const SourceB source{p.b, p.b_stride_k, p.b_stride_n, p.k, p.n};
  const int64_t first_tile = share(cut.tiles, block, cut.blocks);
  const int64_t first_row = tile_row(p, cut, first_tile);
  const int64_t tiles = share(cut.tiles, block + 1, cut.blocks) - first_tile;
  const int64_t rows = tile_row(p, cut, first_tile + tiles) - first_row;
  const int64_t begin = share(b.panels(), chunk, cut.chunks), end = share(b.panels(), chunk + 1, cut.chunks);
  const Epilogue epilogue{&p, p.a_dtype == DType::i8 ? nullptr : s.scales, first_row};

  if (body == nullptr || b.blocks() == 0) std::memset(s.columns, 0, static_cast<size_t>(4 * (end - begin) * kNr));
  const int64_t blocks = larger(1, b.blocks());
  for (int64_t kb = 0; kb < blocks; ++kb) {
    const int64_t depth = b.depth(kb);
    const AValue* a = s.a + kb * rows * kARow;
    if (body == nullptr && depth > 0)
      pack_panels(source, kb, begin, end - begin, depth, s.panels, panel_stride(depth, kNr), s.columns);
    for (int64_t j = begin; j < end; ++j) {
      const int8_t* panel = s.panels + (j - begin) * panel_stride(depth, kNr);
      const int32_t* columns = s.columns + (j - begin) * kNr;
      if (body != nullptr) {
        panel = reinterpret_cast<const int8_t*>(body + 4 * b.columns() + b.offset(kb, j));
        if (b.blocks() > 0) columns = reinterpret_cast<const int32_t*>(body) + j * kNr;
      }
      int32_t* sums = s.sums + (b.blocks() > 1 ? (j - begin) * rows * kNr : 0);
      const bool first = kb == 0, last = kb + 1 == blocks;
      if (!kDot4 && tiles >= kTilesToWiden) {
        widen_panel(panel, depth, s.wide);
        tiles_of_panel(p, cut, block, a, s.wide, depth, sums, first, last, epilogue, j, columns);
      } else {
        tiles_of_panel(p, cut, block, a, panel, depth, sums, first, last, epilogue, j, columns);
      }
    }
  }
}

void matmul(const Int8MatmulPlan& plan, char* workspace, const Executor& executor) {
  const Int8MatmulArgs& args = plan.args;
  const Int8Blocking& cut = plan.blocking;
  workspace += (64 - reinterpret_cast<uintptr_t>(workspace) % 64) % 64;
  const char* body = args.packed != nullptr ? static_cast<const char*>(args.packed) + sizeof(PackedHeader) : nullptr;
  if (cut.pack_first) {
    pack_all({args.b, args.b_stride_k, args.b_stride_n, args.k, args.n}, workspace, executor);
    body = workspace;
    workspace += cut.packed_bytes;
  }
  parallel_for(executor, 0, cut.slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Slot slot = slot_at(cut, workspace + i * cut.slot_bytes);
      const int64_t tasks = cut.blocks * cut.chunks;
      int64_t packed_block = -1;
      for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
        const int64_t block = t / cut.chunks;
        if (block != packed_block) {
          const int64_t row = tile_row(args, cut, share(cut.tiles, block, cut.blocks));
          const int64_t next = tile_row(args, cut, share(cut.tiles, block + 1, cut.blocks));
          pack_rows(args, row, next - row, slot.a, slot.scales);
          packed_block = block;
        }
        run_task(args, cut, slot, body, block, t % cut.chunks);
      }
    }
  });
}

void pack(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, char* body,
          const Executor& executor) {
  pack_all({b, stride_k, stride_n, k, n}, body, executor);
}

}  // namespace

extern const Int8Kernels int8_kernels;
const Int8Kernels int8_kernels = {kLayout, kTiling, matmul, pack};

}  // namespace PK_ISA
}  // namespace pk
