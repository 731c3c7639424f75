// The entry points: check the problem, pick the ISA's table, check the packed weight's header, call the method.
#include <cstring>

#include "cpu/conv_bn_act/kernels.h"
#include "common/sizes.h"

namespace pk {
namespace {

// Sizes are kept small enough that no product of them below leaves int64.
constexpr int64_t kLargest = int64_t{1} << 31;

Status pick(const ConvKernels** table) {
  Isa isa;
  if (Status status = active_isa(&isa); !status) return status;
  *table = PK_TABLE_OF(conv_kernels, isa);
  return kOk;
}

// The layout of a packed weight, of which all but stride and dilation is known.
Status choose_layout(const ConvShape& shape, ConvAlgorithm algorithm, ConvLayout* layout) {
  switch (algorithm) {
    case ConvAlgorithm::direct:
      *layout = shape.groups == shape.c && shape.groups > 1 ? ConvLayout::depthwise : ConvLayout::direct;
      return kOk;
    case ConvAlgorithm::winograd4:
    case ConvAlgorithm::winograd2:
      if (shape.r != 3 || shape.s != 3 || shape.groups != 1 || shape.c < 1) {
        return {"algorithm: Winograd is for 3 x 3 filters in one group"};
      }
      *layout = algorithm == ConvAlgorithm::winograd4 ? ConvLayout::winograd4 : ConvLayout::winograd2;
      return kOk;
  }
  return {"algorithm: expected 0 (direct), 1 (winograd4) or 2 (winograd2)"};
}

ConvAlgorithm algorithm_of(ConvLayout layout) {
  return layout == ConvLayout::winograd4   ? ConvAlgorithm::winograd4
         : layout == ConvLayout::winograd2 ? ConvAlgorithm::winograd2
                                           : ConvAlgorithm::direct;
}

// Checks the header and finds the method.
Status open(const ConvArgs& args, const ConvKernels& table, const ConvMethod** method) {
  ConvHeader header;
  if (args.packed == nullptr || args.packed_bytes < static_cast<int64_t>(sizeof header)) {
    return {"packed: expected a blob of conv_pack, got one that is shorter than its header"};
  }
  std::memcpy(&header, args.packed, sizeof header);
  if (header.magic != kConvMagic) return {"packed: expected a blob of conv_pack, got one without its magic number"};
  if (header.version != kConvVersion) {
    return {"packed: the blob is of another version of pykernels; pack the weight again"};
  }
  if (header.lanes != table.lanes) {
    return {"packed: the blob was packed for another ISA than the one in force; pack the weight again"};
  }
  const ConvShape& shape = args.shape;
  if (header.k != shape.k || header.c != shape.c || header.r != shape.r || header.s != shape.s ||
      header.groups != shape.groups) {
    return {"packed: the blob holds a weight of another shape or of other groups than weight_shape, x and groups say"};
  }
  if (header.layout < 0 || header.layout >= kConvLayouts) {
    return {"packed: the blob has a layout that this version of pykernels does not know; pack the weight again"};
  }
  // Every method takes the shapes that its layout is chosen for, and no others.
  const auto layout = static_cast<ConvLayout>(header.layout);
  const ConvAlgorithm algorithm = algorithm_of(layout);
  ConvLayout expected;
  if (!choose_layout(shape, algorithm, &expected) || layout != expected) {
    return {"packed: the blob has a layout that does not suit its own shape"};
  }
  if (algorithm != ConvAlgorithm::direct &&
      (shape.stride_h != 1 || shape.stride_w != 1 || shape.dilation_h != 1 || shape.dilation_w != 1)) {
    return {"packed: the blob was packed for Winograd, which needs stride 1 and dilation 1"};
  }
  *method = table.methods[header.layout];
  if (header.floats != (*method)->packed_floats(shape) ||
      args.packed_bytes != static_cast<int64_t>(sizeof header) + 4 * header.floats) {
    return {"packed: the blob's size is not the one that its header asks for"};
  }
  return kOk;
}

Status check_args(const ConvArgs& args) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  const auto code = static_cast<int32_t>(args.activation);
  if (code < 0 || code >= kActivations) return {"activation: not one of the nine"};
  return conv_check(args.shape);
}

}  // namespace

Status conv_check(const ConvShape& shape) {
  for (int64_t size :
       {shape.n, shape.c, shape.h, shape.w, shape.k, shape.r, shape.s, shape.stride_h, shape.stride_w, shape.pad_top,
        shape.pad_left, shape.pad_bottom, shape.pad_right, shape.dilation_h, shape.dilation_w, shape.groups}) {
    if (size < 0) return {"a size, stride, padding or dilation is negative"};
    if (size > kLargest) return {"a size, stride, padding or dilation is above 2^31"};
  }
  if (shape.k < 1) return {"weight: expected at least one output channel, got shape (0, ...)"};
  if (shape.r < 1 || shape.s < 1) return {"weight: expected a kernel of at least 1 x 1"};
  if (shape.stride_h < 1 || shape.stride_w < 1) return {"stride: expected at least 1"};
  if (shape.dilation_h < 1 || shape.dilation_w < 1) return {"dilation: expected at least 1"};
  if (shape.groups < 1) return {"groups: expected at least 1"};
  if (shape.c % shape.groups != 0) return {"groups: expected a divisor of x's channels"};
  if (shape.k % shape.groups != 0) return {"groups: expected a divisor of weight's output channels"};
  if (shape.n > 0 && shape.c > 0 && (shape.h == 0 || shape.w == 0)) {
    return {"x: expected height and width of at least 1; only the batch or the channels may be 0"};
  }
  const int64_t room_h = shape.h + shape.pad_top + shape.pad_bottom - shape.dilation_h * (shape.r - 1) - 1;
  const int64_t room_w = shape.w + shape.pad_left + shape.pad_right - shape.dilation_w * (shape.s - 1) - 1;
  if (room_h < 0 || room_w < 0) {
    return {"weight: the kernel (dilation included) is larger than the padded input"};
  }
  const int64_t padded_h = shape.h + shape.pad_top + shape.pad_bottom,
                padded_w = shape.w + shape.pad_left + shape.pad_right;
  if (!product_fits({shape.n + 1, shape.c + 64, padded_h, padded_w, 4}) ||
      !product_fits({shape.k + 64, shape.c + 64, shape.r, shape.s, 4}) ||
      !product_fits({shape.n + 1, shape.k + 64, shape.p(), shape.q(), 4}) ||
      !product_fits({shape.r, shape.s, shape.p(), shape.q(), 8}) ||
      // Depthwise with a multiplier copies x once per output channel; then the multiply-adds of the whole.
      !product_fits({shape.n + 1, shape.k + 64, padded_h, padded_w, 4}) ||
      !product_fits({shape.n + 1, shape.k + 64 * shape.groups, shape.c / shape.groups + 1, shape.r, shape.s, shape.p(),
                     shape.q()})) {
    return {"the sizes are too large"};
  }
  return kOk;
}

Status conv_choose(const ConvShape& shape, bool packs, ConvAlgorithm* algorithm) {
  if (Status status = conv_check(shape); !status) return status;
  *algorithm = ConvAlgorithm::direct;
  // Of few channels neither the transforms come to pay, nor is the error below that of direct.
  const bool suits = shape.r == 3 && shape.s == 3 && shape.stride_h == 1 && shape.stride_w == 1 &&
                     shape.dilation_h == 1 && shape.dilation_w == 1 && shape.groups == 1 && shape.c >= 32 &&
                     shape.k >= 16 && shape.n > 0;
  if (!suits) return kOk;
  const auto c = static_cast<double>(shape.c), k = static_cast<double>(shape.k), filters = c * k;
  const auto tiles = [&](int64_t m) {
    return static_cast<double>(shape.n) * static_cast<double>((shape.p() + m - 1) / m) *
           static_cast<double>((shape.q() + m - 1) / m);
  };
  // In multiplications of a matrix product in cache. Measured (docs/kernels/conv_bn_act.md): a float of weight costs 10
  // to bring in, where it comes from memory; transforms cost 350 a tile and input channel and 650 a tile and output
  // channel for F(4, 3), about half for F(2, 3); packing a filter costs 2000, 1200, 700.
  constexpr double kFloat = 10, kMargin = 1.2;
  const double winograd4 = tiles(4) * (36 * filters + 350 * c + 650 * k) + filters * (36 * kFloat + (packs ? 2000 : 0));
  const double winograd2 = tiles(2) * (16 * filters + 180 * c + 340 * k) + filters * (16 * kFloat + (packs ? 1200 : 0));
  const double direct = tiles(1) * 9 * filters * 1.16 + filters * (9 * kFloat + (packs ? 700 : 0));
  const bool four = winograd4 <= winograd2;
  if (kMargin * (four ? winograd4 : winograd2) < direct) {
    *algorithm = four ? ConvAlgorithm::winograd4 : ConvAlgorithm::winograd2;
  }
  return kOk;
}

Status conv_packed_bytes(const ConvShape& shape, ConvAlgorithm algorithm, int64_t* bytes) {
  if (Status status = conv_check(shape); !status) return status;
  ConvLayout layout;
  if (Status status = choose_layout(shape, algorithm, &layout); !status) return status;
  const ConvKernels* table;
  if (Status status = pick(&table); !status) return status;
  const ConvMethod& method = *table->methods[static_cast<int>(layout)];
  *bytes = static_cast<int64_t>(sizeof(ConvHeader)) + 4 * method.packed_floats(shape);
  return kOk;
}

Status conv_pack(const ConvShape& shape, ConvAlgorithm algorithm, DType dtype, const ConvTensor& weight, void* packed,
                 int64_t packed_bytes, const Executor& executor) {
  if (Status status = conv_check(shape); !status) return status;
  ConvLayout layout;
  if (Status status = choose_layout(shape, algorithm, &layout); !status) return status;
  if (dtype != DType::f32 && dtype != DType::bf16) return {"weight: expected float32 or bfloat16"};
  const ConvKernels* table;
  if (Status status = pick(&table); !status) return status;
  const ConvMethod& method = *table->methods[static_cast<int>(layout)];
  const int64_t floats = method.packed_floats(shape);
  if (packed == nullptr || packed_bytes != static_cast<int64_t>(sizeof(ConvHeader)) + 4 * floats) {
    return {"packed: expected room of conv_packed_bytes"};
  }
  const ConvHeader header = {kConvMagic,
                             kConvVersion,
                             static_cast<int32_t>(layout),
                             table->lanes,
                             shape.k,
                             shape.c,
                             shape.r,
                             shape.s,
                             shape.groups,
                             floats,
                             {}};
  std::memcpy(packed, &header, sizeof header);
  method.pack(shape, dtype, weight, reinterpret_cast<float*>(static_cast<char*>(packed) + sizeof header), executor);
  return kOk;
}

Status conv_workspace_bytes(const ConvArgs& args, const Executor& executor, int64_t* bytes) {
  if (Status status = check_args(args); !status) return status;
  const ConvKernels* table;
  if (Status status = pick(&table); !status) return status;
  const ConvMethod* method;
  if (Status status = open(args, *table, &method); !status) return status;
  *bytes = method->workspace_bytes(args, executor.threads) + kConvAlign;
  return kOk;
}

Status conv_bn_act(const ConvArgs& args, const Executor& executor) {
  if (Status status = check_args(args); !status) return status;
  const ConvKernels* table;
  if (Status status = pick(&table); !status) return status;
  const ConvMethod* method;
  if (Status status = open(args, *table, &method); !status) return status;
  if (args.shape.n == 0) return kOk;
  const int64_t needed = method->workspace_bytes(args, executor.threads) + kConvAlign;
  if (args.workspace_bytes < needed || args.workspace == nullptr) {
    return {"workspace: expected room of conv_workspace_bytes"};
  }
  ConvArgs aligned = args;
  const auto address = reinterpret_cast<uintptr_t>(args.workspace);
  aligned.workspace = reinterpret_cast<void*>((address + kConvAlign - 1) / kConvAlign * kConvAlign);
  const char* weight = static_cast<const char*>(args.packed) + sizeof(ConvHeader);
  method->run(aligned, reinterpret_cast<const float*>(weight), executor);
  return kOk;
}

}  // namespace pk
