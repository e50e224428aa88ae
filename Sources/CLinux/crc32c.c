#include "clinux.h"

/// With the processor's instruction (SSE4.2), eight bytes at a time.
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t sum, const uint8_t *bytes, size_t count) {
  uint64_t value = sum;
  for (; count >= 8; bytes += 8, count -= 8) {
    uint64_t next;
    __builtin_memcpy(&next, bytes, 8);
    value = __builtin_ia32_crc32di(value, next);
  }
  sum = (uint32_t)value;
  for (; count > 0; bytes++, count--) sum = __builtin_ia32_crc32qi(sum, *bytes);
  return sum;
}
static uint32_t by_bits(uint32_t sum, const uint8_t *bytes, size_t count) {
  for (; count > 0; bytes++, count--) {
    sum ^= *bytes;
    for (int bit = 0; bit < 8; bit++) sum = sum & 1 ? sum >> 1 ^ 0x82F63B78u : sum >> 1;
  }
  return sum;
}
uint32_t clinux_crc32c(uint32_t sum, const void *bytes, size_t count) {
  return __builtin_cpu_supports("sse4.2") ? by_instruction(sum, bytes, count) : by_bits(sum, bytes, count);
}
