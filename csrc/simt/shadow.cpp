#include "simt/shadow.h"

#include <string>

namespace megalite::simt {
namespace {

/// Whether an access tagged `before` is ordered before one tagged `me`: same thread, or a barrier
/// between them.
inline bool ordered(Tag before, Tag me) {
  if (block_epoch(before) < block_epoch(me) || thread_of(before) == thread_of(me)) return true;
  const int warp = warp_of(thread_of(before));
  return warp >= 0 && warp == warp_of(thread_of(me)) && warp_epoch(before) < warp_epoch(me);
}

std::string who(Tag tag) {
  const uint32_t thread = thread_of(tag);
  if (thread >= kAtomicWriter) return "an atomic operation";
  if (thread >= kManyReaders) return "threads of several warps";
  if (thread >= kWarpReader) return "lanes of warp " + std::to_string(thread - kWarpReader);
  return "thread " + std::to_string(thread);
}

const char* missing_barrier(Tag before, Tag me) {
  const int warp = warp_of(thread_of(before));
  return warp >= 0 && warp == warp_of(thread_of(me)) ? "syncwarp or syncthreads" : "syncthreads";
}

}  // namespace

void SharedMemory::check_written(Site site, Tag me, const Cell& c) const {
  const uint32_t offset = offset_of(c);
  if (c.write == 0) fail(site, "uninitialised shared memory is read at byte %u", offset);
  if (c.write & kPending) {
    fail(site, "shared memory is read at byte %u before the wait for the cp.async that %s issued",
         offset, who(c.write).c_str());
  }
  if (ordered(c.write, me)) return;
  fail(site, "shared-memory race at byte %u: read after %s wrote it, without %s between", offset,
       who(c.write).c_str(), missing_barrier(c.write, me));
}

void SharedMemory::check_overwrite(Site site, Tag me, const Cell& c) const {
  const uint32_t offset = offset_of(c);
  if (c.write & kPending) {
    fail(site,
         "shared memory is written at byte %u before the wait for the cp.async that %s issued",
         offset, who(c.write).c_str());
  }
  if (ordered(c.write, me)) return;
  fail(site, "shared-memory race at byte %u: written after %s wrote it, without %s between", offset,
       who(c.write).c_str(), missing_barrier(c.write, me));
}

void SharedMemory::check_readers(Site site, Tag me, const Cell& c) const {
  if (ordered(c.read, me)) return;
  fail(site, "shared-memory race at byte %u: written after %s read it, without %s between",
       offset_of(c), who(c.read).c_str(), missing_barrier(c.read, me));
}

void SharedMemory::atomic(Site site, Tag me, uint32_t offset, uint32_t bytes) {
  const Tag mark = (me & ~Tag{0xffff}) | kAtomicWriter;
  for (Cell *c = cell(offset), *end = cell(offset + bytes); c < end; ++c) {
    const bool after_atomic =
        block_epoch(c->write) == block_epoch(me) && thread_of(c->write) == kAtomicWriter;
    if (!after_atomic) check_written(site, me, *c);
    if (block_epoch(c->read) >= block_epoch(me)) check_readers(site, me, *c);
    c->write = mark;
  }
}

void SharedMemory::begin_copy(Site site, Tag me, uint32_t offset) {
  write(site, me, offset, 16);
  for (Cell *c = cell(offset), *end = cell(offset + 16); c < end; ++c) c->write = kPending | me;
}

void SharedMemory::finish_copy(Tag me, uint32_t offset, const void* source) {
  if (source != nullptr) {
    std::memcpy(data(offset), source, 16);
  } else {
    std::memset(data(offset), 0, 16);
  }
  for (Cell *c = cell(offset), *end = cell(offset + 16); c < end; ++c) c->write = me;
}

}  // namespace megalite::simt
