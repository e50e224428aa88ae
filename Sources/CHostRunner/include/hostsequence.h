// Test support: runs a sequence of machine code on the host with a given register file, and says exactly how it ended.
#ifndef HOSTSEQUENCE_H
#define HOSTSEQUENCE_H
#include <stdint.h>
typedef struct host_sequence_state {
  uint64_t gpr[16];
  uint64_t rflags, rip;
  uint64_t cr2, error;
  uint8_t fx[512];  // an FXSAVE image
  uint8_t vectors[512];  // 16 of 32 bytes, with AVX; they come before the image's XMM registers
} host_sequence_state;

/// Offsets from `code`: where a sequence starts, how long it may be, and where it has to jump to at its end, out of reach of
/// addresses made from those of the code: what stands there is not the same on both sides. And two pages of what runs sequences,
/// which only the host has.
enum { HOST_SEQUENCE_CODE = 0x400, HOST_SEQUENCE_CODE_SIZE = 0x400, HOST_SEQUENCE_EXIT = 0x2A3C5000,
  HOST_SEQUENCE_EXIT_NARROW = 0x2A3C5800, HOST_SEQUENCE_FAR = 0x3A5B7000,
  HOST_SEQUENCE_FAR_SIZE = 0x2000, HOST_SEQUENCE_ENDLESS = 1000 };

/// Maps a writable and executable page at `code` and `data_size` bytes at `data`, and what runs sequences out of their way.
/// Returns 0, or -1 when an address is not to be had.
int host_sequence_init(uint64_t code, uint64_t data, uint64_t data_size);
/// To be called on the thread that called `host_sequence_init` and `host_sequence_run`.
void host_sequence_finish(void);
/// 0 nothing, 1 read, 3 read and write.
void host_sequence_protect(uint64_t address, uint64_t size, int access);
/// Runs what stands at code + HOST_SEQUENCE_CODE, as 64-bit or as 32-bit code, which has an exit of its own. Returns -1 when it came to
/// the exit, else the exception's vector; `state` is what it was then. HOST_SEQUENCE_ENDLESS: it did not end.
int host_sequence_run(host_sequence_state *state, int wide);
#endif
