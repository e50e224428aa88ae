#include "include/zydisoracle.h"
#include <Zydis/Zydis.h>
#include <string.h>

void oracle_decode(const uint8_t *bytes, int count, int code_size, oracle_instruction *out) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction i;
  memset(out, 0, sizeof *out);
  ZydisDecoderInit(&decoder,
                   code_size == 2 ? ZYDIS_MACHINE_MODE_LONG_64 : code_size == 1 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16,
                   code_size == 2 ? ZYDIS_STACK_WIDTH_64 : code_size == 1 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16);
  if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&decoder, 0, bytes, (ZyanUSize)count, &i))) return;
  out->length = i.length;
  out->legacy = i.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
  out->opcode = i.opcode;
  out->map = i.opcode_map == ZYDIS_OPCODE_MAP_0F ? 1 : i.opcode_map == ZYDIS_OPCODE_MAP_0F38 ? 2 : i.opcode_map == ZYDIS_OPCODE_MAP_0F3A ? 3 : 0;
  out->has_modrm = (i.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
  out->mod = i.raw.modrm.mod; out->reg = i.raw.modrm.reg; out->rm = i.raw.modrm.rm;
  out->displacement = i.raw.disp.value;
  out->operand_width = i.operand_width;
  out->address_width = i.address_width;
}
