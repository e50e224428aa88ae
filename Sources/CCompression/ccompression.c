#include "include/ccompression.h"
#include <lz4.h>
#include <lzma.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

long ccompression_gunzip(const void *source, long count, void *target, long capacity) {
  z_stream s;
  memset(&s, 0, sizeof s);
  if (count < 0 || capacity < 0 || inflateInit2(&s, 31) != Z_OK) return -1;
  s.next_in = (Bytef *)source; s.avail_in = (uInt)count;
  s.next_out = target; s.avail_out = (uInt)capacity;
  int r = inflate(&s, Z_FINISH);
  long done = (long)s.total_out;
  inflateEnd(&s);
  return r == Z_STREAM_END ? done : -1;
}
long ccompression_unxz(const void *source, long count, void *target, long capacity) {
  lzma_stream s = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&s, UINT64_MAX, 0) != LZMA_OK) return -1;
  s.next_in = source; s.avail_in = (size_t)count;
  s.next_out = target; s.avail_out = (size_t)capacity;
  lzma_ret r = lzma_code(&s, LZMA_FINISH);
  long done = (long)s.total_out;
  lzma_end(&s);
  return r == LZMA_STREAM_END ? done : -1;
}
long ccompression_unzstd(const void *source, long count, void *target, long capacity) {
  // The payload has a 4-byte size behind the frame: give the decoder the frame alone.
  size_t frame = ZSTD_findFrameCompressedSize(source, (size_t)count);
  if (ZSTD_isError(frame)) return -1;
  size_t n = ZSTD_decompress(target, (size_t)capacity, source, frame);
  return ZSTD_isError(n) ? -1 : (long)n;
}
long ccompression_unlz4(const void *source, long count, void *target, long capacity) {
  const uint8_t *p = source, *end = p + count;
  long done = 0;
  if (count < 4) return -1;
  p += 4;
  while (end - p >= 4) {
    uint32_t n;
    memcpy(&n, p, 4);
    p += 4;
    if (n == 0x184C2102) continue;  // a further frame
    if (n == 0 || n > (uint64_t)(end - p)) break;  // the appended size
    long room = capacity - done;
    int r = LZ4_decompress_safe((const char *)p, (char *)target + done, (int)n, room > 0x7fffffff ? 0x7fffffff : (int)room);
    if (r < 0) return -1;
    done += r;
    p += n;
  }
  return done > 0 ? done : -1;
}
unsigned long ccompression_crc64(const void *source, long count) { return count > 0 ? lzma_crc64(source, (size_t)count, 0) : 0; }
unsigned int ccompression_crc32(const void *source, long count) { return count > 0 ? lzma_crc32(source, (size_t)count, 0) : 0; }
