// A planned forward pass: cuts it into spans and steps, and enqueues the kernels of kernels.h.
//
// Persistent: per span and layers in flight, three launches: the slots of the exchange, the input products, the
// recurrence. Otherwise a launch a step, with both directions in it. One step alone (a cell) multiplies x and h in the
// same launch, so that the weights are read once and nothing else is.
#include <vector>

#include "cuda/lstm/kernels.h"
#include "cuda/lstm/layout.h"

namespace pk::cuda::lstm {
namespace {

class Forward {
 public:
  explicit Forward(const LstmForwardPlan& plan)
      : args_(plan.args),
        s_(args_.shape),
        multiprocessors_(plan.multiprocessors),
        choice_(plan.choice),
        element_(static_cast<int64_t>(size_of(s_.dtype))),
        chunks_(chunks_of(s_.hidden, element_)) {}

  // Lays the workspace out; with nullptr it only counts.
  int64_t lay_out(void* workspace) {
    Arena arena = {static_cast<char*>(workspace)};
    if (s_.batch_sizes && choice_.persistent) device_starts_ = arena.take<int64_t>(s_.steps + 1);
    const int slots = choice_.layers_at_once * s_.directions;
    for (int i = 0; i < slots; ++i) {
      c_[i] = arena.take<float>(s_.batch * s_.hidden);
      slots_[i] = arena.take<uint32_t>(state_slots() * s_.batch * row_words());
      if (!whole_cell()) sums_[i] = arena.take<float>(choice_.span * s_.batch * s_.hidden * 4);
    }
    // Outputs of the layers between: the ones that a wavefront reads or writes, in turn.
    const int between = s_.layers - 1 < choice_.layers_at_once + 1 ? s_.layers - 1 : choice_.layers_at_once + 1;
    for (int i = 0; i < between && !args_.save; ++i) {
      outputs_.push_back(arena.take<char>(lstm_rows(s_) * between_pitch() * element_));
    }
    return arena.used;
  }

  Status run(void* stream) {
    stream_ = stream;
    if (device_starts_) {
      PK_TRY(write_starts(s_, device_starts_, stream));
    }
    const int64_t spans = ceil_div(s_.steps, choice_.span);
    for (int first = 0; first < s_.layers; first += choice_.layers_at_once) {
      const int layers = s_.layers - first < choice_.layers_at_once ? s_.layers - first : choice_.layers_at_once;
      for (int64_t wave = 0; wave < spans + layers - 1; ++wave) {
        std::vector<Part> parts;
        for (int j = 0; j < layers; ++j) {
          const int64_t span = wave - j;
          if (span < 0 || span >= spans) continue;
          for (int d = 0; d < s_.directions; ++d) parts.push_back(part(first + j, d, j * s_.directions + d, span));
        }
        PK_TRY(choice_.persistent ? run_pinned(parts) : run_steps(parts));
      }
    }
    return kOk;
  }

 private:
  // What one launch does for one layer and direction: `steps` steps, the first of them number `begun` in the
  // direction's order; first_time is the least of their times.
  struct Part {
    int layer, direction, slot;
    int64_t begun, steps, first_time;
  };

  Part part(int layer, int direction, int slot, int64_t span) const {
    const int64_t begun = span * choice_.span, left = s_.steps - begun;
    const int64_t steps = left < choice_.span ? left : choice_.span;
    return {layer, direction, slot, begun, steps, direction ? s_.steps - begun - steps : begun};
  }

  // One step, x and h in the same product.
  bool whole_cell() const { return s_.steps == 1 && !choice_.persistent; }
  // Slots of h in flight: a persistent grid has one for each step, launches in turn have two, clusters the first alone.
  int64_t state_slots() const { return choice_.cluster ? 1 : choice_.persistent ? choice_.span : 2; }
  int64_t row_words() const { return chunks_ * (kChunkBytes / 4); }
  int64_t first_row(int64_t time) const { return s_.batch_sizes ? s_.starts[time] : time * s_.batch; }
  int64_t sequences(int64_t time) const { return first_row(time + 1) - first_row(time); }
  int64_t width() const { return s_.directions * s_.hidden; }
  int64_t between_pitch() const { return args_.save ? width() : round_up(width(), 16 / element_); }
  char* offset(const void* base, int64_t elements) const {
    return const_cast<char*>(static_cast<const char*>(base)) + elements * element_;
  }
  // A layer's output where it is not the last one: dense rows.
  char* between(int layer) const {
    if (args_.save) return offset(args_.reserve, lstm_reserve_output(s_, layer));
    return static_cast<char*>(outputs_[static_cast<size_t>(layer) % outputs_.size()]);
  }

  void set_weights(Product& p, int layer, int direction) const {
    const int cell = layer * s_.directions + direction;
    if (args_.packed) {
      const PackedParts parts = packed_parts(s_, layer, direction);
      const char* base = static_cast<const char*>(args_.packed);
      p.w_x = {base + parts.w_ih, parts.input_pitch, 4, 1};
      p.w_h = {base + parts.w_hh, parts.hidden_pitch, 4, 1};
      p.bias = reinterpret_cast<const float*>(base + parts.bias);
    } else {
      const void* const* w = args_.weights + cell * (s_.bias ? 4 : 2);
      p.w_x = {w[0], lstm_input(s_, layer), 1, s_.hidden};
      p.w_h = {w[1], s_.hidden, 1, s_.hidden};
      if (s_.bias) p.b_ih = w[2], p.b_hh = w[3];
    }
  }

  // The rows of the layer's input at `steps` times from `time` on.
  void set_input(Product& p, int layer, int64_t time, int64_t steps) const {
    p.m = static_cast<int>(first_row(time + steps) - first_row(time));
    p.x_k = static_cast<int>(lstm_input(s_, layer));
    p.hidden = static_cast<int>(s_.hidden);
    if (layer > 0 || s_.batch_sizes) {
      p.outer_stride = layer > 0 ? between_pitch() : args_.x.row;
      p.x = offset(layer > 0 ? between(layer - 1) : args_.x.data, first_row(time) * p.outer_stride);
      return;
    }
    // Strides of dimensions of size one say nothing.
    p.inner = s_.batch;
    p.inner_stride = s_.batch > 1 ? args_.x.row : 0;
    p.outer_stride = steps > 1 ? args_.x.step : 0;
    p.x = offset(args_.x.data, time * args_.x.step);
  }

  Cell cell_of(const Part& part) const {
    const int64_t states = (static_cast<int64_t>(part.layer) * s_.directions + part.direction) * s_.batch * s_.hidden;
    Cell cell;
    cell.c = c_[part.slot];
    cell.h_n = offset(args_.h_n, states);
    cell.c_n = offset(args_.c_n, states);
    const int64_t side = part.direction * s_.hidden;
    if (part.layer + 1 < s_.layers) {
      cell.output = offset(between(part.layer), side);
      cell.output_row = between_pitch();
      cell.by_row = true;
    } else if (args_.output.data) {
      cell.output = offset(args_.output.data, side);
      cell.output_row = args_.output.row;
      cell.output_step = args_.output.step;
      cell.by_row = s_.batch_sizes != nullptr;
    }
    if (args_.save) {
      cell.gates = offset(args_.reserve, lstm_reserve_gates(s_, part.layer, part.direction));
      cell.c_steps = offset(args_.reserve, lstm_reserve_c(s_, part.layer, part.direction));
    }
    return cell;
  }

  // The beginning of a span; `filled` slots of `count` begin with h.
  Status prepare_parts(const std::vector<Part>& parts, int64_t count, int64_t filled) const {
    Prepares call;
    call.batch = s_.batch, call.hidden = s_.hidden, call.words = row_words();
    for (const Part& part : parts) {
      const int64_t states = (static_cast<int64_t>(part.layer) * s_.directions + part.direction) * s_.batch * s_.hidden;
      Prepare& p = call.of[call.count++];
      p.slots = slots_[part.slot];
      p.count = count < part.steps || !choice_.persistent ? count : part.steps;
      p.filled = filled;
      p.h_n = offset(args_.h_n, states);
      p.h_from = p.h_n;
      if (part.begun == 0) {
        p.h_from = p.h0 = offset(args_.h0, states);
        p.c0 = offset(args_.c0, states);
        p.c = c_[part.slot];
      }
    }
    return prepare(s_.dtype, call, stream_);
  }

  // Each product with others of its alignment.
  Status multiply_all(const std::vector<Product>& products) const {
    for (const bool aligned : {true, false}) {
      Products call;
      for (const Product& p : products) {
        if (is_aligned(p, element_) == aligned) call.of[call.count++] = p;
      }
      if (call.count == 0) continue;
      PK_TRY(multiply(s_.dtype, args_.tf32, aligned, multiprocessors_, call, stream_));
    }
    return kOk;
  }

  Status project(const std::vector<Part>& parts) const {
    std::vector<Product> products;
    for (const Part& part : parts) {
      Product p;
      set_weights(p, part.layer, part.direction);
      p.w_h = {};
      set_input(p, part.layer, part.first_time, part.steps);
      p.out = sums_[part.slot];
      products.push_back(p);
    }
    return multiply_all(products);
  }

  Status run_pinned(const std::vector<Part>& parts) const {
    PK_TRY(prepare_parts(parts, state_slots(), 1));
    PK_TRY(project(parts));
    Persistent call;
    call.hidden = static_cast<int>(s_.hidden), call.batch = static_cast<int>(s_.batch);
    call.chunks = static_cast<int>(chunks_), call.tiles = choice_.tiles, call.blocks = choice_.blocks;
    call.starts = device_starts_;
    for (const Part& part : parts) {
      Worker& w = call.of[call.count++];
      Product p;
      set_weights(p, part.layer, part.direction);
      w.w_hh = p.w_h;
      w.w_aligned = reinterpret_cast<uintptr_t>(p.w_h.data) % 16 == 0 && p.w_h.pitch * element_ % 16 == 0;
      w.sums = sums_[part.slot];
      w.sums_row = first_row(part.first_time);
      w.slots = slots_[part.slot];
      w.cell = cell_of(part);
      w.reverse = part.direction == 1;
      w.first_time = w.reverse ? part.first_time + part.steps - 1 : part.first_time;
      w.steps = static_cast<int>(part.steps);
    }
    return choice_.cluster ? run_cluster(s_.dtype, choice_, call, stream_)
                           : run_persistent(s_.dtype, choice_, call, stream_);
  }

  Status run_steps(const std::vector<Part>& parts) const {
    if (parts[0].begun == 0) {
      PK_TRY(prepare_parts(parts, state_slots(), 2));
    }
    if (!whole_cell()) {
      PK_TRY(project(parts));
    }
    for (int64_t i = 0; i < parts[0].steps; ++i) {
      std::vector<Product> products;
      for (const Part& part : parts) {
        const int64_t number = part.begun + i, time = part.direction ? s_.steps - 1 - number : number;
        const bool ends = number + 1 == s_.steps;
        Product p;
        set_weights(p, part.layer, part.direction);
        if (whole_cell()) {
          set_input(p, part.layer, time, 1);
        } else {
          // The input's share, with its biases, is in sums_.
          p.m = static_cast<int>(sequences(time)), p.hidden = static_cast<int>(s_.hidden);
          p.w_x = {};
          p.b_ih = p.b_hh = p.bias = nullptr;
          p.add = sums_[part.slot] + (first_row(time) - first_row(part.first_time)) * 4 * s_.hidden;
        }
        const int64_t state = s_.batch * row_words();
        p.h = slots_[part.slot] + number % 2 * state;
        p.h_next = slots_[part.slot] + (number + 1) % 2 * state;
        p.h_pitch = p.h_next_pitch = row_words() * 4 / element_;
        // Zeros lie behind h, and packed weights have them too.
        p.h_k = static_cast<int>(args_.packed ? p.w_h.pitch : s_.hidden);
        p.cell = cell_of(part);
        p.time = time, p.first_row = first_row(time);
        p.go_on = ends ? 0 : static_cast<int>(sequences(part.direction ? time - 1 : time + 1));
        products.push_back(p);
      }
      PK_TRY(multiply_all(products));
    }
    return kOk;
  }

  const LstmForwardArgs& args_;
  const LstmShape& s_;
  const int multiprocessors_;
  const Choice& choice_;
  const int64_t element_, chunks_;
  int64_t* device_starts_ = nullptr;
  float* c_[kWorkers] = {};
  uint32_t* slots_[kWorkers] = {};
  float* sums_[kWorkers] = {};
  std::vector<char*> outputs_;
  void* stream_ = nullptr;
};

}  // namespace

int64_t forward_workspace(const LstmForwardPlan& plan) { return Forward(plan).lay_out(nullptr); }

Status run_forward(const LstmForwardPlan& plan, void* workspace, void* stream) {
  Forward pass(plan);
  pass.lay_out(workspace);
  return pass.run(stream);
}

}  // namespace pk::cuda::lstm
