/* The inner loops of packing: an antialiased resampling of the kept square, and the sums of its pixels.

   Source pixels are RGB, as the decoder gives them; those of the square are RGBX, so that a pixel is one word: of its
   four bytes the last is zero. Weights are fixed-point numbers of 16 bits that Python has worked out (image.py); what is done
   here are products and sums of integers, so the portable loops and those for AVX2 give the same bytes. Python's
   lock is released, nothing is allocated, and every index is checked before it is used. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#include <immintrin.h>
#define HAVE_AVX2 1
#define AVX2 __attribute__((target("avx2")))
#define USE_AVX2 __builtin_cpu_supports("avx2")
#else
#define HAVE_AVX2 0
#endif

typedef struct {
    const int32_t *start; /* [side]: first of the `taps` pixels that each output pixel reads */
    const int16_t *weight; /* [side][taps] */
    Py_ssize_t taps; /* even; weights beyond the filter are zero */
    int bits; /* a weight of 1 is 1 << bits */
} Pass;

static inline uint8_t clipped(int32_t value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

/* One row of the source to `side` pixels. */
static void along_row(const uint8_t *row, uint8_t *out, Py_ssize_t side, const Pass *pass)
{
    for (Py_ssize_t x = 0; x < side; x++) {
        const uint8_t *pixel = row + 3 * (Py_ssize_t)pass->start[x];
        const int16_t *weight = pass->weight + x * pass->taps;
        int32_t sum[3];
        for (int c = 0; c < 3; c++)
            sum[c] = 1 << (pass->bits - 1);
        for (Py_ssize_t t = 0; t < pass->taps; t++)
            for (int c = 0; c < 3; c++)
                sum[c] += weight[t] * pixel[3 * t + c];
        for (int c = 0; c < 3; c++)
            out[4 * x + c] = clipped(sum[c] >> pass->bits);
        out[4 * x + 3] = 0;
    }
}

/* `taps` rows below each other to one; `width` in bytes. */
static void down_columns(const uint8_t *rows, uint8_t *out, Py_ssize_t width, const int16_t *weight, const Pass *pass)
{
    for (Py_ssize_t i = 0; i < width; i++) {
        int32_t sum = 1 << (pass->bits - 1);
        for (Py_ssize_t t = 0; t < pass->taps; t++)
            sum += weight[t] * rows[t * width + i];
        out[i] = clipped(sum >> pass->bits);
    }
}

#if HAVE_AVX2
/* Two pixels of two rows, 16 bits a channel, the pixels side by side: one multiply-add weighs and adds them. */
AVX2 static inline __m256i weighed(__m256i pixels, __m256i picked, const int16_t *two_weights)
{
    int32_t pair;
    memcpy(&pair, two_weights, 4);
    return _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, picked), _mm256_set1_epi32(pair));
}

AVX2 static inline __m256i two_rows(__m128i row, __m128i next)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(row), next, 1);
}

/* Four rows at once, since they share their weights. They are kept as two pairs, 16 bits a channel, the rows side by
   side, which is how down_columns_avx2 wants them; `pair_size` int16 from one pair to the next. */
AVX2 static void along_four_rows_avx2(
    const uint8_t *const rows[4], int16_t *out, Py_ssize_t pair_size, Py_ssize_t side, const Pass *pass)
{
    const __m256i first_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i last_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const __m256i side_by_side = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 8, -1, 1, -1, 9, -1, 2, -1, 10, -1, 3, -1, 11, -1));
    const __m256i half = _mm256_set1_epi32(1 << (pass->bits - 1));
    const __m128i bits = _mm_cvtsi32_si128(pass->bits);
    const Py_ssize_t taps = pass->taps;
    const int16_t *weight = pass->weight;
    for (Py_ssize_t x = 0; x < side; x++, weight += taps) {
        const Py_ssize_t from = 3 * (Py_ssize_t)pass->start[x];
        const uint8_t *a = rows[0] + from, *b = rows[1] + from, *c = rows[2] + from, *d = rows[3] + from;
        __m256i ab = half, cd = half;
        Py_ssize_t t = 0;
        for (; t + 4 <= taps; t += 4) {
            __m256i pixels_ab = two_rows(_mm_loadu_si128((const __m128i *)(a + 3 * t)),
                                         _mm_loadu_si128((const __m128i *)(b + 3 * t)));
            __m256i pixels_cd = two_rows(_mm_loadu_si128((const __m128i *)(c + 3 * t)),
                                         _mm_loadu_si128((const __m128i *)(d + 3 * t)));
            ab = _mm256_add_epi32(ab, weighed(pixels_ab, first_two, weight + t));
            cd = _mm256_add_epi32(cd, weighed(pixels_cd, first_two, weight + t));
            ab = _mm256_add_epi32(ab, weighed(pixels_ab, last_two, weight + t + 2));
            cd = _mm256_add_epi32(cd, weighed(pixels_cd, last_two, weight + t + 2));
        }
        if (t < taps) {
            __m256i pixels_ab = two_rows(_mm_loadl_epi64((const __m128i *)(a + 3 * t)),
                                         _mm_loadl_epi64((const __m128i *)(b + 3 * t)));
            __m256i pixels_cd = two_rows(_mm_loadl_epi64((const __m128i *)(c + 3 * t)),
                                         _mm_loadl_epi64((const __m128i *)(d + 3 * t)));
            ab = _mm256_add_epi32(ab, weighed(pixels_ab, first_two, weight + t));
            cd = _mm256_add_epi32(cd, weighed(pixels_cd, first_two, weight + t));
        }
        /* a c | b d, then a b | c d in quarters, in bytes; each pair is spread over 16 bits. */
        __m256i all = _mm256_packs_epi32(_mm256_sra_epi32(ab, bits), _mm256_sra_epi32(cd, bits));
        all = _mm256_permute4x64_epi64(_mm256_packus_epi16(all, all), _MM_SHUFFLE(3, 1, 2, 0));
        all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 0, 2, 2, 1, 1, 3, 3));
        all = _mm256_shuffle_epi8(all, side_by_side);
        _mm_storeu_si128((__m128i *)(out + 8 * x), _mm256_castsi256_si128(all));
        _mm_storeu_si128((__m128i *)(out + pair_size + 8 * x), _mm256_extracti128_si256(all, 1));
    }
}

/* Pairs of rows below each other to one row of `width` bytes, a multiple of four; `weight` begins at an even row. */
AVX2 static void down_columns_avx2(
    const int16_t *pairs, uint8_t *out, Py_ssize_t width, const int16_t *weight, const Pass *pass)
{
    const __m256i half = _mm256_set1_epi32(1 << (pass->bits - 1));
    const __m128i bits = _mm_cvtsi32_si128(pass->bits);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    Py_ssize_t i = 0;
    for (; i + 32 <= width; i += 32) {
        __m256i sum[4] = {half, half, half, half};
        const int16_t *from = pairs + 2 * i;
        for (Py_ssize_t t = 0; t < pass->taps; t += 2, from += 2 * width) {
            int32_t pair;
            memcpy(&pair, weight + t, 4);
            const __m256i weights = _mm256_set1_epi32(pair);
            for (int k = 0; k < 4; k++)
                sum[k] = _mm256_add_epi32(
                    sum[k], _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(from + 16 * k)), weights));
        }
        for (int k = 0; k < 4; k++)
            sum[k] = _mm256_sra_epi32(sum[k], bits);
        __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(bytes, in_order));
    }
    for (; i < width; i++) {
        int32_t sum = 1 << (pass->bits - 1);
        for (Py_ssize_t t = 0; t < pass->taps; t++)
            sum += weight[t] * pairs[(t / 2) * 2 * width + 2 * i + t % 2];
        out[i] = clipped(sum >> pass->bits);
    }
}
#endif

/* Both passes, row by row: only the rows that the next one of the square needs are kept, so they stay in the cache.
   `kept` has room for `room` rows of side x 8 bytes, then for one row of the source and what a load reaches beyond. */
static void resample(
    const uint8_t *source, Py_ssize_t width, Py_ssize_t height, int16_t *kept, Py_ssize_t room, uint8_t *out,
    Py_ssize_t side, Py_ssize_t first, Py_ssize_t num_rows, const Pass *across, const Pass *down)
{
    const Py_ssize_t stride = 3 * width, narrow = 4 * side;
#if HAVE_AVX2
    const int wide = USE_AVX2;
#else
    const int wide = 0;
#endif
    const Py_ssize_t row_bytes = wide ? 2 * narrow : narrow;
    uint8_t *rows = (uint8_t *)kept, *last = rows + room * 2 * narrow;
    memcpy(last, source + (height - 1) * stride, stride); /* behind this copy one may read */
    Py_ssize_t begin = 0, end = 0; /* of the rows kept, counted from `first` */
    for (Py_ssize_t y = 0; y < side; y++) {
        const Py_ssize_t from = down->start[y] - first;
        while (end < from + down->taps) {
            if (end + 4 - begin > room) {
                const Py_ssize_t keep = from / 4 * 4;
                memmove(rows, rows + (keep - begin) * row_bytes, (end - keep) * row_bytes);
                begin = keep;
            }
            uint8_t *to = rows + (end - begin) * row_bytes;
            const uint8_t *four[4]; /* beyond the end the last one again: its weights are zero there */
            for (int k = 0; k < 4; k++) {
                const Py_ssize_t row = first + (end + k < num_rows ? end + k : num_rows - 1);
                four[k] = row == height - 1 ? last : source + row * stride;
            }
#if HAVE_AVX2
            if (wide)
                along_four_rows_avx2(four, (int16_t *)to, 2 * narrow, side, across);
#endif
            for (int k = 0; !wide && k < 4; k++)
                along_row(four[k], to + k * narrow, side, across);
            end += 4;
        }
        const uint8_t *top = rows + (from - begin) * row_bytes;
        const int16_t *weight = down->weight + y * down->taps;
#if HAVE_AVX2
        if (wide) {
            down_columns_avx2((const int16_t *)top, out + y * narrow, narrow, weight, down);
            continue;
        }
#endif
        down_columns(top, out + y * narrow, narrow, weight, down);
    }
}

static inline uint32_t little_endian(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Adds pixels to the sum of each byte, and the six products of two channels to `products`. */
#define SUM_LOOP                                                                                                    \
    for (Py_ssize_t i = 0; i < 4 * pixels; i++)                                                                     \
        image[i] += bytes[i];                                                                                       \
    for (Py_ssize_t i = 0; i < pixels;) {                                                                           \
        /* 4,096 products of two bytes fit into 32 bits. */                                                         \
        const Py_ssize_t end = i + 4096 < pixels ? i + 4096 : pixels;                                               \
        uint32_t rr = 0, rg = 0, rb = 0, gg = 0, gb = 0, bb = 0;                                                    \
        for (; i < end; i++) {                                                                                      \
            const uint32_t word = little_endian(bytes + 4 * i);                                                     \
            const uint32_t r = word & 255, g = word >> 8 & 255, b = word >> 16 & 255;                               \
            rr += r * r, rg += r * g, rb += r * b, gg += g * g, gb += g * b, bb += b * b;                           \
        }                                                                                                           \
        products[0] += rr, products[1] += rg, products[2] += rb;                                                    \
        products[3] += gg, products[4] += gb, products[5] += bb;                                                    \
    }

#if HAVE_AVX2
AVX2 __attribute__((optimize("O3"))) static void add_avx2(
    const uint8_t *restrict bytes, Py_ssize_t pixels, uint32_t *restrict image, int64_t *restrict products)
{
    SUM_LOOP
}
#endif

static void add_portable(
    const uint8_t *restrict bytes, Py_ssize_t pixels, uint32_t *restrict image, int64_t *restrict products)
{
    SUM_LOOP
}

/* Whether all taps lie in [first, last), begin at a multiple of `step` behind `first`, and never go back. */
static int fits(const Pass *pass, Py_ssize_t side, Py_ssize_t first, Py_ssize_t last, int step)
{
    for (Py_ssize_t i = 0; i < side; i++)
        if (pass->start[i] < first || pass->start[i] + pass->taps > last || (pass->start[i] - first) % step ||
            (i > 0 && pass->start[i] < pass->start[i - 1]))
            return 0;
    return pass->bits >= 1 && pass->bits <= 22;
}

static PyObject *square_resample(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer source, across_start, across_weight, down_start, down_weight, rows, out;
    Py_ssize_t width, side, first, num_rows;
    Pass across, down;
    if (!PyArg_ParseTuple(args, "y*nn(y*y*i)(y*y*i)(nn)w*w*:resample", &source, &width, &side, &across_start,
                          &across_weight, &across.bits, &down_start, &down_weight, &down.bits, &first, &num_rows,
                          &rows, &out))
        return NULL;
    PyObject *result = NULL;
    const Py_ssize_t limit = 1 << 27; /* no product below overflows; more than any image has */
    if (width < 1 || width > limit || side < 1 || side > limit || first < 0 || num_rows < 1 || num_rows > limit)
        goto refuse;
    const Py_ssize_t height = source.len / (3 * width), four_rows = (num_rows + 3) / 4 * 4;
    across.start = across_start.buf, across.weight = across_weight.buf;
    down.start = down_start.buf, down.weight = down_weight.buf;
    across.taps = across_weight.len / (2 * side), down.taps = down_weight.len / (2 * side);
    const Py_ssize_t room = (rows.len - 3 * width - 16) / (8 * side) / 4 * 4; /* rows */
    if (across_start.len != 4 * side || down_start.len != 4 * side || across_weight.len != 2 * side * across.taps ||
        down_weight.len != 2 * side * down.taps || across.taps % 2 || down.taps % 2 ||
        down.taps < 2 || across.taps < 2 || room < down.taps + 8 || first + num_rows > height ||
        source.len != 3 * width * height || out.len != 4 * side * side ||
        !fits(&across, side, 0, width, 1) || !fits(&down, side, first, first + four_rows, 2))
        goto refuse;
    Py_BEGIN_ALLOW_THREADS
    resample(source.buf, width, height, rows.buf, room, out.buf, side, first, num_rows, &across, &down);
    Py_END_ALLOW_THREADS
    result = Py_None;
    Py_INCREF(result);
    goto done;
refuse:
    PyErr_SetString(PyExc_ValueError, "resample: sizes, starts and weights do not fit together");
done:
    PyBuffer_Release(&source);
    PyBuffer_Release(&across_start);
    PyBuffer_Release(&across_weight);
    PyBuffer_Release(&down_start);
    PyBuffer_Release(&down_weight);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *square_add(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer bytes, image, products;
    if (!PyArg_ParseTuple(args, "y*w*w*:add", &bytes, &image, &products))
        return NULL;
    PyObject *result = NULL;
    if (bytes.len % 4 || image.len != 4 * bytes.len || products.len != 6 * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "add: the sums are not of this size");
    } else {
        Py_BEGIN_ALLOW_THREADS
#if HAVE_AVX2
        if (USE_AVX2)
            add_avx2(bytes.buf, bytes.len / 4, image.buf, products.buf);
        else
#endif
            add_portable(bytes.buf, bytes.len / 4, image.buf, products.buf);
        Py_END_ALLOW_THREADS
        result = Py_None;
        Py_INCREF(result);
    }
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&image);
    PyBuffer_Release(&products);
    return result;
}

static PyMethodDef methods[] = {
    {"resample", square_resample, METH_VARARGS,
     "resample(source, width, side, across, down, rows, buffer, out)\n\n"
     "The kept square of RGB pixels, as RGBX. `across` and `down`: (starts int32 (side,), weights int16 (side, taps), bits);\n"
     "rows: (first, number) of the source rows that are read, `down` starts an even number behind the first;\n"
     "buffer: side x 8 bytes for some rows, eight more than taps of `down`, then width x 3 + 16; out: side x side x 4 bytes."},
    {"add", square_add, METH_VARARGS,
     "add(pixels, image, products)\n\n"
     "Add RGBX bytes to uint32 sums of the same shape, and RR, RG, RB, GG, GB, BB over all of them to int64 (6,)."},
    {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot slots[] = {{0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_square", "The inner loops of packing; see image.py and statistics.py.", 0, methods, slots,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__square(void) { return PyModuleDef_Init(&module); }
