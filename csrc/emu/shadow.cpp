// The race detector: per 16-byte granule the last writes and the reads since, each by agent, clock and byte
// mask. An access must have seen every earlier conflicting one; luck of the schedule plays no part.
#include "machine.h"

namespace lowbit::emu {

namespace {

int first_byte(uint16_t mask) { return __builtin_ctz(mask); }

[[noreturn]] void report(const Thread& t, const Place& p, Instr instr, const char* verb, const Record& r,
                         const char* verb_other, bool async) {
  const unsigned long long at = p.offset / 16 * 16 + first_byte(uint16_t(r.mask & p.mask));
  const std::string who = r.agent == t.index && r.cta == machine->cta ? "the same thread" : agent_name(r);
  const char* missing = "with no synchronisation in between";
  if (r.flags & kPending)
    missing = r.instr == Instr::kCpAsync
                  ? "which is still in flight (no cp.async.wait_group of that thread covers it)"
                  : "which is still in flight (no wait_group covers it)";
  else if (async && sees(t, r)) missing = "with no fence.proxy.async by that thread after it";
  else if (r.flags & kAsyncProxy)
    missing = r.agent < machine->barrier_agent(kMaxMbarriers)
                  ? "with no completed wait on its mbarrier in between"
                  : "before a wgmma.wait_group covers it and a barrier passes that on";
  fail("%s %s byte %llu of %s, which %s %s with %s, %s", name(instr), verb, at, p.space, who.c_str(),
       verb_other, name(r.instr), missing);
}

}  // namespace

void check_read(const Thread& t, const Place& p, Instr instr, bool async, bool must_be_written,
                uint8_t flags) {
  uint16_t written = 0;
  for (const Record& r : p.granule->writes) {
    if (!(r.mask & p.mask)) continue;
    written |= r.mask;
    if ((r.flags & flags & kAtomic) != 0) continue;
    if ((r.flags & kPending) || !(async ? sees_async(t, r) : sees(t, r)))
      report(t, p, instr, "reads", r, "writes", async);
  }
  if (must_be_written && (p.mask & ~written)) {
    const unsigned long long at = p.offset / 16 * 16 + first_byte(uint16_t(p.mask & ~written));
    fail("%s reads byte %llu of %s, which nobody has written", name(instr), at, p.space);
  }
}

void check_write(const Thread& t, const Place& p, Instr instr, bool async, uint8_t flags) {
  for (const Record& r : p.granule->writes) {
    if (!(r.mask & p.mask) || (r.flags & flags & kAtomic)) continue;
    if ((r.flags & kPending) || !(async ? sees_async(t, r) : sees(t, r)))
      report(t, p, instr, "writes", r, "writes", async);
  }
  for (const Record& r : p.granule->reads) {
    if (!(r.mask & p.mask) || (r.flags & flags & kAtomic)) continue;
    if ((r.flags & kPending) || !sees(t, r)) report(t, p, instr, "writes", r, "reads", false);
  }
}

// A read that this one has seen need not be kept: whoever sees this one sees that one too.
void note_read(const Thread& t, const Place& p, const Record& r) {
  std::vector<Record>& reads = p.granule->reads;
  size_t kept = 0;
  for (size_t i = 0; i < reads.size(); ++i) {
    Record& old = reads[i];
    if (old.agent == r.agent && old.cta == r.cta && old.clock == r.clock && old.flags == r.flags) {
      old.mask |= r.mask;
      if (kept != i) {
        for (; i < reads.size(); ++i) reads[kept++] = reads[i];
        reads.resize(kept);
      }
      return;
    }
    const bool alike = !(old.mask & ~r.mask) && old.flags == r.flags && !(r.flags & kPending);
    const bool same_agent = old.agent == r.agent && old.cta == r.cta;  // its clock only grows
    const bool ordered = !(r.flags & kAsyncProxy) && alike && !same_agent && sees(t, old);
    if (!(alike && same_agent) && !ordered) reads[kept++] = old;
  }
  reads.resize(kept);
  reads.push_back(r);
}

namespace {

// Takes the bytes of r out of the list. An atomic is not ordered after the atomics of others, so those stay.
void drop(std::vector<Record>& list, const Record& r) {
  size_t kept = 0;
  for (Record& old : list) {
    const bool stays = (r.flags & old.flags & kAtomic) && (old.agent != r.agent || old.cta != r.cta);
    if (!stays) old.mask &= uint16_t(~r.mask);
    if (old.mask) list[kept++] = old;
  }
  list.resize(kept);
}

}  // namespace

void note_write(const Place& p, const Record& r) {
  drop(p.granule->writes, r);
  drop(p.granule->reads, r);
  p.granule->writes.push_back(r);
}

}  // namespace lowbit::emu
