#define XXH_VECTOR XXH_SCALAR
#define DIGEST_VARIANT scalar
#include "digest_variant.h"
