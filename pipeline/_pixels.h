/* Crop and mirror; subtract, add, scale and round. The portable loops are what the others must equal. */

#include <stdint.h>
#include <string.h>

typedef enum { FLOAT32, FLOAT16, BFLOAT16 } Kind;

typedef struct {
    const uint8_t *pixels; /* first of the crop */
    Py_ssize_t stride; /* bytes from one row to the next */
    Py_ssize_t height, width; /* of the crop */
    int mirror;
    const float *mean[3]; /* first of its crop in each plane, or NULL */
    Py_ssize_t mean_stride; /* floats from one row to the next */
    int mean_mirror;
    float add[3], scale;
    uint8_t *out;
    int channels_last;
    Kind kind;
} Work;

static void cut_row(const uint8_t *from, uint8_t *to, Py_ssize_t width, int mirror)
{
    if (!mirror)
        memcpy(to, from, 3 * width);
    else
        for (Py_ssize_t j = 0; j < width; j++)
            memcpy(to + 3 * j, from + 3 * (width - 1 - j), 3);
}

#if X86
/* Sixteen pixels are three registers. Tables of where bytes come from; 0x80 picks a zero. */
static uint8_t picks[2][3][3][16]; /* [mirror][channel][register] for the bytes of a channel */
static uint8_t swaps[3][3][16]; /* [new register][register] for mirrored pixels */

static void fill_tables(void)
{
    memset(picks, 0x80, sizeof picks);
    memset(swaps, 0x80, sizeof swaps);
    for (int j = 0; j < 16; j++)
        for (int c = 0; c < 3; c++) {
            const int from = 3 * j + c, to = 3 * (15 - j) + c;
            picks[0][c][from / 16][j] = picks[1][c][from / 16][15 - j] = from % 16;
            swaps[to / 16][from / 16][to % 16] = from % 16;
        }
}

AVX2 static inline __m128i picked(const __m128i bytes[3], const uint8_t tables[3][16])
{
    __m128i all = _mm_shuffle_epi8(bytes[0], _mm_loadu_si128((const __m128i *)tables[0]));
    for (int k = 1; k < 3; k++)
        all = _mm_or_si128(all, _mm_shuffle_epi8(bytes[k], _mm_loadu_si128((const __m128i *)tables[k])));
    return all;
}

/* Rows of a multiple of 16 pixels, at such an address. Stores go past the caches: a batch is larger than they are,
   and another thread's next. */
AVX2 static void cut_avx2(const Work *work)
{
    for (Py_ssize_t i = 0; i < work->height; i++)
        for (Py_ssize_t j = 0; j < work->width; j += 16) {
            const Py_ssize_t at = work->mirror ? work->width - 16 - j : j;
            const uint8_t *pixels = work->pixels + i * work->stride + 3 * at;
            __m128i *to = (__m128i *)(work->out + 3 * (i * work->width + j)), bytes[3];
            for (int k = 0; k < 3; k++)
                bytes[k] = _mm_loadu_si128((const __m128i *)(pixels + 16 * k));
            for (int k = 0; k < 3; k++)
                _mm_stream_si128(to + k, work->mirror ? picked(bytes, swaps[k]) : bytes[k]);
        }
    _mm_sfence(); /* before another thread is told */
}
#endif

static void cut(const Work *work)
{
#if X86
    if (has_avx2 && ((uintptr_t)work->out | (uintptr_t)work->width) % 16 == 0) {
        cut_avx2(work);
        return;
    }
#endif
    for (Py_ssize_t i = 0; i < work->height; i++)
        cut_row(work->pixels + i * work->stride, work->out + 3 * i * work->width, work->width, work->mirror);
}

/* To the nearest, ties to even. */
static inline uint16_t half_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000)
        return sign | 0x7E00 | (size >> 13 & 0x3FF);
    if (size >= 0x477FF000) /* rounds to 65536 */
        return sign | 0x7C00;
    if (size >= 0x38800000) /* 2^-14, the least normal one */
        return sign | (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13;
    if (size < 0x33000000) /* below half of the least, 2^-25 */
        return sign;
    const uint32_t shift = 126 - (size >> 23), mantissa = (size & 0x7FFFFF) | 0x800000;
    const uint32_t whole = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return sign | (whole + (rest > tie || (rest == tie && (whole & 1))));
}

static inline uint16_t brain_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

static void finish_row(const Work *work, Py_ssize_t i)
{
    for (int c = 0; c < 3; c++) {
        const uint8_t *pixels = work->pixels + i * work->stride + c;
        const float *mean = work->mean[c] ? work->mean[c] + i * work->mean_stride : NULL;
        for (Py_ssize_t j = 0; j < work->width; j++) {
            const Py_ssize_t back = work->width - 1 - j;
            float value = pixels[3 * (work->mirror ? back : j)];
            if (mean)
                value -= mean[work->mean_mirror ? back : j];
            value = (value + work->add[c]) * work->scale;
            const Py_ssize_t to = work->channels_last ? 3 * (i * work->width + j) + c
                                                      : (c * work->height + i) * work->width + j;
            if (work->kind == FLOAT32)
                ((float *)work->out)[to] = value;
            else
                ((uint16_t *)work->out)[to] = work->kind == FLOAT16 ? half_of(value) : brain_of(value);
        }
    }
}

#if X86
/* Eight pixels of three planes, side by side. */
AVX2 static inline void interleave(__m256 planes[3])
{
    const __m256 r = planes[0], g = planes[1], b = planes[2];
    const __m256i first = _mm256_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2), second = _mm256_setr_epi32(2, 3, 3, 3, 4, 4, 4, 5),
                  third = _mm256_setr_epi32(5, 5, 6, 6, 6, 7, 7, 7);
#define AT(which) _mm256_permutevar8x32_ps(r, which), _mm256_permutevar8x32_ps(g, which)
#define B_AT(which) _mm256_permutevar8x32_ps(b, which)
    planes[0] = _mm256_blend_ps(_mm256_blend_ps(AT(first), 0x92), B_AT(first), 0x24);
    planes[1] = _mm256_blend_ps(_mm256_blend_ps(AT(second), 0x24), B_AT(second), 0x49);
    planes[2] = _mm256_blend_ps(_mm256_blend_ps(AT(third), 0x49), B_AT(third), 0x92);
#undef AT
#undef B_AT
}

AVX2 static inline __m256i brains(__m256 values) /* in the lower half of each word */
{
    const __m256i bits = _mm256_castps_si256(values), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
}

AVX2 static inline void put(uint8_t *to, __m256i bytes, int stream)
{
    if (stream)
        _mm256_stream_si256((__m256i *)to, bytes);
    else
        _mm256_storeu_si256((__m256i *)to, bytes);
}

/* Sixteen numbers in the kind wanted. */
AVX2 static inline void put_sixteen(uint8_t *to, __m256 low, __m256 high, Kind kind, int stream)
{
    if (kind == FLOAT32) {
        put(to, _mm256_castps_si256(low), stream);
        put(to + 32, _mm256_castps_si256(high), stream);
    } else if (kind == FLOAT16) {
        const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        put(to, _mm256_set_m128i(_mm256_cvtps_ph(high, nearest), _mm256_cvtps_ph(low, nearest)), stream);
    } else {
        const __m256i both = _mm256_packus_epi32(brains(low), brains(high));
        put(to, _mm256_permute4x64_epi64(both, _MM_SHUFFLE(3, 1, 2, 0)), stream);
    }
}

/* Sixteen pixels at a time; the last sixteen of a row may have been done in part. `width` is at least 16. */
AVX2 static inline __attribute__((always_inline)) void finish_rows(
    const Work *work, const Kind kind, const int channels_last, const int stream)
{
    const Py_ssize_t width = work->width, plane = work->height * width, item = kind == FLOAT32 ? 4 : 2;
    const __m256 scale = _mm256_set1_ps(work->scale);
    const __m256i backwards = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    for (Py_ssize_t i = 0; i < work->height; i++)
        for (Py_ssize_t step = 0; step < width; step += 16) {
            const Py_ssize_t j = step + 16 <= width ? step : width - 16, back = width - 16 - j;
            const uint8_t *pixels = work->pixels + i * work->stride + 3 * (work->mirror ? back : j);
            __m128i bytes[3];
            for (int k = 0; k < 3; k++)
                bytes[k] = _mm_loadu_si128((const __m128i *)(pixels + 16 * k));
            __m256 low[3], high[3];
            for (int c = 0; c < 3; c++) {
                const __m128i channel = picked(bytes, picks[work->mirror][c]);
                low[c] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(channel));
                high[c] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(channel, 8)));
                if (work->mean[c]) {
                    const float *mean = work->mean[c] + i * work->mean_stride + (work->mean_mirror ? back : j);
                    __m256 mean_low = _mm256_loadu_ps(mean), mean_high = _mm256_loadu_ps(mean + 8);
                    if (work->mean_mirror) {
                        const __m256 mean_first = _mm256_permutevar8x32_ps(mean_high, backwards);
                        mean_high = _mm256_permutevar8x32_ps(mean_low, backwards);
                        mean_low = mean_first;
                    }
                    low[c] = _mm256_sub_ps(low[c], mean_low);
                    high[c] = _mm256_sub_ps(high[c], mean_high);
                }
                const __m256 add = _mm256_set1_ps(work->add[c]);
                low[c] = _mm256_mul_ps(_mm256_add_ps(low[c], add), scale);
                high[c] = _mm256_mul_ps(_mm256_add_ps(high[c], add), scale);
            }
            const Py_ssize_t at = i * width + j;
            if (channels_last) {
                interleave(low);
                interleave(high);
                uint8_t *to = work->out + 3 * at * item;
                put_sixteen(to, low[0], low[1], kind, stream);
                put_sixteen(to + 16 * item, low[2], high[0], kind, stream);
                put_sixteen(to + 32 * item, high[1], high[2], kind, stream);
            } else {
                for (int c = 0; c < 3; c++)
                    put_sixteen(work->out + (c * plane + at) * item, low[c], high[c], kind, stream);
            }
        }
}

/* Halves of 16 pixels are half a cache line, which is slower to write past the caches than through them. */
AVX2 static void finish_avx2(const Work *work)
{
    const int whole_rows = ((uintptr_t)work->out | (uintptr_t)(4 * work->width)) % 32 == 0;
#define ROWS(kind_, last_, stream_)                                                                                 \
    if (work->kind == kind_ && work->channels_last == last_ && (kind_ != FLOAT32 || stream_ == whole_rows))         \
        finish_rows(work, kind_, last_, stream_);
    ROWS(FLOAT32, 0, 0)
    ROWS(FLOAT32, 0, 1)
    ROWS(FLOAT32, 1, 0)
    ROWS(FLOAT32, 1, 1)
    ROWS(FLOAT16, 0, 0)
    ROWS(FLOAT16, 1, 0)
    ROWS(BFLOAT16, 0, 0)
    ROWS(BFLOAT16, 1, 0)
#undef ROWS
    _mm_sfence(); /* before another thread is told */
}
#endif

static void finish(const Work *work)
{
#if X86
    if (has_avx2 && work->width >= 16) {
        finish_avx2(work);
        return;
    }
#endif
    for (Py_ssize_t i = 0; i < work->height; i++)
        finish_row(work, i);
}
