// Tensor maps, encoded by the driver's cuTensorMapEncode*. The functions are asked for at run time: the library links
// no libcuda and loads on machines without a driver.
#include "cuda/tensor_map.h"

#ifdef __CUDACC__
#include <cuda.h>
#include <cudaTypedefs.h>
#endif

namespace pk::cuda {

namespace {

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }
bool within(int64_t x, int64_t low, int64_t high) { return low <= x && x <= high; }

constexpr int64_t kMaxSize = int64_t{1} << 32;
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

Status check_stride(int64_t stride, int64_t element) {
  // Before the product, which could overflow.
  if (!within(stride, 1, kMaxStrideBytes / element - 1)) return {"tensor map: strides must be 1 to 2^40 - 1 bytes"};
  if (stride * element % 16 != 0) return {"tensor map: strides must be multiples of 16 bytes"};
  return kOk;
}

Status check_inner(int64_t inner_bytes, Swizzle swizzle) {
  if (inner_bytes % 16 != 0) return {"tensor map: the box's inner dimension must be a multiple of 16 bytes"};
  if (swizzle == Swizzle::b128 && inner_bytes != 128) {
    return {"tensor map: with the 128-byte swizzle the box's inner dimension must be 128 bytes"};
  }
  return kOk;
}

// The far corner of the box of base pixels, relative to the image's last pixel.
int64_t far_corner(int64_t outputs, int64_t step, int64_t pad, int64_t size) {
  return (outputs - 1) * step - pad - (size - 1);
}

}  // namespace

Status check(const TiledView& view) {
  const auto element = static_cast<int64_t>(size_of(view.dtype));
  if (view.data == nullptr || !aligned(view.data, 16)) return {"tensor map: data must be aligned to 16 bytes"};
  if (!within(view.rank, 1, 5)) return {"tensor map: rank must be 1 to 5"};
  if (view.stride[0] != 1) return {"tensor map: the innermost stride must be 1"};
  for (int i = 0; i < view.rank; ++i) {
    if (!within(view.size[i], 1, kMaxSize)) return {"tensor map: sizes must be 1 to 2^32"};
    if (!within(view.box[i], 1, 256)) return {"tensor map: box sizes must be 1 to 256"};
    if (i == 0) continue;
    if (const Status status = check_stride(view.stride[i], element); status.error != nullptr) return status;
  }
  return check_inner(view.box[0] * element, view.swizzle);
}

Status check(const Im2colView& view) {
  const auto element = static_cast<int64_t>(size_of(view.dtype));
  if (view.data == nullptr || !aligned(view.data, 16)) return {"tensor map: data must be aligned to 16 bytes"};
  for (const int64_t size : {view.n, view.h, view.w, view.c, view.p, view.q}) {
    if (!within(size, 1, kMaxSize)) return {"tensor map: sizes must be 1 to 2^32"};
  }
  for (const int64_t stride : {view.stride_n, view.stride_h, view.stride_w}) {
    if (const Status status = check_stride(stride, element); status.error != nullptr) return status;
  }
  if (!within(view.step_h, 1, 8) || !within(view.step_w, 1, 8)) return {"tensor map: steps must be 1 to 8"};
  if (!within(-view.pad_top, -128, 127) || !within(-view.pad_left, -128, 127) ||
      !within(far_corner(view.p, view.step_h, view.pad_top, view.h), -128, 127) ||
      !within(far_corner(view.q, view.step_w, view.pad_left, view.w), -128, 127)) {
    return {"tensor map: corners of the im2col box must be -128 to 127"};
  }
  if (!within(view.pixels, 1, 1024)) return {"tensor map: pixels must be 1 to 1024"};
  if (!within(view.channels, 1, 256)) return {"tensor map: channels must be 1 to 256"};
  return check_inner(view.channels * element, view.swizzle);
}

#ifdef __CUDACC__

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));

namespace {

CUtensorMapDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::f16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::i8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::i32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

CUtensorMapSwizzle swizzle_of(Swizzle swizzle) {
  return swizzle == Swizzle::b128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE;
}

template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(function) : nullptr;
}

// The driver's functions want a context. A thread that has not used the runtime yet, such as one of autograd's, has
// none: naming its device again gives it the device's own. (Not a stream's work, so a capture goes on.)
bool has_context() {
  int index = 0;
  if (cudaGetDevice(&index) == cudaSuccess && cudaSetDevice(index) == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

constexpr Status kNoContext{"tensor map: the thread has no CUDA device"};
constexpr Status kNoDriver{"tensor map: the driver has no cuTensorMapEncode; CUDA 12 or later is needed"};
constexpr Status kRefused{"tensor map: the driver refused the view"};

}  // namespace

Status make_tensor_map(const TiledView& view, TensorMap* map) {
  if (const Status status = check(view); status.error != nullptr) return status;
  static const auto encode = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return kNoDriver;
  if (!has_context()) return kNoContext;
  const auto element = static_cast<cuuint64_t>(size_of(view.dtype));
  cuuint64_t size[5], stride_bytes[4] = {};
  cuuint32_t box[5], step[5];
  for (int i = 0; i < view.rank; ++i) {
    size[i] = static_cast<cuuint64_t>(view.size[i]);
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(view.stride[i]) * element;
    box[i] = static_cast<cuuint32_t>(view.box[i]);
    step[i] = 1;
  }
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(map), data_type(view.dtype), static_cast<cuuint32_t>(view.rank),
             const_cast<void*>(view.data), size, stride_bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle_of(view.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? kOk : kRefused;
}

Status make_tensor_map(const Im2colView& view, TensorMap* map) {
  if (const Status status = check(view); status.error != nullptr) return status;
  static const auto encode = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return kNoDriver;
  if (!has_context()) return kNoContext;
  const auto wide = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t element = size_of(view.dtype);
  const cuuint64_t size[4] = {wide(view.c), wide(view.w), wide(view.h), wide(view.n)};
  const cuuint64_t stride_bytes[3] = {wide(view.stride_w) * element, wide(view.stride_h) * element,
                                      wide(view.stride_n) * element};
  const cuuint32_t step[4] = {1, static_cast<cuuint32_t>(view.step_w), static_cast<cuuint32_t>(view.step_h), 1};
  // Corners go innermost first, as everything else does.
  const int near[2] = {static_cast<int>(-view.pad_left), static_cast<int>(-view.pad_top)};
  const int far[2] = {static_cast<int>(far_corner(view.q, view.step_w, view.pad_left, view.w)),
                      static_cast<int>(far_corner(view.p, view.step_h, view.pad_top, view.h))};
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(map), data_type(view.dtype), 4, const_cast<void*>(view.data), size,
             stride_bytes, near, far, static_cast<cuuint32_t>(view.channels), static_cast<cuuint32_t>(view.pixels),
             step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(view.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? kOk : kRefused;
}

#else

Status make_tensor_map(const TiledView& view, TensorMap* map) {
  if (const Status status = check(view); status.error != nullptr) return status;
  *map = {};
  map->data = static_cast<const unsigned char*>(view.data);
  map->element = static_cast<int>(size_of(view.dtype));
  map->rank = view.rank;
  for (int i = 0; i < view.rank; ++i) {
    map->size[i] = view.size[i];
    map->stride_bytes[i] = view.stride[i] * map->element;
    map->box[i] = view.box[i];
  }
  map->swizzle = view.swizzle == Swizzle::b128;
  return kOk;
}

Status make_tensor_map(const Im2colView& view, TensorMap* map) {
  if (const Status status = check(view); status.error != nullptr) return status;
  *map = {};
  map->data = static_cast<const unsigned char*>(view.data);
  map->element = static_cast<int>(size_of(view.dtype));
  map->im2col = true;
  map->rank = 4;
  const int64_t size[4] = {view.c, view.w, view.h, view.n};
  const int64_t stride[4] = {1, view.stride_w, view.stride_h, view.stride_n};
  for (int i = 0; i < 4; ++i) {
    map->size[i] = size[i];
    map->stride_bytes[i] = stride[i] * map->element;
  }
  map->near[0] = -view.pad_left;
  map->near[1] = -view.pad_top;
  map->far[0] = view.w - 1 + far_corner(view.q, view.step_w, view.pad_left, view.w);
  map->far[1] = view.h - 1 + far_corner(view.p, view.step_h, view.pad_top, view.h);
  map->step[0] = view.step_w;
  map->step[1] = view.step_h;
  map->pixels = view.pixels;
  map->channels = view.channels;
  map->swizzle = view.swizzle == Swizzle::b128;
  return kOk;
}

#endif

}  // namespace pk::cuda
