/* The inner loops of loading: read and check, cut, and finish (see kernels.py, which says the same in NumPy).

   Python's lock is released, nothing is allocated, and every place and size is checked before it is used. A number
   has one value however it is computed: the portable loops and those for AVX2 do the same operations of float32 in
   the same order, and the compiler is told (-ffp-contract=off) to join none of them. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#include <cpuid.h>
#include <immintrin.h>
#define X86 1
#define PCLMUL __attribute__((target("pclmul,sse2")))
#define AVX2 __attribute__((target("avx2,f16c")))
static int has_pclmul, has_avx2; /* what this processor has; set when the module is loaded */
#else
#define X86 0
#endif

/* ---- CRC-32, as in zlib: reflected, polynomial 0xEDB88320 ---- */

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
   constants for this polynomial. What is left of the folding is sixteen bytes, for the tables. `size` is at least 64. */
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
#endif

static uint32_t crc_more(uint32_t crc, const uint8_t *bytes, size_t size)
{
#if X86
    if (has_pclmul && size >= 64)
        return crc_pclmul(crc, bytes, size);
#endif
    return crc_portable(crc, bytes, size);
}

/* ---- cut and finish ---- */

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

AVX2 static void finish_avx2(const Work *work)
{
    const Py_ssize_t item = work->kind == FLOAT32 ? 4 : 2;
    const int stream = ((uintptr_t)work->out | (uintptr_t)(work->width * item)) % 32 == 0;
#define ROWS(kind_, last_)                                                                                          \
    if (work->kind == kind_ && work->channels_last == last_) {                                                      \
        if (stream)                                                                                                 \
            finish_rows(work, kind_, last_, 1);                                                                     \
        else                                                                                                        \
            finish_rows(work, kind_, last_, 0);                                                                     \
    }
    ROWS(FLOAT32, 0)
    ROWS(FLOAT32, 1)
    ROWS(FLOAT16, 0)
    ROWS(FLOAT16, 1)
    ROWS(BFLOAT16, 0)
    ROWS(BFLOAT16, 1)
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

/* ---- from Python ---- */

/* Fills `view` with an array of `ndim` axes that lies in one piece, its numbers at their natural address. */
static int get_array(PyObject *object, Py_buffer *view, int ndim, const char *formats, int writable, const char *name)
{
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) {
        view->obj = NULL;
        return 0;
    }
    if (view->ndim == ndim && view->format != NULL && strlen(view->format) == 1 && strchr(formats, *view->format) &&
        (uintptr_t)view->buf % (size_t)view->itemsize == 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %d axes of type '%s' are wanted, got %d of '%s'", name, ndim, formats,
                 view->ndim, view->format ? view->format : "?");
    return 0;
}

static int overlap(const Py_buffer *one, const Py_buffer *other)
{
    const uintptr_t a = (uintptr_t)one->buf, b = (uintptr_t)other->buf;
    return a < b + (size_t)other->len && b < a + (size_t)one->len;
}

/* Whether `size` from `place` on lie in 0..whole. */
static int inside(Py_ssize_t place, Py_ssize_t size, Py_ssize_t whole)
{
    return place >= 0 && size <= whole && place <= whole - size;
}

static PyObject *kernels_read(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    long long offset;
    Py_buffer into;
    if (!PyArg_ParseTuple(args, "iLw*:read", &fd, &offset, &into))
        return NULL;
    Py_ssize_t size = 0, got = 0;
    uint32_t crc = 0xFFFFFFFFu;
    int error = 0;
    do {
        Py_BEGIN_ALLOW_THREADS
        error = 0;
        while (size < into.len) {
            got = pread(fd, (uint8_t *)into.buf + size, into.len - size, (off_t)(offset + size));
            if (got <= 0)
                break;
            crc = crc_more(crc, (uint8_t *)into.buf + size, got);
            size += got;
        }
        if (got < 0)
            error = errno;
        Py_END_ALLOW_THREADS
    } while (error == EINTR && PyErr_CheckSignals() == 0);
    PyBuffer_Release(&into);
    if (error == EINTR)
        return NULL; /* what the handler of the signal raised */
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("nk", size, (unsigned long)~crc & 0xFFFFFFFFul);
}

static PyObject *kernels_crc32(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*:crc32", &data))
        return NULL;
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    crc = ~crc_more(0xFFFFFFFFu, data.buf, data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *kernels_cut(PyObject *self, PyObject *args, PyObject *named)
{
    (void)self;
    static char *names[] = {"pixels", "out", "y", "x", "mirror", NULL};
    PyObject *pixels_object, *out_object, *result = NULL;
    Py_ssize_t y, x;
    Work work = {0};
    if (!PyArg_ParseTupleAndKeywords(args, named, "OO$nnp:cut", names, &pixels_object, &out_object, &y, &x,
                                     &work.mirror))
        return NULL;
    Py_buffer pixels = {0}, out = {0};
    if (!get_array(pixels_object, &pixels, 3, "B", 0, "pixels") || !get_array(out_object, &out, 3, "B", 1, "out"))
        goto done;
    work.height = out.shape[0], work.width = out.shape[1];
    work.stride = 3 * pixels.shape[1];
    if (pixels.shape[2] != 3 || out.shape[2] != 3 || !inside(y, work.height, pixels.shape[0]) ||
        !inside(x, work.width, pixels.shape[1]) || overlap(&pixels, &out)) {
        PyErr_SetString(PyExc_ValueError, "cut: sizes and places do not fit together, or the arrays overlap");
        goto done;
    }
    work.pixels = (const uint8_t *)pixels.buf + y * work.stride + 3 * x;
    work.out = out.buf;
    Py_BEGIN_ALLOW_THREADS
    cut(&work);
    Py_END_ALLOW_THREADS
    result = Py_None;
    Py_INCREF(result);
done:
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *kernels_finish(PyObject *self, PyObject *args, PyObject *named)
{
    (void)self;
    static char *names[] = {"pixels", "out", "y", "x", "mirror", "mean", "mean_y", "mean_x", "mean_mirror",
                            "add", "scale", "channels_last", NULL};
    PyObject *pixels_object, *out_object, *mean_object, *add_object, *result = NULL;
    Py_ssize_t y, x, mean_y, mean_x;
    Work work = {0};
    if (!PyArg_ParseTupleAndKeywords(args, named, "OO$nnpOnnpOfp:finish", names, &pixels_object, &out_object, &y, &x,
                                     &work.mirror, &mean_object, &mean_y, &mean_x, &work.mean_mirror, &add_object,
                                     &work.scale, &work.channels_last))
        return NULL;
    Py_buffer pixels = {0}, out = {0}, mean = {0}, add = {0};
    if (!get_array(pixels_object, &pixels, 3, "B", 0, "pixels") || !get_array(out_object, &out, 3, "feH", 1, "out") ||
        !get_array(add_object, &add, 1, "f", 0, "add") ||
        (mean_object != Py_None && !get_array(mean_object, &mean, 3, "f", 0, "mean")))
        goto done;
    const int last = work.channels_last;
    work.kind = *out.format == 'f' ? FLOAT32 : *out.format == 'e' ? FLOAT16 : BFLOAT16;
    work.height = out.shape[last ? 0 : 1], work.width = out.shape[last ? 1 : 2];
    work.stride = 3 * pixels.shape[1];
    if (pixels.shape[2] != 3 || out.shape[last ? 2 : 0] != 3 || add.shape[0] != 3 ||
        !inside(y, work.height, pixels.shape[0]) || !inside(x, work.width, pixels.shape[1]) ||
        overlap(&pixels, &out) || overlap(&add, &out) ||
        (mean.obj && (mean.shape[0] != 3 || !inside(mean_y, work.height, mean.shape[1]) ||
                      !inside(mean_x, work.width, mean.shape[2]) || overlap(&mean, &out)))) {
        PyErr_SetString(PyExc_ValueError, "finish: sizes and places do not fit together, or the arrays overlap");
        goto done;
    }
    work.pixels = (const uint8_t *)pixels.buf + y * work.stride + 3 * x;
    work.out = out.buf;
    for (int c = 0; c < 3; c++) {
        work.add[c] = ((const float *)add.buf)[c];
        if (mean.obj) {
            work.mean_stride = mean.shape[2];
            work.mean[c] = (const float *)mean.buf + (c * mean.shape[1] + mean_y) * mean.shape[2] + mean_x;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    finish(&work);
    Py_END_ALLOW_THREADS
    result = Py_None;
    Py_INCREF(result);
done:
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    PyBuffer_Release(&mean);
    PyBuffer_Release(&add);
    return result;
}

static PyMethodDef methods[] = {
    {"read", kernels_read, METH_VARARGS,
     "read(fd, offset, into)\n\nFill `into` from a file; (bytes read, CRC-32 of them), fewer only at its end."},
    {"crc32", kernels_crc32, METH_VARARGS, "crc32(data)\n\nAs zlib.crc32."},
    {"cut", (PyCFunction)(void (*)(void))kernels_cut, METH_VARARGS | METH_KEYWORDS,
     "cut(pixels, out, *, y, x, mirror)\n\nCrop and mirror uint8 (H, W, 3) into uint8 (S, S, 3)."},
    {"finish", (PyCFunction)(void (*)(void))kernels_finish, METH_VARARGS | METH_KEYWORDS,
     "finish(pixels, out, *, y, x, mirror, mean, mean_y, mean_x, mean_mirror, add, scale, channels_last)\n\n"
     "Crop, mirror, and (pixel - mean + add) * scale, as float32, float16, or bfloat16 (uint16)."},
    {NULL, NULL, 0, NULL}};

static int prepare(PyObject *module)
{
    (void)module;
    fill_crc_table();
#if X86
    fill_tables();
    unsigned int a, b, c = 0, d;
    const int known = __get_cpuid(1, &a, &b, &c, &d);
    has_pclmul = __builtin_cpu_supports("pclmul");
    has_avx2 = __builtin_cpu_supports("avx2") && known && (c & bit_F16C);
#endif
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "The inner loops of loading; see kernels.py.", 0, methods, slots, NULL, NULL,
    NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&module); }
