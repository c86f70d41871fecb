/* The body of one variant: a digest_NAME.c sets the target, XXH_VECTOR and DIGEST_VARIANT, then includes this.
 *
 * xxhash.h comes inlined, so that its loops are compiled for the target of the file that includes it.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "digest.h"

_Static_assert(DIGEST_SECRET_BYTES >= XXH3_SECRET_SIZE_MIN, "the secret is long enough for XXH3");
_Static_assert(DIGEST_BYTES == sizeof(XXH128_canonical_t), "a digest is one canonical XXH3-128");

#define DIGEST_PASTE(prefix, name) prefix##name
#define DIGEST_SYMBOL(name) DIGEST_PASTE(digest_kernel_, name)
#define DIGEST_QUOTE(name) #name
#define DIGEST_NAME(name) DIGEST_QUOTE(name)

static void hash(const uint8_t *data, size_t length, const uint8_t *secret, uint8_t digest[DIGEST_BYTES])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSecret(data, length, secret, DIGEST_SECRET_BYTES));
    memcpy(digest, &canonical, DIGEST_BYTES);
}

extern const digest_kernel DIGEST_SYMBOL(DIGEST_VARIANT);
const digest_kernel DIGEST_SYMBOL(DIGEST_VARIANT) = {DIGEST_NAME(DIGEST_VARIANT), hash};
