/* What stands between a convolution and its reader, forward and backward, on the cores (chains.py says the same in
   torch): [ReLU] → [LRN across maps] → [same-map normaliser] → [max pool 3×3/2] → [ReLU].

   Memory is read once and written once: a unit of work is one tower's maps of one image, whose steps go from scratch
   to scratch within a core's caches. Tensors lie as (N, H, W, C), so that every loop runs along maps that are
   neighbours in memory. Numbers are float32 whatever is stored; a result has the same bits on every processor and
   on any number of threads: the compiler joins no multiply and add (-ffp-contract=off), and a power is computed by
   Newton's rule, not by an instruction that approximates. Source: fidelity.md §2. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The same source for several generations of processors; the loader of shared objects picks one. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#if __GNUC__ >= 12
#define VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define VECTORS
#endif
#define INLINE static inline __attribute__((always_inline))

enum { RELU_NONE, RELU_BEFORE, RELU_AFTER };
enum { POOL = 3, STRIDE = 2, LANES = 8, ZEROED = 255 }; /* ZEROED: the place of a maximum that the ReLU behind made zero */

/* For the one loop that compilers do not turn into vectors themselves; any processor's code comes of it. */
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    Py_ssize_t images, height, width, maps, out_height, out_width;
    int towers, n, same_n, relu, pool, half; /* half: tensors are bfloat16 */
    float k, a, same_k, same_a;
    const void *x, *g;
    void *out;      /* forward: y; backward: dx */
    uint8_t *where; /* written forward, read backward; NULL: none */
    int backward;
    atomic_long next;
} Work;

INLINE float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* d^(-1/4) for d > 0, to about one unit in the last place: a first guess from the exponent's bits, within 3.2 %, and
   three of Newton's steps. Its cube is d^-0.75 and its fourth power 1/d: no pow, no division. */
INLINE float fourth_root_of_inverse(float d)
{
    float q = from_bits(0x4F584800u - (to_bits(d) >> 2));
    for (int step = 0; step < 3; step++) {
        const float square = q * q;
        q = q * (1.25f - 0.25f * (d * (square * square)));
    }
    return q;
}

INLINE void load(float *into, const void *from, Py_ssize_t at, Py_ssize_t maps, int half)
{
    if (half) {
        const uint16_t *values = (const uint16_t *)from + at;
        for (Py_ssize_t c = 0; c < maps; c++)
            into[c] = from_bits((uint32_t)values[c] << 16);
    } else
        memcpy(into, (const float *)from + at, (size_t)maps * sizeof(float));
}

/* bfloat16 is rounded to the nearest, ties to even; what is no number stays none. */
INLINE void store(void *into, Py_ssize_t at, const float *from, Py_ssize_t maps, int half)
{
    if (half) {
        uint16_t *values = (uint16_t *)into + at;
        for (Py_ssize_t c = 0; c < maps; c++) {
            const uint32_t bits = to_bits(from[c]);
            const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
            values[c] = (uint16_t)(from[c] != from[c] ? 0x7FC0u : rounded);
        }
    } else
        memcpy((float *)into + at, from, (size_t)maps * sizeof(float));
}

INLINE void relu(float *values, Py_ssize_t count)
{
    for (Py_ssize_t c = 0; c < count; c++)
        values[c] = values[c] <= 0.0f ? 0.0f : values[c];
}

/* sums[c] = the sum of padded[c .. c + n - 1]; `padded` begins and ends with n/2 zeros. */
INLINE void window_sums(float *restrict sums, const float *restrict padded, Py_ssize_t maps, int n)
{
    if (n == 5) {
        for (Py_ssize_t c = 0; c < maps; c++)
            sums[c] = padded[c] + padded[c + 1] + padded[c + 2] + padded[c + 3] + padded[c + 4];
        return;
    }
    memcpy(sums, padded, (size_t)maps * sizeof(float));
    for (int o = 1; o < n; o++)
        for (Py_ssize_t c = 0; c < maps; c++)
            sums[c] += padded[c + o];
}

/* roots[c] = (k + a · the window's sum of squares)^(-1/4) at one pixel; `padded` as in window_sums, overwritten. */
INLINE void roots_across(float *restrict roots, const float *restrict x, float *restrict padded, Py_ssize_t maps,
                         int n, float k, float a)
{
    for (Py_ssize_t c = 0; c < maps; c++)
        padded[n / 2 + c] = x[c] * x[c];
    window_sums(roots, padded, maps, n);
    for (Py_ssize_t c = 0; c < maps; c++)
        roots[c] = fourth_root_of_inverse(k + a * roots[c]);
}

/* out = sums along each row over `n` pixels, of values, or of their squares. */
INLINE void sums_along_rows(float *restrict out, const float *restrict values, const Work *w, Py_ssize_t maps,
                            int squares)
{
    const Py_ssize_t reach = w->same_n / 2;
    for (Py_ssize_t y = 0; y < w->height; y++)
        for (Py_ssize_t x = 0; x < w->width; x++) {
            float *restrict sums = out + (y * w->width + x) * maps;
            memset(sums, 0, (size_t)maps * sizeof(float));
            const Py_ssize_t first = x < reach ? 0 : x - reach;
            const Py_ssize_t last = x + reach < w->width ? x + reach : w->width - 1;
            for (Py_ssize_t from = first; from <= last; from++) {
                const float *restrict v = values + (y * w->width + from) * maps;
                if (squares)
                    for (Py_ssize_t c = 0; c < maps; c++)
                        sums[c] += v[c] * v[c];
                else
                    for (Py_ssize_t c = 0; c < maps; c++)
                        sums[c] += v[c];
            }
        }
}

/* sums = those of sums_along_rows added up over the rows of the window around (y, x). */
INLINE void sums_of_rows(float *restrict sums, const float *restrict rows, const Work *w, Py_ssize_t maps,
                         Py_ssize_t y, Py_ssize_t x)
{
    const Py_ssize_t reach = w->same_n / 2;
    const Py_ssize_t first = y < reach ? 0 : y - reach;
    const Py_ssize_t last = y + reach < w->height ? y + reach : w->height - 1;
    memcpy(sums, rows + (first * w->width + x) * maps, (size_t)maps * sizeof(float));
    for (Py_ssize_t from = first + 1; from <= last; from++) {
        const float *restrict v = rows + (from * w->width + x) * maps;
        for (Py_ssize_t c = 0; c < maps; c++)
            sums[c] += v[c];
    }
}

/* A thread's memory: planes of a tower's maps of one image, and lines of one pixel's maps. */
typedef struct {
    float *u;    /* what comes out of LRN */
    float *rows; /* sums along rows, of the same-map normaliser */
    float *g;    /* backward: the gradient, on its way down */
    float *t;    /* backward: g·y/d of the same-map normaliser */
    float *line[4];
    int32_t *place;
    float *block;
} Scratch;

static int scratch_for(Scratch *s, const Work *w)
{
    const size_t maps = (size_t)(w->maps / w->towers), plane = (size_t)(w->height * w->width) * maps;
    const size_t line = maps + (size_t)w->n + 16;
    float **const planes[] = {&s->u, &s->rows, &s->g, &s->t};
    const int wanted[] = {1, w->same_n > 0, w->backward, w->backward && w->same_n > 0};
    /* Zeros: the lines that windows slide over begin and end with some. */
    s->block = calloc(4 * plane + 5 * line, sizeof(float));
    if (s->block == NULL)
        return 0;
    float *at = s->block;
    for (int i = 0; i < 4; i++, at += line)
        s->line[i] = at;
    s->place = (int32_t *)at;
    at += line;
    for (int i = 0; i < 4; i++) {
        *planes[i] = wanted[i] ? at : NULL;
        at += plane;
    }
    return 1;
}

/* u = everything before the same-map normaliser, of one tower of one image. */
INLINE void across(const Work *w, const Scratch *s, Py_ssize_t at, Py_ssize_t maps)
{
    float *restrict roots = s->line[0], *restrict padded = s->line[1];
    for (Py_ssize_t pixel = 0; pixel < w->height * w->width; pixel++) {
        float *restrict u = s->u + pixel * maps;
        load(u, w->x, at + pixel * w->maps, maps, w->half);
        if (w->relu == RELU_BEFORE)
            relu(u, maps);
        if (w->n > 0) {
            roots_across(roots, u, padded, maps, w->n, w->k, w->a);
            for (Py_ssize_t c = 0; c < maps; c++)
                u[c] *= roots[c] * roots[c] * roots[c];
        }
    }
}

/* best, place = maximum and its place for `lanes` maps from `first` on: in registers, where `lanes` is a constant. */
INLINE void pool_lanes(const Work *w, const float *restrict u, float *restrict best, int32_t *restrict place,
                       Py_ssize_t maps, Py_ssize_t out, Py_ssize_t first, Py_ssize_t lanes)
{
    const int side = w->pool ? POOL : 1, stride = w->pool ? STRIDE : 1;
    const Py_ssize_t top = out / w->out_width * stride, left = out % w->out_width * stride;
    const Py_ssize_t below = top + side < w->height ? top + side : w->height;
    const Py_ssize_t right = left + side < w->width ? left + side : w->width;
    Floats most = {0};
    Ints at = {0};
    memcpy(&most, u + (top * w->width + left) * maps + first, (size_t)lanes * sizeof(float));
    for (Py_ssize_t y = top; y < below; y++)
        for (Py_ssize_t x = left; x < right; x++) {
            Floats v = {0};
            memcpy(&v, u + (y * w->width + x) * maps + first, (size_t)lanes * sizeof(float));
            const Ints more = (v > most) | (v != v); /* no number wins, as in torch */
            at = (more & (int32_t)((y - top) * POOL + x - left)) | (~more & at);
            most = (Floats)((more & (Ints)v) | (~more & (Ints)most));
        }
    if (w->relu == RELU_AFTER) {
        const Ints zeroed = most <= 0.0f;
        at |= zeroed & ZEROED;
        most = (Floats)(~zeroed & (Ints)most);
    }
    memcpy(best + first, &most, (size_t)lanes * sizeof(float));
    memcpy(place + first, &at, (size_t)lanes * sizeof(int32_t));
}

VECTORS static void forward_unit(const Work *w, const Scratch *s, Py_ssize_t image, Py_ssize_t tower)
{
    const Py_ssize_t maps = w->maps / w->towers, pixels = w->height * w->width;
    float *restrict best = s->line[2];
    across(w, s, image * pixels * w->maps + tower * maps, maps);
    if (w->same_n > 0) {
        sums_along_rows(s->rows, s->u, w, maps, 1);
        for (Py_ssize_t y = 0; y < w->height; y++)
            for (Py_ssize_t x = 0; x < w->width; x++) {
                float *restrict u = s->u + (y * w->width + x) * maps, *restrict sums = s->line[0];
                sums_of_rows(sums, s->rows, w, maps, y, x);
                for (Py_ssize_t c = 0; c < maps; c++) {
                    const float root = fourth_root_of_inverse(w->same_k + w->same_a * sums[c]);
                    u[c] *= root * root * root;
                }
            }
    }
    const Py_ssize_t outs = w->out_height * w->out_width;
    for (Py_ssize_t out = 0; out < outs; out++) {
        const Py_ssize_t at = (image * outs + out) * w->maps + tower * maps;
        Py_ssize_t c = 0;
        for (; c + LANES <= maps; c += LANES)
            pool_lanes(w, s->u, best, s->place, maps, out, c, LANES);
        if (c < maps)
            pool_lanes(w, s->u, best, s->place, maps, out, c, maps - c);
        store(w->out, at, best, maps, w->half);
        if (w->where != NULL)
            for (c = 0; c < maps; c++)
                w->where[at + c] = (uint8_t)s->place[c];
    }
}

/* g = the gradient of what was pooled and went through the ReLU behind, pixel by pixel. */
INLINE void unpooled(const Work *w, const Scratch *s, Py_ssize_t image, Py_ssize_t tower, Py_ssize_t maps)
{
    const Py_ssize_t outs = w->out_height * w->out_width;
    float *restrict own = s->line[2];
    int32_t *restrict place = s->place;
    if (w->pool)
        memset(s->g, 0, (size_t)(w->height * w->width * maps) * sizeof(float));
    for (Py_ssize_t out = 0; out < outs; out++) {
        const Py_ssize_t at = (image * outs + out) * w->maps + tower * maps;
        if (!w->pool) {
            float *restrict g = s->g + out * maps;
            load(g, w->g, at, maps, w->half);
            if (w->relu == RELU_AFTER)
                for (Py_ssize_t c = 0; c < maps; c++)
                    g[c] = w->where[at + c] == ZEROED ? 0.0f : g[c];
            continue;
        }
        load(own, w->g, at, maps, w->half);
        for (Py_ssize_t c = 0; c < maps; c++)
            place[c] = w->where[at + c];
        const Py_ssize_t top = out / w->out_width * STRIDE, left = out % w->out_width * STRIDE;
        for (Py_ssize_t y = top; y < top + POOL && y < w->height; y++)
            for (Py_ssize_t x = left; x < left + POOL && x < w->width; x++) {
                float *restrict g = s->g + (y * w->width + x) * maps;
                const int32_t here = (int32_t)((y - top) * POOL + x - left);
                for (Py_ssize_t c = 0; c < maps; c++)
                    g[c] += place[c] == here ? own[c] : 0.0f;
            }
    }
}

/* g becomes the gradient of u, fidelity.md §2.2: g·d^-beta − 2·a·beta · u · (the window's sum of g·y/d). */
INLINE void same_map_back(const Work *w, const Scratch *s, Py_ssize_t maps)
{
    const float twice = 1.5f * w->same_a;
    float *restrict sums = s->line[0];
    sums_along_rows(s->rows, s->u, w, maps, 1);
    for (Py_ssize_t y = 0; y < w->height; y++)
        for (Py_ssize_t x = 0; x < w->width; x++) {
            const Py_ssize_t at = (y * w->width + x) * maps;
            const float *restrict u = s->u + at;
            float *restrict g = s->g + at, *restrict t = s->t + at;
            sums_of_rows(sums, s->rows, w, maps, y, x);
            for (Py_ssize_t c = 0; c < maps; c++) {
                const float root = fourth_root_of_inverse(w->same_k + w->same_a * sums[c]), square = root * root;
                g[c] *= square * root;
                t[c] = g[c] * u[c] * (square * square);
            }
        }
    sums_along_rows(s->rows, s->t, w, maps, 0);
    for (Py_ssize_t y = 0; y < w->height; y++)
        for (Py_ssize_t x = 0; x < w->width; x++) {
            const Py_ssize_t at = (y * w->width + x) * maps;
            const float *restrict u = s->u + at;
            float *restrict g = s->g + at;
            sums_of_rows(sums, s->rows, w, maps, y, x);
            for (Py_ssize_t c = 0; c < maps; c++)
                g[c] -= twice * u[c] * sums[c];
        }
}

VECTORS static void backward_unit(const Work *w, const Scratch *s, Py_ssize_t image, Py_ssize_t tower)
{
    const Py_ssize_t maps = w->maps / w->towers, pixels = w->height * w->width;
    const Py_ssize_t begin = image * pixels * w->maps + tower * maps, margin = w->n / 2;
    const float twice = 1.5f * w->a;
    float *restrict roots = s->line[0], *restrict padded = s->line[1], *restrict x = s->line[2],
          *restrict sums = s->line[3];
    unpooled(w, s, image, tower, maps);
    if (w->same_n > 0) {
        across(w, s, begin, maps);
        same_map_back(w, s, maps);
    }
    for (Py_ssize_t pixel = 0; pixel < pixels; pixel++) {
        float *restrict g = s->g + pixel * maps;
        const Py_ssize_t at = begin + pixel * w->maps;
        load(x, w->x, at, maps, w->half);
        if (w->relu == RELU_BEFORE)
            relu(x, maps);
        if (w->n > 0) {
            roots_across(roots, x, padded, maps, w->n, w->k, w->a);
            for (Py_ssize_t c = 0; c < maps; c++) {
                const float square = roots[c] * roots[c];
                g[c] *= square * roots[c];
                padded[margin + c] = g[c] * x[c] * (square * square);
            }
            window_sums(sums, padded, maps, w->n);
            for (Py_ssize_t c = 0; c < maps; c++)
                g[c] -= twice * x[c] * sums[c];
        }
        if (w->relu == RELU_BEFORE) /* x is 0 where it was cut off, and no number where the gradient shall be none */
            for (Py_ssize_t c = 0; c < maps; c++)
                g[c] = x[c] == 0.0f ? 0.0f : g[c];
        store(w->out, at, g, maps, w->half);
    }
}

static void *work(void *shared)
{
    Work *w = shared;
    Scratch scratch;
    if (!scratch_for(&scratch, w))
        return NULL;
    for (;;) {
        const Py_ssize_t unit = atomic_fetch_add(&w->next, 1);
        if (unit >= w->images * w->towers)
            break;
        (w->backward ? backward_unit : forward_unit)(w, &scratch, unit / w->towers, unit % w->towers);
    }
    free(scratch.block);
    return NULL;
}

/* Threads that live for one call: starting one costs some ten microseconds, the work is of milliseconds. */
static void work_on(Work *w, int threads)
{
    enum { MOST = 1024 };
    pthread_t others[MOST];
    int started = 0;
    while (started < threads - 1 && started < MOST && started < w->images * w->towers - 1 &&
           pthread_create(&others[started], NULL, work, w) == 0)
        started++;
    work(w); /* where no thread could be started, this one does it all */
    while (started > 0)
        pthread_join(others[--started], NULL);
}

static int get_tensor(PyObject *object, Py_buffer *view, Py_ssize_t items, Py_ssize_t item, int writable,
                      const char *name)
{
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0) {
        view->obj = NULL;
        return 0;
    }
    if (view->len == items * item && view->itemsize == item)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd items of %zd bytes are wanted", name, items, item);
    return 0;
}

/* run(x, g | None, out, where | None, sizes, half, towers, n, k, a, same_n, same_k, same_a, relu, pool, threads) */
static PyObject *chains_run(PyObject *self, PyObject *args)
{
    (void)self;
    Work w = {0};
    PyObject *objects[4];
    Py_buffer views[4] = {0};
    PyObject *result = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOO(nnnn)piiffiffipi:run", &objects[0], &objects[1], &objects[2], &objects[3],
                          &w.images, &w.height, &w.width, &w.maps, &w.half, &w.towers, &w.n, &w.k, &w.a, &w.same_n,
                          &w.same_k, &w.same_a, &w.relu, &w.pool, &threads))
        return NULL;
    const Py_ssize_t most = 1 << 20; /* of each size: no product below overflows before it is compared */
    if (w.images < 0 || w.images > INT32_MAX || w.height < 1 || w.height > most || w.width < 1 || w.width > most ||
        w.maps < 1 || w.maps > most || w.towers < 1 || w.maps % w.towers != 0 || w.n < 0 || w.n > 4096 ||
        (w.n > 0 && w.n % 2 == 0) || w.same_n < 0 || w.same_n > 4096 || (w.same_n > 0 && w.same_n % 2 == 0) ||
        (w.n > 0 && !(w.k > 0 && w.a >= 0)) || (w.same_n > 0 && !(w.same_k > 0 && w.same_a >= 0)) || threads < 1 ||
        w.height * w.width > PY_SSIZE_T_MAX / 8 / w.maps / (w.images + 1)) {
        PyErr_SetString(PyExc_ValueError, "run: these sizes make no chain");
        return NULL;
    }
    w.out_height = w.pool ? (w.height > POOL ? (w.height - POOL + STRIDE - 1) / STRIDE + 1 : 1) : w.height;
    w.out_width = w.pool ? (w.width > POOL ? (w.width - POOL + STRIDE - 1) / STRIDE + 1 : 1) : w.width;
    w.backward = objects[1] != Py_None;
    const int has_where = objects[3] != Py_None;
    if (has_where != (w.pool || w.relu == RELU_AFTER)) {
        PyErr_SetString(PyExc_ValueError, "run: `where` goes with a pool or a ReLU behind");
        return NULL;
    }
    const Py_ssize_t ins = w.images * w.height * w.width * w.maps;
    const Py_ssize_t outs = w.images * w.out_height * w.out_width * w.maps, item = w.half ? 2 : 4;
    if (!get_tensor(objects[0], &views[0], ins, item, 0, "x") ||
        (w.backward && !get_tensor(objects[1], &views[1], outs, item, 0, "g")) ||
        !get_tensor(objects[2], &views[2], w.backward ? ins : outs, item, 1, "out") ||
        (has_where && !get_tensor(objects[3], &views[3], outs, 1, !w.backward, "where")))
        goto done;
    w.x = views[0].buf, w.g = views[1].buf, w.out = views[2].buf, w.where = views[3].buf;
    Py_BEGIN_ALLOW_THREADS
    work_on(&w, threads);
    Py_END_ALLOW_THREADS
    if (atomic_load(&w.next) < w.images * w.towers) /* a thread without memory leaves its share to the others */
        PyErr_NoMemory();
    else
        result = Py_NewRef(Py_None);
done:
    for (int i = 0; i < 4; i++)
        if (views[i].obj != NULL)
            PyBuffer_Release(&views[i]);
    return result;
}

static PyMethodDef methods[] = {
    {"run", chains_run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_chains", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chains(void)
{
    return PyModule_Create(&module);
}
