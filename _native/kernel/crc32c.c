#include "crc32c.h"

#include <pthread.h>

#define REFLECTED 0x82F63B78u

/* table[k][b]: what a byte b does to the remainder after k more bytes of zeroes. Eight bytes are taken at once. */
static uint32_t table[8][256];
static pthread_once_t filled = PTHREAD_ONCE_INIT;

static void fill(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; bit++)
            rest = (rest >> 1) ^ (rest & 1 ? REFLECTED : 0);
        table[0][byte] = rest;
    }
    for (int after = 1; after < 8; after++)
        for (uint32_t byte = 0; byte < 256; byte++)
            table[after][byte] = (table[after - 1][byte] >> 8) ^ table[0][table[after - 1][byte] & 0xFF];
}

uint32_t crc32c(const uint8_t *data, size_t length, uint32_t before)
{
    pthread_once(&filled, fill);
    uint32_t rest = ~before;
    while (length >= 8) {
        rest ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        rest = table[7][rest & 0xFF] ^ table[6][rest >> 8 & 0xFF] ^ table[5][rest >> 16 & 0xFF] ^
               table[4][rest >> 24] ^ table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
        data += 8;
        length -= 8;
    }
    while (length--)
        rest = (rest >> 8) ^ table[0][(rest ^ *data++) & 0xFF];
    return ~rest;
}
