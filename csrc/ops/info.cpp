// What the library tells about itself: a plain C interface, read by lowbit._ext with ctypes.
#include <cstring>
#include <exception>
#include <string>

#include "../cpu/dispatch.h"

#define LOWBIT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
thread_local std::string answer;

const char* keep(std::string s) {
  answer = std::move(s);
  return answer.c_str();
}
}  // namespace

// One line per instruction set: name, "1" or "0" for supported, features; separated by tabs.
LOWBIT_EXPORT const char* lowbit_isas() {
  std::string out;
  for (const auto& isa : lowbit::cpu::isa_table())
    out += std::string(isa.name) + "\t" + (isa.supported ? "1" : "0") + "\t" + isa.features + "\n";
  return keep(out);
}

// The name in use, or "error: " and a sentence.
LOWBIT_EXPORT const char* lowbit_active_isa() {
  try {
    return keep(lowbit::cpu::active().name);
  } catch (const std::exception& e) {
    return keep(std::string("error: ") + e.what());
  }
}

// Null on success, else a sentence.
LOWBIT_EXPORT const char* lowbit_set_isa(const char* name) {
  try {
    lowbit::cpu::set_active(name);
    return nullptr;
  } catch (const std::exception& e) {
    return keep(e.what());
  }
}

LOWBIT_EXPORT int lowbit_cuda_compiled() {
#if defined(LOWBIT_CUDA)
  return 1;
#else
  return 0;
#endif
}
