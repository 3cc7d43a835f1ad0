#include "../../csrc/kernels/kv_cache/append.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::kv_cache;
namespace py = pybind11;

namespace {

DType dtype_of(const std::string& name) {
  return name == "float32" ? DType::f32 : name == "bfloat16" ? DType::bf16 : DType::f16;
}

template <class T>
T* optional(const py::array& a) {
  return a.size() ? bind::pointer<T>(a) : nullptr;
}

using Buffers = std::vector<emu::Buffer>;

void add(Buffers& to, const emu::Buffer& b) {
  if (b.bytes) to.push_back(b);
}

// Caches as arrays [pages, kv_heads, page, ...]; the page size and the head size come from their shapes.
Pages pages_of(const py::dict& cache, Buffers& buffers) {
  const auto array = [&](const char* name) { return py::array(cache[name]); };
  Pages p{};
  const py::array codes = array("key_codes");
  p.slots = codes.shape(0) * codes.shape(2), p.kv_heads = int32_t(codes.shape(1));
  p.page_shift = __builtin_ctz(unsigned(codes.shape(2))), p.d = int32_t(2 * codes.shape(3));
  p.key_codes = bind::pointer<uint8_t>(codes), p.key_params = bind::pointer<uint32_t>(array("key_params"));
  p.value_codes = bind::pointer<uint8_t>(array("value_codes"));
  p.value_params = bind::pointer<uint32_t>(array("value_params"));
  for (const char* name : {"key_codes", "key_params", "value_codes", "value_params"})
    buffers.push_back(bind::read_write(name, array(name)));
  return p;
}

// cos, sin, q_norm, k_norm: empty arrays for none.
Rotation rotation_of(const py::dict& r, Buffers& buffers) {
  Rotation out{};
  const auto array = [&](const char* name) { return py::array(r[name]); };
  out.cos = optional<const float>(array("cos")), out.sin = optional<const float>(array("sin"));
  out.rotary = out.cos ? int32_t(array("cos").shape(1)) : 0;
  out.q_norm = optional<const float>(array("q_norm")), out.k_norm = optional<const float>(array("k_norm"));
  out.eps = py::cast<float>(r["eps"]), out.key_block = py::cast<int32_t>(r["key_block"]);
  out.key_scale = float(1.0 / __builtin_sqrt(double(out.key_block)));
  for (const char* name : {"cos", "sin", "q_norm", "k_norm"}) add(buffers, bind::read(name, array(name)));
  return out;
}

}  // namespace

LOWBIT_EMU_BIND(attention) {
  // qkv [tokens, (heads + 2 kv_heads) d] and outputs, or heads = 0: [tokens, 2 kv_heads d] and no outputs.
  m.def("kv4_append", [](py::array qkv, const std::string& dtype, int heads, py::array slots,
                         const py::dict& cache, const py::dict& rotation, double clip, py::array q,
                         py::array k, py::array v, const py::dict& options) {
    Buffers buffers{bind::read("qkv", qkv), bind::read("slots", slots)};
    AppendParams p{};
    p.dtype = dtype_of(dtype), p.tokens = int32_t(slots.size()), p.heads = heads, p.clip = float(clip);
    p.pages = pages_of(cache, buffers), p.rotation = rotation_of(rotation, buffers);
    const int64_t size = size_of(p.dtype) * p.pages.d;
    p.token_stride = int64_t(heads + 2 * p.pages.kv_heads) * p.pages.d;
    p.q = bind::pointer<uint8_t>(qkv), p.key = bind::pointer<uint8_t>(qkv) + heads * size;
    p.value = bind::pointer<uint8_t>(qkv) + (heads + p.pages.kv_heads) * size;
    p.slots = bind::pointer<const int64_t>(slots);
    p.q_out = optional<void>(q), p.k_out = optional<void>(k), p.v_out = optional<void>(v);
    add(buffers, bind::write("q", q)), add(buffers, bind::write("k", k)), add(buffers, bind::write("v", v));
    emu::LaunchConfig config;
    config.grid_x = int(append_blocks(p)), config.block = kThreads;
    return config.grid_x ? bind::run(config, options, buffers, [&] { kv4_append_kernel(p); }) : py::dict();
  });
}
