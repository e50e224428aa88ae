// Headers only; see include/cx86.h.
