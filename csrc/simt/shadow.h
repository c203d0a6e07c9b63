// Shared memory of the emulated block, and for each pair of bytes who wrote it last and who has
// read it since, in which interval between barriers. An access that no barrier orders after a
// conflicting one is a race.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace megalite::simt {

/// Where in the kernel source something happened.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// Stop the kernel with a message that names kernel, source line, block and thread.
[[noreturn]] __attribute__((noinline, cold)) void fail(Site site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

/// Who accessed memory, and when: [block epoch: 23 | warp epoch: 24 | thread: 16]. A block barrier
/// advances both epochs, a syncwarp the warp's. Thread numbers from 0x400 on are groups.
using Tag = uint64_t;
constexpr Tag kPending = Tag{1} << 63;      // a cp.async has been issued and not waited for
constexpr uint32_t kWarpReader = 0x400;     // + warp: several lanes of one warp
constexpr uint32_t kManyReaders = 0x800;    // lanes of several warps
constexpr uint32_t kAtomicWriter = 0x1000;  // any number of atomic operations
constexpr uint32_t block_epoch(Tag tag) { return static_cast<uint32_t>(tag >> 40); }
constexpr uint32_t warp_epoch(Tag tag) { return static_cast<uint32_t>(tag >> 16) & 0xffffffu; }
constexpr uint32_t thread_of(Tag tag) { return static_cast<uint32_t>(tag) & 0xffffu; }
constexpr Tag make_tag(uint32_t block, uint32_t warp, uint32_t thread) {
  return Tag{block} << 40 | Tag{warp & 0xffffffu} << 16 | thread;
}
/// The warp of a thread or of a kWarpReader group; -1 of the other groups.
constexpr int warp_of(uint32_t thread) {
  if (thread < kWarpReader) return static_cast<int>(thread / 32);
  return thread < kManyReaders ? static_cast<int>(thread - kWarpReader) : -1;
}

class SharedMemory {
 public:
  /// Start with `bytes` of NaN that count as never written.
  void reset(int bytes) {
    bytes_ = bytes;
    data_.assign(static_cast<size_t>(bytes) + 16, 0xff);
    cells_.assign(static_cast<size_t>(bytes) / 2 + 8, Cell{0, 0});
  }
  int bytes() const { return bytes_; }
  unsigned char* data(uint32_t offset) { return data_.data() + offset; }

  void read(Site site, Tag me, uint32_t offset, uint32_t bytes) {
    for (Cell *c = cell(offset), *end = cell(offset + bytes); c < end; ++c) {
      // One comparison for "written in an earlier interval": 0 (never) and pending wrap to large
      // numbers.
      if (block_epoch(c->write) - 1u >= block_epoch(me) - 1u) check_written(site, me, *c);
      if (c->read != me) note_reader(*c, me);
    }
  }
  void write(Site site, Tag me, uint32_t offset, uint32_t bytes) {
    for (Cell *c = cell(offset), *end = cell(offset + bytes); c < end; ++c) {
      if (block_epoch(c->write) >= block_epoch(me)) check_overwrite(site, me, *c);
      if (block_epoch(c->read) >= block_epoch(me)) check_readers(site, me, *c);
      c->write = me;
    }
  }
  /// An atomic read-modify-write; conflicts with plain accesses only.
  void atomic(Site site, Tag me, uint32_t offset, uint32_t bytes);
  /// A cp.async to 16 bytes is issued: until it is waited for, nothing may access them.
  void begin_copy(Site site, Tag me, uint32_t offset);
  /// The cp.async has been waited for: store its bytes, as a write of the waiting thread.
  void finish_copy(Tag me, uint32_t offset, const void* source);

 private:
  struct Cell {
    Tag write, read;
  };
  Cell* cell(uint32_t offset) { return cells_.data() + offset / 2; }
  uint32_t offset_of(const Cell& c) const { return static_cast<uint32_t>(&c - cells_.data()) * 2; }
  __attribute__((noinline)) void check_written(Site site, Tag me, const Cell& c) const;
  __attribute__((noinline)) void check_overwrite(Site site, Tag me, const Cell& c) const;
  __attribute__((noinline)) void check_readers(Site site, Tag me, const Cell& c) const;
  static void note_reader(Cell& c, Tag me) {
    if (block_epoch(c.read) != block_epoch(me) || thread_of(c.read) == thread_of(me)) {
      c.read = me;
      return;
    }
    const int warp = warp_of(thread_of(me));
    const uint32_t group = warp_of(thread_of(c.read)) == warp
                               ? kWarpReader + static_cast<uint32_t>(warp)
                               : kManyReaders;
    c.read = (me & ~Tag{0xffff}) | group;
  }

  int bytes_ = 0;
  std::vector<unsigned char> data_;
  std::vector<Cell> cells_;
};

}  // namespace megalite::simt
