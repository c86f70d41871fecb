/* Bytes of a file or device that a kernel reads by itself; the descriptor is lent for the call. */
#ifndef HOMEWARD_PLACE_H
#define HOMEWARD_PLACE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

typedef struct {
    int descriptor;
    uint64_t start;
} file_place;

/* Whether all `length` bytes from `offset` on, counted from where the place starts, are in `into`. Why not is for the
 * caller to find out, who reads them in another way. */
static inline bool place_read(file_place place, uint64_t offset, uint8_t *into, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t got = pread(place.descriptor, into + done, length - done, (off_t)(place.start + offset + done));
        if (got > 0)
            done += (size_t)got;
        else if (got == 0 || errno != EINTR)
            return false;
    }
    return true;
}

#endif
