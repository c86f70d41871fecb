#if defined(__x86_64__)
#pragma GCC target("avx512f")
#define XXH_VECTOR XXH_AVX512
#define DIGEST_VARIANT avx512
#include "digest_variant.h"
#endif
