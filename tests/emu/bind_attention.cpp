#include "../../csrc/kernels/kv_cache/append.cuh"
#include "../../csrc/kernels/kv_cache/attention.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::kv_cache;
namespace py = pybind11;

namespace {

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

// index, factor, shift: empty arrays for none; q, scale (empty: static), bits, clip; layout "int8", else
// packed.
void set_codes(AttentionParams& p, const py::dict& c, Buffers& buffers) {
  const auto array = [&](const char* name) { return py::array(c[name]); };
  p.adjust = {optional<const int32_t>(array("index")), optional<const float>(array("factor")),
              optional<const float>(array("shift"))};
  for (const char* name : {"index", "factor", "shift"}) add(buffers, bind::read(name, array(name)));
  const py::array q = array("q"), scale = array("scale");
  p.columns = p.adjust.index ? int32_t(array("index").size()) : p.heads * p.pages.d;
  const bool bytes = py::cast<std::string>(c["layout"]) == "int8";
  p.codes = {bytes ? quantize::Codes::kInt8 : quantize::Codes::kPacked4,
             py::cast<int>(c["bits"]),
             py::cast<float>(c["clip"]),
             bind::pointer<void>(q),
             q.shape(1),
             optional<float>(scale)};
  add(buffers, bind::write("codes", q)), add(buffers, bind::write("scale", scale));
}

template <int kHead>
void run_attention(const AttentionLaunch& a) {
  if (a.p.append) kv4_attention_kernel<kHead, true>(a);
  else kv4_attention_kernel<kHead, false>(a);
}

}  // namespace

LOWBIT_EMU_BIND(attention) {
  // qkv [tokens, (heads + 2 kv_heads) d] and outputs, or heads = 0: [tokens, 2 kv_heads d] and no outputs.
  m.def("kv4_append", [](py::array qkv, const std::string& dtype, int heads, py::array slots,
                         const py::dict& cache, const py::dict& rotation, double clip, py::array q,
                         py::array k, py::array v, const py::dict& options) {
    Buffers buffers{bind::read("qkv", qkv), bind::read("slots", slots)};
    AppendParams p{};
    p.dtype = bind::dtype_of(dtype), p.tokens = int32_t(slots.size()), p.heads = heads, p.clip = float(clip);
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

  // q [batch, heads, d], or with `rotation` [batch, (heads + 2 kv_heads) d] whose token is appended.
  // Settings: softmax_scale, clip; sm, multiprocessors, shared_bytes of the card; prefix: keys and values of
  // exact tokens, [2, tokens, kv_heads, d]; codes: see set_codes, or not there.
  m.def("kv4_attention", [](py::array q, const std::string& dtype, int batch, int heads,
                            const py::dict& cache, py::array table, py::array lengths,
                            const py::object& rotation, py::array y, const py::dict& settings,
                            const py::dict& options) {
    const bool coded = settings.contains("codes");
    Buffers buffers{bind::read("q", q), bind::read("table", table), bind::read("lengths", lengths),
                    coded ? bind::read_write("y", y) : bind::write("y", y)};
    AttentionParams p{};
    p.dtype = bind::dtype_of(dtype), p.batch = batch, p.heads = heads;
    p.q = bind::pointer<const void>(q), p.y = bind::pointer<void>(y);
    p.table = bind::pointer<const int32_t>(table), p.max_pages = int32_t(table.shape(1));
    p.lengths = bind::pointer<const int32_t>(lengths);
    p.softmax_scale = py::cast<float>(settings["softmax_scale"]), p.clip = py::cast<float>(settings["clip"]);
    p.append = !rotation.is_none();
    const py::array prefix = settings["prefix"];
    p.prefix = int32_t(prefix.shape(1)), p.prefix_key = optional<const float>(prefix);
    p.prefix_value = p.prefix_key + prefix.size() / 2;
    add(buffers, bind::read("prefix", prefix));
    p.pages = pages_of(cache, buffers);
    if (coded) set_codes(p, py::cast<py::dict>(settings["codes"]), buffers);
    if (p.append) p.rotation = rotation_of(py::cast<py::dict>(rotation), buffers);
    const Device device{py::cast<int>(settings["sm"]), py::cast<int>(settings["multiprocessors"]),
                        py::cast<int>(settings["shared_bytes"]), 0};
    const AttentionChoice c = choose(p, device);
    std::vector<uint8_t> room(16 + size_t(c.partial_floats) * 4);
    p.partial = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(room.data()) + 15) / 16 * 16);
    std::vector<uint32_t> tickets(size_t(c.tickets));
    p.tickets = tickets.data();
    if (c.splits > 1)
      buffers.push_back({"partial", p.partial, size_t(c.partial_floats) * 4, emu::Access::kWrite});
    if (c.tickets) buffers.push_back({"tickets", p.tickets, tickets.size() * 4, emu::Access::kReadWrite});
    emu::LaunchConfig config;
    config.grid_x = int(c.sequences), config.grid_y = c.blocks_per_sequence, config.block = kThreads,
    config.smem_bytes = uint32_t(c.shared);
    config.max_smem_bytes = uint32_t(device.shared_bytes);
    const AttentionLaunch launch{p, c};
    py::dict report;
    if (c.sequences)
      report = bind::run(config, options, buffers, [&] {
        if (p.pages.d == 64) run_attention<64>(launch);
        if (p.pages.d == 80) run_attention<80>(launch);
        if (p.pages.d == 96) run_attention<96>(launch);
        if (p.pages.d == 128) run_attention<128>(launch);
        if (p.pages.d == 256) run_attention<256>(launch);
      });
    for (uint32_t ticket : tickets)
      if (ticket) throw std::runtime_error("a ticket did not return to zero");
    report["blocks_per_sequence"] = c.blocks_per_sequence, report["splits"] = c.splits;
    report["groups"] = c.groups;
    return report;
  });
}
