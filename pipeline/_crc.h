/* CRC-32 as in zlib: reflected, polynomial 0xEDB88320. By folding where the processor multiplies without carries,
   else by tables. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t crc_table[8][256]; /* [k][b]: of byte b with k zero bytes behind it; filled when the module is loaded */

static void fill_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        crc_table[0][byte] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            crc_table[k][byte] = crc_table[k - 1][byte] >> 8 ^ crc_table[0][crc_table[k - 1][byte] & 255];
}

static inline uint32_t little_endian(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* `crc` is the register, without the inversions at both ends. */
static uint32_t crc_portable(uint32_t crc, const uint8_t *bytes, size_t size)
{
    for (; size >= 8; bytes += 8, size -= 8) {
        const uint32_t a = crc ^ little_endian(bytes), b = little_endian(bytes + 4);
        crc = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^ crc_table[5][a >> 16 & 255] ^ crc_table[4][a >> 24] ^
              crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^ crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
    }
    for (; size > 0; bytes++, size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *bytes) & 255];
    return crc;
}

#if X86
/* Sixteen bytes moved on by a distance that `by` holds, as remainders of powers of x, and added to those there. */
PCLMUL static inline __m128i folded(__m128i bytes, __m128i by, __m128i there)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(bytes, by, 0x00), _mm_clmulepi64_si128(bytes, by, 0x11)),
                         there);
}

PCLMUL static inline __m128i sixteen(const uint8_t *bytes) { return _mm_loadu_si128((const __m128i *)bytes); }

/* Source: Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009, with its
   constants for this polynomial, which are the reflected x^(8n+32) and x^(8n-32) for n bytes. What is left of the
   folding is sixteen bytes, for the tables. `size` is at least 64. */
PCLMUL static uint32_t crc_pclmul(uint32_t crc, const uint8_t *bytes, size_t size)
{
    const __m128i by_64 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4), by_16 = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0);
    __m128i a = _mm_xor_si128(sixteen(bytes), _mm_cvtsi32_si128((int)crc));
    __m128i b = sixteen(bytes + 16), c = sixteen(bytes + 32), d = sixteen(bytes + 48);
    for (bytes += 64, size -= 64; size >= 64; bytes += 64, size -= 64) {
        a = folded(a, by_64, sixteen(bytes));
        b = folded(b, by_64, sixteen(bytes + 16));
        c = folded(c, by_64, sixteen(bytes + 32));
        d = folded(d, by_64, sixteen(bytes + 48));
    }
    a = folded(folded(folded(a, by_16, b), by_16, c), by_16, d);
    for (; size >= 16; bytes += 16, size -= 16)
        a = folded(a, by_16, sixteen(bytes));
    uint8_t left[16];
    _mm_storeu_si128((__m128i *)left, a);
    return crc_portable(crc_portable(0, left, 16), bytes, size);
}

/* The same for a multiple of 128 bytes, in four registers of two sixteens: twice as fast. */
VPCLMUL static uint32_t crc_vpclmul(uint32_t crc, const uint8_t *bytes, size_t size)
{
    const __m256i by_128 = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x14A7FE880, 0x1E88EF372));
    __m256i all[4];
    for (int k = 0; k < 4; k++)
        all[k] = _mm256_loadu_si256((const __m256i *)(bytes + 32 * k));
    all[0] = _mm256_xor_si256(all[0], _mm256_setr_epi32((int)crc, 0, 0, 0, 0, 0, 0, 0));
    for (const uint8_t *there = bytes + 128; there < bytes + size; there += 128)
        for (int k = 0; k < 4; k++) {
            const __m256i moved = _mm256_xor_si256(_mm256_clmulepi64_epi128(all[k], by_128, 0x00),
                                                   _mm256_clmulepi64_epi128(all[k], by_128, 0x11));
            all[k] = _mm256_xor_si256(moved, _mm256_loadu_si256((const __m256i *)(there + 32 * k)));
        }
    uint8_t left[128];
    for (int k = 0; k < 4; k++)
        _mm256_storeu_si256((__m256i *)(left + 32 * k), all[k]);
    return crc_pclmul(0, left, 128);
}
#endif

static uint32_t crc_more(uint32_t crc, const uint8_t *bytes, size_t size)
{
#if X86
    if (has_vpclmul && size >= 128) {
        const size_t whole = size / 128 * 128;
        crc = crc_vpclmul(crc, bytes, whole);
        bytes += whole, size -= whole;
    }
    if (has_pclmul && size >= 64)
        return crc_pclmul(crc, bytes, size);
#endif
    return crc_portable(crc, bytes, size);
}
