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
#define VPCLMUL __attribute__((target("avx2,pclmul,vpclmulqdq")))
#define AVX2 __attribute__((target("avx2,f16c")))
static int has_pclmul, has_vpclmul, has_avx2; /* what this processor has; set when the module is loaded */
#else
#define X86 0
#endif

#include "_crc.h"
#include "_pixels.h"

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
    has_vpclmul = has_pclmul && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
    has_avx2 = __builtin_cpu_supports("avx2") && known && (c & bit_F16C);
#endif
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "The inner loops of loading; see kernels.py.", 0, methods, slots, NULL, NULL,
    NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&module); }
