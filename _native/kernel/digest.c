#include "digest.h"

#include <string.h>

extern const digest_kernel digest_kernel_scalar;
#if defined(__x86_64__)
extern const digest_kernel digest_kernel_sse2, digest_kernel_avx2, digest_kernel_avx512;
#endif

size_t digest_variants(const digest_kernel *list[DIGEST_VARIANTS_MAX])
{
    size_t count = 0;
    list[count++] = &digest_kernel_scalar;
#if defined(__x86_64__)
    /* Every x86-64 has SSE2; the other two also need an operating system that saves the registers,
     * which __builtin_cpu_supports looks at. */
    list[count++] = &digest_kernel_sse2;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        list[count++] = &digest_kernel_avx2;
    if (__builtin_cpu_supports("avx512f"))
        list[count++] = &digest_kernel_avx512;
#endif
    return count;
}

const digest_kernel *digest_best(void)
{
    const digest_kernel *list[DIGEST_VARIANTS_MAX];
    return list[digest_variants(list) - 1];
}

const digest_kernel *digest_named(const char *name)
{
    const digest_kernel *list[DIGEST_VARIANTS_MAX];
    size_t count = digest_variants(list);
    if (strcmp(name, "auto") == 0)
        return list[count - 1];
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, list[i]->name) == 0)
            return list[i];
    return NULL;
}

size_t digest_pieces(const digest_kernel *kernel, const uint8_t *data, size_t length, size_t unit,
                     const uint8_t *secret, uint8_t *digests)
{
    size_t count = piece_count(length, unit), nonzero = 0;
    for (size_t i = 0; i < count; i++)
        nonzero += digest_piece(kernel, data + i * unit, piece_bytes(length, unit, i), secret,
                                digests + i * DIGEST_BYTES);
    return nonzero;
}

uint64_t digest_file(const digest_kernel *kernel, file_place place, uint64_t length, uint8_t *work,
                     const uint8_t *secret, uint8_t *digests, size_t *nonzero)
{
    uint64_t done = 0;
    *nonzero = 0;
    while (done < length) {
        size_t size = length - done < DIGEST_WORK_BYTES ? (size_t)(length - done) : DIGEST_WORK_BYTES;
        if (!place_read(place, done, work, size))
            break;
        *nonzero += digest_pieces(kernel, work, size, BLOCK_BYTES, secret,
                                  digests + done / BLOCK_BYTES * DIGEST_BYTES);
        done += size;
    }
    return done;
}

void digest_block_sectors(const digest_kernel *kernel, const uint8_t *block, size_t length, const uint8_t *secret,
                          uint8_t digests[BLOCK_SECTORS * DIGEST_BYTES])
{
    size_t used = piece_count(length, SECTOR_BYTES) * DIGEST_BYTES;
    digest_pieces(kernel, block, length, SECTOR_BYTES, secret, digests);
    memset(digests + used, 0, BLOCK_SECTORS * DIGEST_BYTES - used);
}

void digest_span_sectors(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                         const uint8_t *secret, uint8_t *digests)
{
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        digest_block_sectors(kernel, span + i * BLOCK_BYTES, piece_bytes(length, BLOCK_BYTES, i), secret, digests);
        digests += BLOCK_SECTORS * DIGEST_BYTES;
    }
}
