#if defined(__x86_64__)
#pragma GCC target("avx2")
#define XXH_VECTOR XXH_AVX2
#define DIGEST_VARIANT avx2
#include "digest_variant.h"
#endif
