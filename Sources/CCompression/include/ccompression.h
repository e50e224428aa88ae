// Kernel decompression through the system's libraries: each returns the number of bytes written, or -1.
#ifndef CCOMPRESSION_H
#define CCOMPRESSION_H
long ccompression_gunzip(const void *source, long count, void *target, long capacity);
long ccompression_unxz(const void *source, long count, void *target, long capacity);
long ccompression_unzstd(const void *source, long count, void *target, long capacity);
/// The "legacy" frame that Linux uses: a magic number, then blocks behind their 32-bit sizes.
long ccompression_unlz4(const void *source, long count, void *target, long capacity);
/// Checksums, for recognising content.
unsigned long ccompression_crc64(const void *source, long count);
unsigned int ccompression_crc32(const void *source, long count);
#endif
