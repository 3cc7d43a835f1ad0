// The Python module lowbit_emulated: every emulated kernel that a bind_<family>.cpp registered.
#include "binding.h"

namespace lowbit::bind {

std::vector<Registrar>& registrars() {
  static std::vector<Registrar> list;
  return list;
}

}  // namespace lowbit::bind

PYBIND11_MODULE(lowbit_emulated, m) {
  pybind11::register_exception<lowbit::emu::Violation>(m, "Violation");
  for (lowbit::bind::Registrar bind : lowbit::bind::registrars()) bind(m);
}
