/* What all kernels share. */
#ifndef ENCORE_KERNELS_H
#define ENCORE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blocks, rows and caches are little-endian: numpy computes here"
#endif

/* Visible to ctypes; everything else stays inside the library. */
#define EXPORT __attribute__((visibility("default")))

/* One build for machines with and without wide vectors, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

#endif
