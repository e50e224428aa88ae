// Test support: Zydis as a second opinion on instruction decoding.
#ifndef ZYDISORACLE_H
#define ZYDISORACLE_H
#include <stdint.h>
typedef struct oracle_instruction {
  int length;      // 0: invalid
  int legacy;      // encoded without VEX, EVEX, XOP or 3DNow!
  int opcode, map; // map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A
  int has_modrm, mod, reg, rm;
  int64_t displacement;
  int operand_width, address_width;
} oracle_instruction;
/// code_size: 0 = 16, 1 = 32, 2 = 64 bits.
void oracle_decode(const uint8_t *bytes, int count, int code_size, oracle_instruction *out);
#endif
