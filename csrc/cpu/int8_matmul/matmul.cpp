// The blocked int8 product.
//
//   rows of a in blocks, columns of b in chunks of ~kNc; a task is one block x one chunk. Each thread takes a run of
//   tasks, row block by row block, so that it packs (and quantises) the rows of a block once.
//   in a task: for each panel of b, for each pass over some blocks of k, for each tile of rows: kMr x kNr sums in
//   registers. With a single tile, or where b is packed on the way, blocks of k are outermost.
//
// b comes packed; or is packed first, by all threads; or block by block by the thread that is about to use it, so that
// b is read from memory once; or, for a few rows, is read as it lies (gemv.h). A panel that many tiles read is widened
// to 16 bits once, into L1; a few tiles widen it as they load it. Everything is integer up to the epilogue: the order
// of summing, and so the number of threads, does not change a bit of the result.
#include "cpu/int8_matmul/choose.h"
#include "cpu/int8_matmul/gemv.h"
#include "cpu/int8_matmul/pack_a.h"
#include "cpu/int8_matmul/pack_b.h"
#include "cpu/int8_matmul/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

struct Slot {
  AValue* a;
  int32_t* sums;
  int8_t* panels;  // a block of k of the chunk, where b is packed on the way; rows of a, where it is read as it lies
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

// A task's share of the operands.
struct Task {
  const Int8MatmulArgs& p;
  const Int8Blocking& cut;
  const Slot& s;
  const char* body;                                        // of the packed b, or null: then the task packs
  int64_t first_tile, tiles, first_row, rows, begin, end;  // of the block of a; panels [begin, end) of the chunk
  PackedB b;
  Epilogue epilogue;

  Task(const Int8MatmulArgs& args, const Int8Blocking& blocking, const Slot& slot, const char* packed, int64_t block,
       int64_t chunk)
      : p(args),
        cut(blocking),
        s(slot),
        body(packed),
        first_tile(share(cut.tiles, block, cut.blocks)),
        tiles(share(cut.tiles, block + 1, cut.blocks) - first_tile),
        first_row(tile_row(p, cut, first_tile)),
        rows(tile_row(p, cut, first_tile + tiles) - first_row),
        b{p.k, p.n},
        epilogue{&p, p.a_dtype == DType::i8 ? nullptr : s.scales, first_row} {
    begin = share(b.panels(), chunk, cut.chunks), end = share(b.panels(), chunk + 1, cut.chunks);
  }

  int64_t blocks() const { return max(1, b.blocks()); }

  const int8_t* panel(int64_t kb, int64_t j) const {
    return body != nullptr ? reinterpret_cast<const int8_t*>(body + 4 * b.columns() + b.offset(kb, j))
                           : s.panels + (j - begin) * panel_stride(b.depth(kb), kNr);
  }
  const int32_t* column_sums(int64_t j) const {
    return body != nullptr && b.blocks() > 0 ? reinterpret_cast<const int32_t*>(body) + j * kNr
                                             : s.columns + (j - begin) * kNr;
  }

  // Pass [kb, kb + count) of panel j, for all tiles; block `after_kb` of panel `after_j` is the next that is read.
  template <class BValue>
  void run_pass(int64_t kb, int64_t count, int64_t j, const BValue* widened, int64_t after_kb, int64_t after_j) const {
    Pass<BValue> pass;
    pass.blocks = static_cast<int>(count);
    for (int64_t i = 0; i < count; ++i) {
      pass.groups[i] = b.depth(kb + i) / kGroup;
      if constexpr (sizeof(BValue) == 1) {
        pass.b[i] = panel(kb + i, j);
        pass.next[i] = after_kb + i < blocks() ? panel(after_kb + i, after_j) : pass.b[i];
      } else {
        pass.b[i] = widened;
      }
    }
    pass.a = s.a + kb * rows * kARow;
    pass.a_step = rows * kARow;
    pass.is_first = kb == 0;
    if (kb + count < blocks()) {
      run_tiles(pass, j, nullptr);
    } else {
      const Columns columns(epilogue, j, column_sums(j));
      run_tiles(pass, j, &columns);
    }
  }

  template <class BValue>
  void run_tiles(const Pass<BValue>& pass, int64_t j, const Columns* columns) const {
    int32_t* const sums = s.sums + (cut.by_depth && blocks() > 1 ? (j - begin) * rows * kNr : 0);
    for (int64_t t = first_tile; t < first_tile + tiles; ++t) {
      const int64_t row = tile_row(p, cut, t), local = row - first_row;
      // A single pass needs no sums kept: each tile is finished while it is in L1.
      int32_t* const c = sums + (pass.is_first && columns != nullptr ? 0 : local * kNr);
      run_tile(tile_row(p, cut, t + 1) - row, pass, local, t == first_tile, c, columns, row);
    }
  }

  void run_pass(int64_t kb, int64_t count, int64_t j, int64_t after_kb, int64_t after_j) const {
    if (!kDot4 && tiles >= kTilesToWiden) {
      widen_panel(panel(kb, j), b.depth(kb), s.wide);
      run_pass<int16_t>(kb, count, j, s.wide, after_kb, after_j);
    } else {
      run_pass<int8_t>(kb, count, j, nullptr, after_kb, after_j);
    }
  }

  void run() const {
    if (body == nullptr || b.blocks() == 0) std::memset(s.columns, 0, static_cast<size_t>(4 * (end - begin) * kNr));
    if (!cut.by_depth) {
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t kb = 0; kb < blocks(); kb += cut.pass) {
          const int64_t count = min(cut.pass, blocks() - kb);
          const bool turns = kb + count == blocks();
          run_pass(kb, count, j, turns ? 0 : kb + count, turns && j + 1 < end ? j + 1 : j);
        }
      }
      return;
    }
    const SourceB source{p.b, p.b_stride_k, p.b_stride_n, p.k, p.n};
    for (int64_t kb = 0; kb < blocks(); ++kb) {
      const int64_t depth = b.depth(kb);
      if (body == nullptr && depth > 0) {
        pack_panels(source, kb, begin, end - begin, depth, s.panels, panel_stride(depth, kNr), s.columns);
      }
      for (int64_t j = begin; j < end; ++j) {
        const bool turns = j + 1 == end;
        run_pass(kb, 1, j, turns && body != nullptr && kb + 1 < blocks() ? kb + 1 : kb, turns ? begin : j + 1);
      }
    }
  }
};

// A thread's columns of a product with few rows and a b that is not packed.
void stream(const Int8MatmulArgs& p, const Int8Blocking& cut, const Slot& s, int64_t slot) {
  const int64_t panels = ceil_div(p.n, kNr), pairs = ceil_div(panels, 2), stride = round_up(p.k, 64);
  const int64_t begin = 2 * share(pairs, slot, cut.slots), end = min(panels, 2 * share(pairs, slot + 1, cut.slots));
  pack_rows(p, 0, p.m, s.a, s.scales);
  auto* const a = reinterpret_cast<Signed*>(s.panels);
  uint32_t lower[kMostStreamed];
  flatten(s.a, p.m, p.k, stride, a, lower);
  const Epilogue epilogue{&p, p.a_dtype == DType::i8 ? nullptr : s.scales, 0};
  run_gemv(p.m, {p.b, p.b_stride_k, p.b_stride_n, p.k, p.n}, epilogue, begin, end, a, stride, lower, s.sums);
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
      if (cut.streams) {
        stream(args, cut, slot, i);
        continue;
      }
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
        Task(args, cut, slot, body, block, t % cut.chunks).run();
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
