/* Which sources a library was built from: 16 hex digits, given by the build. */
#include "kernels.h"

EXPORT const char *kernel_sources(void);

const char *kernel_sources(void) { return KERNEL_SOURCES; }
