/* relay NAME DELAY_US LOSS_PPM SEED: every packet that the kernel routes into the TUN device NAME comes back out of it
 * DELAY_US later, except LOSS_PPM of a million, which are lost. Both directions pass here, each delayed once.
 *
 * TCP's segments come in trains (virtio's GSO), which is what makes 1 Gbit/s cheap; a loss takes one segment out of its
 * train, so that losses are as independent as those of single packets. Packets keep their order: all have the same
 * delay, so one ring is enough. Says "ready" on stdout when the device is there; on SIGTERM or SIGINT
 * "passed P lost L full F" (segments; F had no room in the ring) and ends. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOTS = 65536,              /* 80 ms of 1 Gbit/s are 6,700 packets of 1,500 bytes; short ones come beside them */
    ARENA_BYTES = 64 << 20,     /* … and 10 MB */
    TRAIN_BYTES_MAX = 66 << 10, /* an IP packet and virtio's header */
    BATCH = 32,                 /* packets read before those that are due are looked at again */
    OFFLOADS = TUN_F_CSUM | TUN_F_TSO4,
};

struct slot {
    uint64_t due;
    uint32_t offset, length;
};

struct relay {
    int tun;
    uint64_t delay, loss, dice, passed, lost, full;
    uint64_t head, tail;    /* slots taken out and put in so far */
    uint32_t place;         /* where the next packet goes in the arena */
    struct slot *slots;
    uint8_t *arena;
};

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int is_lost(struct relay *relay) { /* xorshift64*, Vigna 2016 */
    relay->dice ^= relay->dice >> 12;
    relay->dice ^= relay->dice << 25;
    relay->dice ^= relay->dice >> 27;
    return (relay->dice * 0x2545F4914F6CDD1Du >> 20) % 1000000 < relay->loss;
}

/* Room for the longest packet behind the last one; NULL when the ring is full. */
static uint8_t *room(struct relay *relay) {
    if (relay->head == relay->tail) {
        relay->place = 0;
        return relay->arena;
    }
    if (relay->tail - relay->head == SLOTS)
        return NULL;
    uint32_t first = relay->slots[relay->head % SLOTS].offset;
    if (relay->place >= first) {
        if (relay->place + TRAIN_BYTES_MAX <= ARENA_BYTES)
            return relay->arena + relay->place;
        relay->place = 0;
    }
    return relay->place + TRAIN_BYTES_MAX < first ? relay->arena + relay->place : NULL;
}

static void keep(struct relay *relay, uint8_t *packet, size_t length, uint64_t time) {
    uint32_t offset = (uint32_t)(packet - relay->arena);
    relay->slots[relay->tail++ % SLOTS] = (struct slot){time + relay->delay, offset, (uint32_t)length};
    relay->place = offset + (uint32_t)((length + 7) & ~(size_t)7);
}

static uint32_t sum16(const uint8_t *bytes, size_t count, uint32_t sum) {
    for (size_t i = 0; i + 1 < count; i += 2)
        sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
    return sum;
}

static void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t folded(uint32_t sum) {
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
}

/* Segments `first` to `end` of the train, headers made to fit, are kept: virtio's header, IPv4, TCP, payload. */
static void keep_part(struct relay *relay, const uint8_t *train, size_t headers, size_t payload, size_t segment,
                      size_t first, size_t end, uint64_t time) {
    uint8_t *out = room(relay);
    if (first == end)
        return;
    if (out == NULL) {
        relay->full += end - first;
        return;
    }
    size_t begin = first * segment, bytes = (end * segment < payload ? end * segment : payload) - begin;
    memcpy(out, train, headers);
    memcpy(out + headers, train + headers + begin, bytes);
    struct virtio_net_hdr *told = (struct virtio_net_hdr *)out;
    if (bytes <= segment)
        told->gso_type = VIRTIO_NET_HDR_GSO_NONE, told->gso_size = 0;
    uint8_t *ip = out + sizeof *told, *tcp = ip + (ip[0] & 15) * 4;
    size_t whole = headers - sizeof *told + bytes, inner = whole - (size_t)(tcp - ip);
    put16(ip + 2, (uint32_t)whole);
    put16(ip + 10, 0);
    put16(ip + 10, ~folded(sum16(ip, (size_t)(tcp - ip), 0)));
    uint32_t sequence;
    memcpy(&sequence, tcp + 4, 4);
    sequence = htonl(ntohl(sequence) + (uint32_t)begin);
    memcpy(tcp + 4, &sequence, 4);
    if (end * segment < payload)
        tcp[13] &= (uint8_t)~0x09; /* FIN and PSH belong to the last segment */
    put16(tcp + 16, folded(sum16(ip + 12, 8, (uint32_t)inner + 6))); /* the pseudo header; the kernel does the rest */
    keep(relay, out, sizeof *told + whole, time);
}

static void take(struct relay *relay, uint8_t *packet, size_t length, uint64_t time) {
    struct virtio_net_hdr *told = (struct virtio_net_hdr *)packet;
    if (told->gso_type == VIRTIO_NET_HDR_GSO_NONE) {
        if (is_lost(relay))
            relay->lost++;
        else
            keep(relay, packet, length, time);
        return;
    }
    static uint8_t train[TRAIN_BYTES_MAX];
    uint8_t *ip = packet + sizeof *told, *tcp = ip + (ip[0] & 15) * 4;
    size_t headers = (size_t)(tcp + (tcp[12] >> 4) * 4 - packet), payload = length - headers;
    size_t segment = told->gso_size, segments = (payload + segment - 1) / segment, first = 0, losses = 0;
    for (size_t i = 0; i < segments; i++) {
        if (!is_lost(relay))
            continue;
        if (losses++ == 0)
            memcpy(train, packet, length);
        keep_part(relay, train, headers, payload, segment, first, i, time);
        first = i + 1;
    }
    relay->lost += losses;
    if (losses == 0)
        keep(relay, packet, length, time);
    else
        keep_part(relay, train, headers, payload, segment, first, segments, time);
}

static void read_some(struct relay *relay, uint64_t time) {
    static uint8_t scrap[TRAIN_BYTES_MAX];
    for (int i = 0; i < BATCH; i++) {
        uint8_t *packet = room(relay);
        ssize_t length = read(relay->tun, packet ? packet : scrap, TRAIN_BYTES_MAX);
        if (length <= 0)
            return;
        if (packet)
            take(relay, packet, (size_t)length, time);
        else
            relay->full++;
    }
}

static void write_due(struct relay *relay) {
    for (uint64_t time = now(); relay->head != relay->tail; relay->head++) {
        struct slot *slot = &relay->slots[relay->head % SLOTS];
        if (slot->due > time)
            return;
        relay->passed += write(relay->tun, relay->arena + slot->offset, slot->length) == (ssize_t)slot->length;
    }
}

static int device(const char *name) {
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq wish = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    strncpy(wish.ifr_name, name, IFNAMSIZ - 1);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &wish) < 0 || ioctl(tun, TUNSETOFFLOAD, OFFLOADS) < 0) {
        fprintf(stderr, "/dev/net/tun: %s\n", strerror(errno));
        exit(1);
    }
    return tun;
}

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "relay NAME DELAY_US LOSS_PPM SEED\n");
        return 2;
    }
    struct relay relay = {
        .delay = strtoull(words[2], NULL, 10) * 1000,
        .loss = strtoull(words[3], NULL, 10),
        .dice = strtoull(words[4], NULL, 10) * 2 + 1,
        .slots = malloc(sizeof(struct slot) * SLOTS),
        .arena = malloc(ARENA_BYTES),
    };
    if (relay.slots == NULL || relay.arena == NULL)
        return 1;
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    relay.tun = device(words[1]);
    printf("ready\n");
    fflush(stdout);
    while (!stopped) {
        struct pollfd waiting = {.fd = relay.tun, .events = POLLIN};
        struct timespec rest = {0}, *timeout = NULL;
        uint64_t time = now();
        if (relay.head != relay.tail) {
            uint64_t due = relay.slots[relay.head % SLOTS].due, left = due > time ? due - time : 0;
            rest.tv_sec = (time_t)(left / 1000000000u), rest.tv_nsec = (long)(left % 1000000000u);
            timeout = &rest;
        }
        if (ppoll(&waiting, 1, timeout, NULL) < 0 && errno != EINTR)
            return 1;
        if (waiting.revents & POLLIN)
            read_some(&relay, now());
        write_due(&relay);
    }
    printf("passed %llu lost %llu full %llu\n", (unsigned long long)relay.passed, (unsigned long long)relay.lost,
           (unsigned long long)relay.full);
    return 0;
}
