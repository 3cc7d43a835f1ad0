// Vector clocks for the happens-before relation. A clock is immutable once shared, so that after a barrier
// all threads hold one object and a barrier costs one copy.
//
// Agents of a CTA: its threads, then its mbarriers (bytes that land on them: clock = phase + 1), then its
// warpgroups (the tensor core's reads: clock = group). `seen[a]`: everything agent a did up to that clock has
// happened before. `fenced[a]`: so has a proxy fence of the writer behind it, so the async proxy sees it too.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace lowbit::emu {

constexpr int kMaxMbarriers = 64;
constexpr int kMaxWarpgroups = 8;

struct Clock;

class ClockRef {
 public:
  ClockRef() = default;
  explicit ClockRef(Clock* clock) : clock_(clock) { retain(); }
  ClockRef(const ClockRef& other) : clock_(other.clock_) { retain(); }
  ClockRef(ClockRef&& other) noexcept : clock_(std::exchange(other.clock_, nullptr)) {}
  ClockRef& operator=(ClockRef other) noexcept {
    std::swap(clock_, other.clock_);
    return *this;
  }
  ~ClockRef();
  Clock* operator->() const { return clock_; }
  Clock& operator*() const { return *clock_; }
  Clock* get() const { return clock_; }
  explicit operator bool() const { return clock_ != nullptr; }

 private:
  inline void retain();
  Clock* clock_ = nullptr;
};

// What other CTAs have released to this one through atomics.
using Foreign = std::vector<std::pair<uint32_t, ClockRef>>;

struct Clock {
  explicit Clock(int agents) : agents(agents), values(new uint32_t[2 * agents]()) {}
  Clock(const Clock& other) : agents(other.agents), values(new uint32_t[2 * agents]), foreign(other.foreign) {
    memcpy(values.get(), other.values.get(), 8 * agents);
  }

  uint32_t& seen(int agent) { return values[agent]; }
  uint32_t& fenced(int agent) { return values[agents + agent]; }

  void join(const Clock& other) {
    uint32_t* a = values.get();
    const uint32_t* b = other.values.get();
    for (int i = 0; i < 2 * agents; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
    if (other.foreign && other.foreign != foreign) join_foreign(*other.foreign);
  }

  void join_foreign(const Foreign& other) {
    Foreign merged = foreign ? *foreign : Foreign();
    for (const auto& [cta, clock] : other) {
      bool found = false;
      for (auto& [mine, known] : merged) {
        if (mine != cta) continue;
        found = true;
        if (known.get() != clock.get()) {
          known = ClockRef(new Clock(*known));
          known->join(*clock);
        }
      }
      if (!found) merged.emplace_back(cta, clock);
    }
    foreign = std::make_shared<const Foreign>(std::move(merged));
  }

  int agents;
  uint32_t refs = 0;
  std::unique_ptr<uint32_t[]> values;
  std::shared_ptr<const Foreign> foreign;
};

inline void ClockRef::retain() {
  if (clock_) ++clock_->refs;
}
inline ClockRef::~ClockRef() {
  if (clock_ && --clock_->refs == 0) delete clock_;
}

}  // namespace lowbit::emu
