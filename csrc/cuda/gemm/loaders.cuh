// Loaders: where the main loop (mainloop.cuh) finds its operands. Here are those of plain matrices; a convolution's
// im2col or an LSTM's gates are others.
//
// A loader is a small struct, passed by value or reference, with:
//
//   static constexpr int kCopyBytes;      // 16, 8 or 4: cp.async of that many bytes, every address aligned to it;
//                                         // 2 or 1 (the element's size): element by element through registers, which
//                                         // is slow and asks for no alignment: for odd strides
//   static constexpr bool kTransposed;    // false: the kCopyBytes bytes run along K; true: along the tile's rows (the
//                                         // operand is K-strided in memory; not for int8: load it by elements, false)
//   struct Row {...};                     // what there is to know of a row of the tile, but k; computed once a thread
//   struct Position {...};                // what there is to know of an index k, but the row; moves along K
//   Row row(int tile_row) const;          // tile_row in [0, kM) or [0, kN)
//   Position start(int k) const;          // the position of element k, counted from the start of K
//   void advance(Position&, int step) const;             // step elements further: Tile::kK, a constant
//   Source source(const Row&, const Position&) const;    // of the kCopyBytes bytes that begin there
//
// A unit is kCopyBytes bytes. It is valid or zero as a whole, so a tail of K (or of rows, transposed) that is not a
// multiple of the unit needs smaller units. Both operands must be zero beyond K, as NaN may be what lies there.
//
// Not transposed: a thread loads one 16-byte chunk of K, always the same, of kRows * chunks / threads rows: so it holds
// that many Row and 16 / kCopyBytes Position (one, for 16-byte copies). Transposed: the other way round.
#pragma once

#include "cuda/platform.cuh"

namespace pk::cuda::gemm {

// Where a loader finds some elements. Not valid: they are zeros, and the address, aligned all the same, is never read.
struct Source {
  const void* address;
  bool valid;
};

// Rows of a plain matrix, contiguous along K: element (row, k) at data[row * stride + k].
template <class T, int kCopyBytes_>
struct RowsLoader {
  static constexpr int kCopyBytes = kCopyBytes_;
  static constexpr bool kTransposed = false;
  const T* data;   // of the whole matrix
  int64_t stride;  // of rows, in elements
  int first_row;   // of the tile
  int rows, k;     // of the whole matrix

  struct Row {
    const T* data;
    bool valid;
  };
  struct Position {
    int k;
  };
  PK_DEVICE Row row(int tile_row) const {
    const int r = first_row + tile_row;
    return {data + r * stride, r < rows};
  }
  PK_DEVICE Position start(int at) const { return {at}; }
  PK_DEVICE void advance(Position& position, int step) const { position.k += step; }
  PK_DEVICE Source source(const Row& row, const Position& position) const {
    return {row.data + position.k, row.valid && position.k < k};
  }
};

// Columns of a plain matrix, contiguous along the tile's rows: element (row, k) at data[k * stride + row].
template <class T, int kCopyBytes_>
struct ColumnsLoader {
  static constexpr int kCopyBytes = kCopyBytes_;
  static constexpr bool kTransposed = true;
  const T* data;
  int64_t stride;  // between neighbours in k, in elements
  int first_row, rows, k;

  struct Row {
    const T* data;
    bool valid;
  };
  struct Position {
    int k;
    int64_t offset;
  };
  PK_DEVICE Row row(int tile_row) const {
    const int r = first_row + tile_row;
    return {data + r, r < rows};
  }
  PK_DEVICE Position start(int at) const { return {at, at * stride}; }
  PK_DEVICE void advance(Position& position, int step) const {
    position.k += step;
    position.offset += step * stride;
  }
  PK_DEVICE Source source(const Row& row, const Position& position) const {
    return {row.data + position.offset, row.valid && position.k < k};
  }
};

// Elements of a plain matrix of any strides, one by one: element (row, k) at data[row * stride + k * stride_k].
template <class T>
struct StridedLoader {
  static constexpr int kCopyBytes = sizeof(T);
  static constexpr bool kTransposed = false;
  const T* data;
  int64_t stride, stride_k;  // in elements
  int first_row, rows, k;

  struct Row {
    const T* data;
    bool valid;
  };
  struct Position {
    int k;
    int64_t offset;
  };
  PK_DEVICE Row row(int tile_row) const {
    const int r = first_row + tile_row;
    return {data + r * stride, r < rows};
  }
  PK_DEVICE Position start(int at) const { return {at, at * stride_k}; }
  PK_DEVICE void advance(Position& position, int step) const {
    position.k += step;
    position.offset += step * stride_k;
  }
  PK_DEVICE Source source(const Row& row, const Position& position) const {
    return {row.data + position.offset, row.valid && position.k < k};
  }
};

}  // namespace pk::cuda::gemm
