// What api.cu asks of forward.cu, and the launches that a forward pass is made of. Plain structs, passed to the kernels
// by value.
#pragma once

#include <cstdint>

#include "cuda/lstm/choose.h"
#include "pykernels/dtype.h"
#include "pykernels/status.h"

namespace pk::cuda::lstm {

// ---- The pass (forward.cu) ----

int64_t forward_workspace(const LstmForwardPlan& plan);
Status run_forward(const LstmForwardPlan& plan, void* workspace, void* stream);

// Rows of a weight matrix: gate g of unit u is row u * unit + g * gate of `pitch` elements. torch's: unit 1, gate h;
// packed: unit 4, gate 1.
struct Weight {
  const void* data = nullptr;
  int64_t pitch = 0, unit = 0, gate = 0;
};

// The state and the destinations of one layer and direction.
struct Cell {
  float* c = nullptr;      // (b, h): the state between launches
  void* h_n = nullptr;     // (b, h): as c, and in the end the result
  void* c_n = nullptr;     // (b, h)
  void* output = nullptr;  // may be nullptr; with the direction's offset
  int64_t output_step = 0, output_row = 0;
  bool by_row = false;      // output is rows of all time steps, output_row apart
  void* gates = nullptr;    // the reserve's (rows, h, 4), or nullptr
  void* c_steps = nullptr;  // the reserve's (rows, h)
};

// ---- Products (product.cu) ----

// out (m, h, 4) = A W' + bias + add: A's row is a row of x and, behind it, one of h. Without `out` the sums go through
// a cell step, row m being sequence m.
struct Product {
  const void* x = nullptr;  // (m, x_k): row r at (r / inner) * outer_stride + (r % inner) * inner_stride
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  int x_k = 0;
  const void* h = nullptr;  // (m, h_k), rows h_pitch apart
  int64_t h_pitch = 0;
  int h_k = 0;
  Weight w_x, w_h;
  const void* b_ih = nullptr;  // (4h) as torch has them, or nullptr
  const void* b_hh = nullptr;
  const float* bias = nullptr;  // (h, 4) packed, or nullptr
  const float* add = nullptr;   // (m, h, 4), or nullptr
  float* out = nullptr;         // (m, h, 4), or nullptr: a cell step, of which the rest is
  Cell cell;                    // its state and destinations
  void* h_next = nullptr;       // (m, h): the new h, rows h_next_pitch apart
  int64_t h_next_pitch = 0;
  int64_t time = 0, first_row = 0;
  int go_on = 0;  // the sequences after these end with this step
  int m = 0, hidden = 0;
};

struct Products {
  int count = 0, blocks_m = 0;
  Product of[kWorkers];
};

// aligned: all rows of A and W begin at 16 bytes and x_k, h_k are whole 16 bytes' elements.
Status multiply(DType dtype, bool tf32, bool aligned, int multiprocessors, const Products& products, void* stream);
bool is_aligned(const Product& p, int64_t element);

// ---- The persistent kernels (persistent.cu, persistent_sm90.cu) ----

struct Worker {
  Weight w_hh;
  bool w_aligned = false;       // rows of W_hh begin at 16 bytes
  const float* sums = nullptr;  // (rows of the span, h, 4): the input's share of the gates
  int64_t sums_row = 0;         // the first of those rows
  uint32_t* slots = nullptr;    // (steps, b, chunks, 16 words): h as each step reads it; a cluster has the first alone
  Cell cell;
  int64_t first_time = 0;
  int steps = 0;
  bool reverse = false;
};

struct Persistent {
  int hidden = 0, batch = 0, chunks = 0, tiles = 0, blocks = 0;
  const int64_t* starts = nullptr;  // (t + 1): first rows, or nullptr: t * b
  int count = 0;
  Worker of[kWorkers];
};

Status run_persistent(DType dtype, const Choice& choice, const Persistent& call, void* stream);
Status run_cluster(DType dtype, const Choice& choice, const Persistent& call, void* stream);

// ---- States (state.cu) ----

// A word of `slots` that nobody has written yet. No h is that: it would be two NaNs (or a float's) of a pattern that
// the kernel never writes.
inline constexpr uint32_t kUnwritten = 0xffffffffu;

// Fills slots (count, b, words): the first `filled` hold h_from (b, h) and zeros, the others kUnwritten and zeros
// beyond h. With h0 and c0, the beginning of a sequence: also h_n = h0 and c = c0.
struct Prepare {
  uint32_t* slots = nullptr;
  int64_t count = 0, filled = 0;
  const void* h_from = nullptr;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  void* h_n = nullptr;
  float* c = nullptr;
};
struct Prepares {
  int count = 0;
  int64_t batch = 0, hidden = 0, words = 0;
  Prepare of[kWorkers];
};
Status prepare(DType dtype, const Prepares& call, void* stream);

// to (h, 4, padded) = from (4h, k), unit by unit, with zeros from k on; to (h, 4) = b_ih + b_hh, or zeros for nullptr.
Status pack(DType dtype, const void* from, void* to, int64_t hidden, int64_t k, int64_t padded, void* stream);
Status pack_bias(DType dtype, const void* b_ih, const void* b_hh, float* to, int64_t hidden, void* stream);

// The first row of every time step, (t + 1), to device memory without a copy that a graph would have to keep alive.
Status write_starts(const LstmShape& shape, int64_t* starts, void* stream);

}  // namespace pk::cuda::lstm
