// lstm_forward: checks the call, cuts it into spans and steps, and enqueues the kernels of kernels.h.
//
// Persistent: per span and layers in flight, three launches: the slots of the exchange, the input products, the
// recurrence. Otherwise a launch a step, with both directions in it. One step alone (a cell) multiplies x and h in the
// same launch, so that the weights are read once and nothing else is.
#include <vector>

#include "cuda/lstm/kernels.h"
#include "cuda/lstm/layout.h"

namespace pk::cuda {
namespace lstm {
namespace {

class Forward {
 public:
  Forward(const LstmForward& call, const Device& device)
      : call_(call),
        s_(call.shape),
        device_(device),
        plan_(choose(s_, device, call.path)),
        element_(static_cast<int64_t>(size_of(s_.dtype))),
        chunks_(chunks_of(s_.hidden, element_)) {
    if (s_.batch_sizes) {
      starts_.push_back(0);
      for (int64_t t = 0; t < s_.steps; ++t) starts_.push_back(starts_.back() + s_.batch_sizes[t]);
    }
  }

  const Plan& plan() const { return plan_; }

  // Lays the workspace out; with nullptr it only counts.
  int64_t lay_out(void* workspace) {
    Arena arena = {static_cast<char*>(workspace)};
    if (s_.batch_sizes && plan_.persistent) device_starts_ = arena.take<int64_t>(s_.steps + 1);
    const int slots = plan_.layers_at_once * s_.directions;
    for (int i = 0; i < slots; ++i) {
      c_[i] = arena.take<float>(s_.batch * s_.hidden);
      slots_[i] = arena.take<uint32_t>(state_slots() * s_.batch * row_words());
      if (!whole_cell()) sums_[i] = arena.take<float>(plan_.span * s_.batch * s_.hidden * 4);
    }
    // Outputs of the layers between: the ones that a wavefront reads or writes, in turn.
    const int between = s_.layers - 1 < plan_.layers_at_once + 1 ? s_.layers - 1 : plan_.layers_at_once + 1;
    for (int i = 0; i < between && !call_.reserve; ++i) {
      outputs_.push_back(arena.take<char>(lstm_rows(s_) * between_pitch() * element_));
    }
    return arena.used;
  }

  Status run(void* stream) {
    stream_ = stream;
    if (device_starts_) {
      if (const Status status = write_starts(s_, device_starts_, stream); !status) return status;
    }
    const int64_t spans = ceil_div(s_.steps, plan_.span);
    for (int first = 0; first < s_.layers; first += plan_.layers_at_once) {
      const int layers = s_.layers - first < plan_.layers_at_once ? s_.layers - first : plan_.layers_at_once;
      for (int64_t wave = 0; wave < spans + layers - 1; ++wave) {
        std::vector<Part> parts;
        for (int j = 0; j < layers; ++j) {
          const int64_t span = wave - j;
          if (span < 0 || span >= spans) continue;
          for (int d = 0; d < s_.directions; ++d) parts.push_back(part(first + j, d, j * s_.directions + d, span));
        }
        const Status status = plan_.persistent ? run_pinned(parts) : run_steps(parts);
        if (!status) return status;
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
    const int64_t begun = span * plan_.span, left = s_.steps - begun;
    const int64_t steps = left < plan_.span ? left : plan_.span;
    return {layer, direction, slot, begun, steps, direction ? s_.steps - begun - steps : begun};
  }

  // One step, x and h in the same product.
  bool whole_cell() const { return s_.steps == 1 && !plan_.persistent; }
  // Slots of h in flight: a persistent grid has one for each step, launches in turn have two, clusters the first alone.
  int64_t state_slots() const { return plan_.cluster ? 1 : plan_.persistent ? plan_.span : 2; }
  int64_t row_words() const { return chunks_ * (kChunkBytes / 4); }
  int64_t first_row(int64_t time) const {
    return starts_.empty() ? time * s_.batch : starts_[static_cast<size_t>(time)];
  }
  int64_t sequences(int64_t time) const { return first_row(time + 1) - first_row(time); }
  int64_t width() const { return s_.directions * s_.hidden; }
  int64_t between_pitch() const { return call_.reserve ? width() : round_up(width(), 16 / element_); }
  char* offset(const void* base, int64_t elements) const {
    return const_cast<char*>(static_cast<const char*>(base)) + elements * element_;
  }
  // A layer's output where it is not the last one: dense rows.
  char* between(int layer) const {
    if (call_.reserve) return offset(call_.reserve, lstm_reserve_output(s_, layer));
    return static_cast<char*>(outputs_[static_cast<size_t>(layer) % outputs_.size()]);
  }

  void set_weights(Product& p, int layer, int direction) const {
    const int cell = layer * s_.directions + direction;
    if (call_.packed) {
      const PackedParts parts = packed_parts(s_, layer, direction);
      const char* base = static_cast<const char*>(call_.packed);
      p.w_x = {base + parts.w_ih, parts.input_pitch, 4, 1};
      p.w_h = {base + parts.w_hh, parts.hidden_pitch, 4, 1};
      p.bias = reinterpret_cast<const float*>(base + parts.bias);
    } else {
      const void* const* w = call_.weights + cell * (s_.bias ? 4 : 2);
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
      p.outer_stride = layer > 0 ? between_pitch() : call_.x.row;
      p.x = offset(layer > 0 ? between(layer - 1) : call_.x.data, first_row(time) * p.outer_stride);
      return;
    }
    // Strides of dimensions of size one say nothing.
    p.inner = s_.batch;
    p.inner_stride = s_.batch > 1 ? call_.x.row : 0;
    p.outer_stride = steps > 1 ? call_.x.step : 0;
    p.x = offset(call_.x.data, time * call_.x.step);
  }

  Cell cell_of(const Part& part) const {
    const int64_t states = (static_cast<int64_t>(part.layer) * s_.directions + part.direction) * s_.batch * s_.hidden;
    Cell cell;
    cell.c = c_[part.slot];
    cell.h_n = offset(call_.h_n, states);
    cell.c_n = offset(call_.c_n, states);
    const int64_t side = part.direction * s_.hidden;
    if (part.layer + 1 < s_.layers) {
      cell.output = offset(between(part.layer), side);
      cell.output_row = between_pitch();
      cell.by_row = true;
    } else if (call_.output.data) {
      cell.output = offset(call_.output.data, side);
      cell.output_row = call_.output.row;
      cell.output_step = call_.output.step;
      cell.by_row = s_.batch_sizes != nullptr;
    }
    if (call_.reserve) {
      cell.gates = offset(call_.reserve, lstm_reserve_gates(s_, part.layer, part.direction));
      cell.c_steps = offset(call_.reserve, lstm_reserve_c(s_, part.layer, part.direction));
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
      p.count = count < part.steps || !plan_.persistent ? count : part.steps;
      p.filled = filled;
      p.h_n = offset(call_.h_n, states);
      p.h_from = p.h_n;
      if (part.begun == 0) {
        p.h_from = p.h0 = offset(call_.h0, states);
        p.c0 = offset(call_.c0, states);
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
      if (const Status status = multiply(s_.dtype, call_.tf32, aligned, device_, call, stream_); !status) return status;
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
    if (const Status status = prepare_parts(parts, state_slots(), 1); !status) return status;
    if (const Status status = project(parts); !status) return status;
    Persistent call;
    call.hidden = static_cast<int>(s_.hidden), call.batch = static_cast<int>(s_.batch);
    call.chunks = static_cast<int>(chunks_), call.tiles = plan_.tiles, call.blocks = plan_.blocks;
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
    return plan_.cluster ? run_cluster(s_.dtype, plan_, call, stream_) : run_persistent(s_.dtype, plan_, call, stream_);
  }

  Status run_steps(const std::vector<Part>& parts) const {
    if (parts[0].begun == 0) {
      if (const Status status = prepare_parts(parts, state_slots(), 2); !status) return status;
    }
    if (!whole_cell()) {
      if (const Status status = project(parts); !status) return status;
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
        p.h_k = static_cast<int>(call_.packed ? p.w_h.pitch : s_.hidden);
        p.cell = cell_of(part);
        p.time = time, p.first_row = first_row(time);
        p.go_on = ends ? 0 : static_cast<int>(sequences(part.direction ? time - 1 : time + 1));
        products.push_back(p);
      }
      if (const Status status = multiply_all(products); !status) return status;
    }
    return kOk;
  }

  const LstmForward& call_;
  const LstmShape& s_;
  const Device device_;
  const Plan plan_;
  const int64_t element_, chunks_;
  std::vector<int64_t> starts_;  // first rows of the time steps, where they are packed
  int64_t* device_starts_ = nullptr;
  float* c_[kWorkers] = {};
  uint32_t* slots_[kWorkers] = {};
  float* sums_[kWorkers] = {};
  std::vector<char*> outputs_;
  void* stream_ = nullptr;
};

Status check_shape(const LstmShape& s) {
  if (s.dtype != DType::f32 && s.dtype != DType::bf16 && s.dtype != DType::f16) {
    return {"dtype: expected float32, bfloat16 or float16"};
  }
  if (s.hidden < 1 || s.hidden > 1 << 20) return {"hidden: expected 1 to 2^20 units"};
  if (s.input < 0 || s.input > 1 << 24) return {"input: expected 0 to 2^24 features"};
  if (s.layers < 1 || s.layers > 1 << 16) return {"layers: expected 1 to 2^16"};
  if (s.directions != 1 && s.directions != 2) return {"directions: expected 1 or 2"};
  return kOk;
}

}  // namespace

Status check_call(const LstmShape& s) {
  if (const Status status = check_shape(s); !status) return status;
  if (s.steps < 1 || s.steps > 1 << 30) return {"steps: expected 1 to 2^30"};
  if (s.batch < 0 || s.batch > 1 << 24) return {"batch: expected 0 to 2^24"};
  const int64_t widest = (s.input > 2 * s.hidden ? s.input : 2 * s.hidden) + 64;
  // Below 2^31 * 2^16 * 2 rows of states and, in all, 2^59 bytes of anything.
  int64_t rows = 0, bytes = 0;
  if (__builtin_mul_overflow(s.steps * (s.batch + 1), widest * 8, &rows) ||
      __builtin_mul_overflow(rows, int64_t{s.layers} * 8, &bytes) || bytes > int64_t{1} << 59) {
    return {"steps, batch, hidden: the sequences are too large"};
  }
  if (!s.batch_sizes) return kOk;
  if (s.batch_sizes[0] != s.batch) return {"batch_sizes: expected the first to be the batch"};
  for (int64_t t = 0; t < s.steps; ++t) {
    if (s.batch_sizes[t] < 1) return {"batch_sizes: expected each to be at least 1"};
    if (t && s.batch_sizes[t] > s.batch_sizes[t - 1]) return {"batch_sizes: expected them not to increase"};
  }
  return kOk;
}

}  // namespace lstm

using lstm::check_call;

Status lstm_packed_bytes(const LstmShape& shape, int64_t* bytes) {
  if (const Status status = lstm::check_shape(shape); !status) return status;
  *bytes = lstm::packed_parts(shape, shape.layers - 1, shape.directions - 1).end;
  return kOk;
}

Status lstm_pack(const LstmShape& shape, const void* const* weights, void* packed, void* stream) {
  if (const Status status = lstm::check_shape(shape); !status) return status;
  const int per_cell = shape.bias ? 4 : 2;
  char* const to = static_cast<char*>(packed);
  for (int cell = 0; cell < shape.layers * shape.directions; ++cell) {
    const int layer = cell / shape.directions;
    const lstm::PackedParts parts = lstm::packed_parts(shape, layer, cell % shape.directions);
    const void* const* w = weights + cell * per_cell;
    if (const Status status = lstm::pack(shape.dtype, w[0], to + parts.w_ih, shape.hidden, lstm_input(shape, layer),
                                         parts.input_pitch, stream);
        !status) {
      return status;
    }
    if (const Status status =
            lstm::pack(shape.dtype, w[1], to + parts.w_hh, shape.hidden, shape.hidden, parts.hidden_pitch, stream);
        !status) {
      return status;
    }
    if (const Status status = lstm::pack_bias(shape.dtype, shape.bias ? w[2] : nullptr, shape.bias ? w[3] : nullptr,
                                              reinterpret_cast<float*>(to + parts.bias), shape.hidden, stream);
        !status) {
      return status;
    }
  }
  return kOk;
}

Status lstm_reserve_elements(const LstmShape& shape, int64_t* elements) {
  if (const Status status = check_call(shape); !status) return status;
  *elements = lstm_reserve_output(shape, shape.layers - 1);
  return kOk;
}

Status lstm_forward_workspace(const LstmForward& call, int64_t* bytes) {
  if (const Status status = check_call(call.shape); !status) return status;
  Device device;
  if (const Status status = current_device(&device); !status) return status;
  *bytes = lstm::Forward(call, device).lay_out(nullptr);
  return kOk;
}

Status lstm_forward(const LstmForward& call, void* stream) {
  if (const Status status = check_call(call.shape); !status) return status;
  if (!call.weights && !call.packed) return {"weights: expected weights or packed weights"};
  if (call.shape.batch == 0) return kOk;
  Device device;
  if (const Status status = current_device(&device); !status) return status;
  lstm::Forward forward(call, device);
  if ((call.path == LstmPath::persistent || call.path == LstmPath::cluster) && !forward.plan().persistent) {
    return {"path: the recurrent weights don't fit on the device, or the batch is too large"};
  }
  if (forward.lay_out(call.workspace) > call.workspace_bytes) {
    return {"workspace: expected lstm_forward_workspace bytes"};
  }
  return forward.run(stream);
}

}  // namespace pk::cuda
