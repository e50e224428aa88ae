#define _GNU_SOURCE
#include "clinux.h"
#include <link.h>
#include <stdio.h>
#include <string.h>

// A debugger's breakpoints lie in pages of code, and would be forgotten with them.
static int is_traced(void) {
  char line[128];
  int traced = 0;
  FILE *status = fopen("/proc/self/status", "re");
  if (!status) return 1;
  while (fgets(line, sizeof line, status))
    if (sscanf(line, "TracerPid: %d", &traced) == 1) break;
  fclose(status);
  return traced != 0;
}
// Relocations in code make it other than the file's.
static int is_relocated(const struct dl_phdr_info *info) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    for (const ElfW(Dyn) *entry = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr); entry->d_tag != DT_NULL; entry++)
      if (entry->d_tag == DT_TEXTREL || (entry->d_tag == DT_FLAGS && entry->d_un.d_val & DF_TEXTREL)) return 1;
  }
  return 0;
}
static int forget(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  if (is_relocated(info) || strstr(info->dlpi_name, "vdso")) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *header = &info->dlpi_phdr[i];
    // What is never written is as it is in the file, and comes from there when it is needed again.
    if (header->p_type != PT_LOAD || header->p_flags & PF_W) continue;
    uintptr_t first = (info->dlpi_addr + header->p_vaddr + 4095) & ~(uintptr_t)4095;
    uintptr_t end = (info->dlpi_addr + header->p_vaddr + header->p_filesz) & ~(uintptr_t)4095;
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
  }
  return 0;
}
void clinux_forget_cold_code(void) {
  if (!is_traced()) dl_iterate_phdr(forget, NULL);
}
