// Test support: runs one machine instruction on the host with a given register file.
#ifndef HOSTRUNNER_H
#define HOSTRUNNER_H
#include <stdint.h>
typedef struct host_registers {
  uint64_t gpr[16];
  uint64_t rflags;
  uint64_t pad;
  uint8_t vectors[512];  // 16 of 32 bytes; without AVX the upper halves mean nothing
} host_registers;

/// Maps the runner: code at `base`, registers behind it, then `data_size` bytes of data at base + 0x2000.
/// Returns 0, or -1 when the address is not to be had.
int host_runner_init(uint64_t base, uint64_t data_size);
/// Runs `count` instruction bytes on `registers`. Returns 0, or the signal that it ended in (registers undefined then).
int host_runner_run(const uint8_t *code, int count, host_registers *registers);
void *host_runner_data(void);
int host_has_avx(void);
#endif
