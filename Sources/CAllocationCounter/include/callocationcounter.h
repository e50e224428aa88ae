#pragma once
// Test support: the program's malloc, counting the calls of threads whose name begins with a prefix while asked to.
void allocation_count_begin(const char *thread_name_prefix);
long allocation_count_end(void);
