#if defined(__x86_64__)
#define XXH_VECTOR XXH_SSE2
#define DIGEST_VARIANT sse2
#include "digest_variant.h"
#endif
