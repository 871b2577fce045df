/* The hot path of kbridge in C: see docs/adr/0010-compiled-part.md.
 *
 * Each function does what a function of kbridge does in Python, and gives the same results; the same
 * tests run over both. A function handles the usual messages only. It stops at any other message, or
 * passes it to the function in Python, so that unusual cases are handled in one place.
 *
 * Rules of this file:
 *
 * - no cryptography: hashes and comparisons of digests are calls to hashlib and hmac;
 * - no state beside constants of the module, and no I/O;
 * - objects are used through strong references, because a call may run any code of a finalizer;
 * - the stable ABI of Python 3.11: one wheel serves all later versions.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* Raised with each change of a signature or of a result; kbridge uses only the number it knows. */
#define API 1

#define MAX_PARTS 64        /* of a message that `split` reads */
#define LARGE (64 << 10)    /* bytes of a content that is not copied to be verified */
#define MAX_HEADER 1024     /* bytes; real headers have 150 to 300 */
#define FIELDS 6            /* of a kbridge.wire.message.Message */
#define HEAD 60             /* bytes of the websocket header and the offsets, see kbridge.wire.v1 */
#define FRAME_HEADER 4      /* bytes of the websocket header of 126 to 65,535 bytes */

static const char DELIMITER[] = "<IDS|MSG>";

typedef struct {
    PyObject *copy, *update, *digest, *hexdigest; /* names of methods */
    PyObject *compare_digest;                     /* hmac.compare_digest */
    uint32_t crc[256];
} State;

/* A part of a message, as bytes. */
typedef struct {
    const char *data;
    Py_ssize_t size;
} Span;

static Span
span_of(PyObject *bytes)
{
    return (Span){PyBytes_AsString(bytes), PyBytes_Size(bytes)};
}

static int
equals(Span a, const char *text, Py_ssize_t size)
{
    return a.size == size && memcmp(a.data, text, (size_t)size) == 0;
}

static int
same_bytes(PyObject *a, PyObject *b)
{
    Span other = span_of(b);
    return equals(span_of(a), other.data, other.size);
}

/* Headers -------------------------------------------------------------------------------------- */

/* Return the place after the string that begins with a quote at `at`; 0 if it is not a string, or has
 * escapes or control characters. Set `wide` if it is not ASCII. */
static Py_ssize_t
string_end(Span text, Py_ssize_t at, int *wide)
{
    if (at >= text.size || text.data[at] != '"') {
        return 0;
    }
    for (at++; at < text.size; at++) {
        unsigned char c = (unsigned char)text.data[at];
        if (c == '"') {
            return at + 1;
        }
        if (c < 0x20 || c == '\\') {
            return 0;
        }
        *wide |= c > 0x7f;
    }
    return 0;
}

static int
is_utf8(Span text)
{
    PyObject *decoded = PyUnicode_DecodeUTF8(text.data, text.size, NULL);
    if (decoded == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(decoded);
    return 1;
}

static Py_ssize_t
skip_spaces(Span text, Py_ssize_t at)
{
    while (at < text.size && text.data[at] == ' ') {
        at++;
    }
    return at;
}

/* Find the values of `msg_type` and `msg_id` in a flat JSON object of strings, each a member once.
 *
 * Return 0 for any other text. For these objects, the result is what a JSON parser finds. */
static int
find_fields(Span header, Span *msg_type, Span *msg_id)
{
    Py_ssize_t at = 1;
    int wide = 0;
    *msg_type = *msg_id = (Span){NULL, 0};
    if (header.size < 2 || header.size > MAX_HEADER || header.data[0] != '{') {
        return 0;
    }
    for (;;) {
        Py_ssize_t key = skip_spaces(header, at), end = string_end(header, key, &wide), value;
        if (!end || end >= header.size || header.data[end] != ':') {
            return 0;
        }
        value = skip_spaces(header, end + 1);
        at = string_end(header, value, &wide);
        if (!at) {
            return 0;
        }
        Span name = {header.data + key + 1, end - key - 2};
        Span found = {header.data + value + 1, at - value - 2};
        Span *field = equals(name, "msg_type", 8) ? msg_type
                      : equals(name, "msg_id", 6) ? msg_id
                                                  : NULL;
        if (field != NULL) {
            if (field->data != NULL) {
                return 0;
            }
            *field = found;
        }
        at = skip_spaces(header, at);
        if (at >= header.size) {
            return 0;
        }
        if (header.data[at] == '}') {
            return at + 1 == header.size && msg_type->data != NULL && msg_id->data != NULL &&
                   (!wide || is_utf8(header));
        }
        if (header.data[at] != ',') {
            return 0;
        }
        at++;
    }
}

static uint32_t
crc32_of(const State *state, Span text)
{
    uint32_t crc = 0xffffffffu;
    for (Py_ssize_t i = 0; i < text.size; i++) {
        crc = state->crc[(crc ^ (unsigned char)text.data[i]) & 0xff] ^ (crc >> 8);
    }
    return crc ^ 0xffffffffu;
}

static void
make_crc_table(State *state)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc & 1 ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
        }
        state->crc[i] = crc;
    }
}

/* Signatures ----------------------------------------------------------------------------------- */

/* Copy a hash, update it with `data`, and return the copy. */
static PyObject *
updated(State *state, PyObject *hash, PyObject *data)
{
    PyObject *copy = PyObject_CallMethodObjArgs(hash, state->copy, NULL);
    if (copy == NULL) {
        return NULL;
    }
    PyObject *done = PyObject_CallMethodObjArgs(copy, state->update, data, NULL);
    if (done == NULL) {
        Py_DECREF(copy);
        return NULL;
    }
    Py_DECREF(done);
    return copy;
}

/* Return the HMAC of `data` in hex, from the two hashes of a Signer. */
static PyObject *
sign(State *state, PyObject *inner, PyObject *outer, PyObject *data)
{
    PyObject *hash = updated(state, inner, data);
    if (hash == NULL) {
        return NULL;
    }
    PyObject *digest = PyObject_CallMethodObjArgs(hash, state->digest, NULL);
    Py_DECREF(hash);
    if (digest == NULL) {
        return NULL;
    }
    hash = updated(state, outer, digest);
    Py_DECREF(digest);
    if (hash == NULL) {
        return NULL;
    }
    PyObject *hex = PyObject_CallMethodObjArgs(hash, state->hexdigest, NULL);
    Py_DECREF(hash);
    if (hex == NULL) {
        return NULL;
    }
    PyObject *signature = PyUnicode_AsASCIIString(hex);
    Py_DECREF(hex);
    return signature;
}

/* Return 1 if four parts have that signature, 0 if not, -1 after an exception. */
static int
verify(State *state, PyObject *inner, PyObject *outer, PyObject *signature, PyObject **parts)
{
    Py_ssize_t size = 0;
    Span spans[4];
    for (int i = 0; i < 4; i++) {
        spans[i] = span_of(parts[i]);
        size += spans[i].size;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, size);
    if (joined == NULL) {
        return -1;
    }
    char *to = PyBytes_AsString(joined);
    for (int i = 0; i < 4; i++) {
        memcpy(to, spans[i].data, (size_t)spans[i].size);
        to += spans[i].size;
    }
    PyObject *expected = sign(state, inner, outer, joined);
    Py_DECREF(joined);
    if (expected == NULL) {
        return -1;
    }
    PyObject *same =
        PyObject_CallFunctionObjArgs(state->compare_digest, signature, expected, NULL);
    Py_DECREF(expected);
    if (same == NULL) {
        return -1;
    }
    int valid = PyObject_IsTrue(same);
    Py_DECREF(same);
    return valid;
}

/* Runs of stream messages ---------------------------------------------------------------------- */

/* Take the parts of the frames of a usual message: a topic or none, delimiter, signature, four JSON
 * parts, no buffers. Return 1 with five new references, or 0. */
static int
take_parts(PyObject *frames, PyObject *parts[5])
{
    if (!PyList_CheckExact(frames)) {
        return 0;
    }
    Py_ssize_t at = PyList_Size(frames) - 6;
    if (at != 0 && at != 1) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < at + 6; i++) {
        PyObject *part = PyList_GetItem(frames, i);
        if (!PyBytes_CheckExact(part)) {
            return 0;
        }
        if (i <= at) {
            int is_delimiter = equals(span_of(part), DELIMITER, sizeof(DELIMITER) - 1);
            if (is_delimiter != (i == at)) {
                return 0;
            }
        }
    }
    for (Py_ssize_t i = 0; i < 5; i++) {
        parts[i] = Py_NewRef(PyList_GetItem(frames, at + 1 + i));
    }
    return 1;
}

/* Return a message with these four parts; steals nothing. */
static PyObject *
new_message(PyTypeObject *type, PyObject *channel, PyObject **parts)
{
    PyObject *buffers = PyTuple_New(0);
    if (buffers == NULL) {
        return NULL;
    }
    PyObject *message = PyType_GenericAlloc(type, FIELDS);
    if (message == NULL) {
        Py_DECREF(buffers);
        return NULL;
    }
    PyTuple_SetItem(message, 0, Py_NewRef(channel));
    for (Py_ssize_t i = 0; i < 4; i++) {
        PyTuple_SetItem(message, 1 + i, Py_NewRef(parts[i]));
    }
    PyTuple_SetItem(message, 5, buffers);
    return message;
}

typedef struct {
    PyTypeObject *type;
    PyObject *channel, *inner, *outer; /* inner and outer are None: without a key */
    PyObject *parent;                  /* the parent header of the run; NULL at its begin */
} Reader;

/* Read one message. Return 1 with a message and its key, 0 if it is another one, -1 after an
 * exception. */
static int
read_text(State *state, Reader *reader, PyObject *frames, PyObject **message, PyObject **key)
{
    PyObject *parts[5];
    Span msg_type, msg_id;
    int found = take_parts(frames, parts);
    if (found != 1) {
        return found;
    }
    found = PyBytes_Size(parts[4]) <= LARGE &&
            (reader->parent == NULL || same_bytes(parts[2], reader->parent)) &&
            find_fields(span_of(parts[1]), &msg_type, &msg_id) && equals(msg_type, "stream", 6);
    if (found && reader->inner != Py_None) {
        found = verify(state, reader->inner, reader->outer, parts[0], parts + 1);
    }
    if (found == 1) {
        *message = new_message(reader->type, reader->channel, parts + 1);
        *key = *message == NULL ? NULL : PyLong_FromUnsignedLong(crc32_of(state, msg_id));
        if (*key == NULL) {
            Py_XDECREF(*message);
            found = -1;
        } else if (reader->parent == NULL) {
            reader->parent = Py_NewRef(parts[2]);
        }
    }
    for (int i = 0; i < 5; i++) {
        Py_DECREF(parts[i]);
    }
    return found;
}

PyDoc_STRVAR(read_texts_doc,
             "read_texts(message_type, channel, batch, start, inner, outer)\n--\n\n"
             "Return the valid stream messages from `start` on, and their keys.\n\n"
             "The first message that is something else, or unusual, or has another parent header\n"
             "than the first one, ends the run. See kbridge.wire.texts.read_texts.");

static PyObject *
read_texts(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (count != 6 || !PyType_Check(args[0]) ||
        !PyType_IsSubtype((PyTypeObject *)args[0], &PyTuple_Type) || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "read_texts takes a type of tuple, a channel, a list, an "
                                         "int, and two hashes");
        return NULL;
    }
    PyObject *batch = args[2];
    Py_ssize_t at = PyLong_AsSsize_t(args[3]);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (at < 0) {
        PyErr_SetString(PyExc_ValueError, "read_texts: a negative start");
        return NULL;
    }
    Reader reader = {(PyTypeObject *)args[0], args[1], args[4], args[5], NULL};
    PyObject *texts = PyList_New(0), *keys = PyList_New(0);
    if (texts == NULL || keys == NULL) {
        goto failed;
    }
    for (; at < PyList_Size(batch); at++) {
        PyObject *message = NULL, *key = NULL;
        PyObject *frames = Py_NewRef(PyList_GetItem(batch, at));
        int found = read_text(state, &reader, frames, &message, &key);
        Py_DECREF(frames);
        if (found < 0) {
            goto failed;
        }
        if (found == 0) {
            break;
        }
        int failed = PyList_Append(texts, message) || PyList_Append(keys, key);
        Py_DECREF(message);
        Py_DECREF(key);
        if (failed) {
            goto failed;
        }
    }
    PyObject *result = PyTuple_Pack(2, texts, keys);
    Py_XDECREF(reader.parent);
    Py_DECREF(texts);
    Py_DECREF(keys);
    return result;
failed:
    Py_XDECREF(reader.parent);
    Py_XDECREF(texts);
    Py_XDECREF(keys);
    return NULL;
}

/* Websocket frames ----------------------------------------------------------------------------- */

static char *
put_u64(char *to, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        *to++ = (char)(value >> (8 * i));
    }
    return to;
}

/* Return the websocket frame of a message on iopub; None if it is not a usual one. */
static PyObject *
encode_text(PyObject *message, PyObject *channel)
{
    Span spans[5] = {{"iopub", 5}};
    if (!PyTuple_Check(message) || PyTuple_Size(message) != FIELDS ||
        PyTuple_GetItem(message, 0) != channel) {
        Py_RETURN_NONE;
    }
    PyObject *buffers = PyTuple_GetItem(message, FIELDS - 1);
    if (!PyTuple_CheckExact(buffers) || PyTuple_Size(buffers) != 0) {
        Py_RETURN_NONE;
    }
    Py_ssize_t size = HEAD - FRAME_HEADER + spans[0].size;
    for (int i = 1; i < 5; i++) {
        PyObject *part = PyTuple_GetItem(message, i);
        if (!PyBytes_CheckExact(part)) {
            Py_RETURN_NONE;
        }
        spans[i] = span_of(part);
        if (spans[i].size >= 0x10000) {
            Py_RETURN_NONE;
        }
        size += spans[i].size;
    }
    if (size < 126 || size >= 0x10000) {
        Py_RETURN_NONE;
    }
    PyObject *frame = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + size);
    if (frame == NULL) {
        return NULL;
    }
    char *to = PyBytes_AsString(frame);
    *to++ = (char)0x82; /* FIN, binary */
    *to++ = 126;
    *to++ = (char)(size >> 8);
    *to++ = (char)size;
    to = put_u64(to, 6);
    uint64_t offset = HEAD - FRAME_HEADER;
    to = put_u64(to, offset);
    for (int i = 0; i < 5; i++) {
        offset += (uint64_t)spans[i].size;
        to = put_u64(to, offset);
    }
    for (int i = 0; i < 5; i++) {
        memcpy(to, spans[i].data, (size_t)spans[i].size);
        to += spans[i].size;
    }
    return frame;
}

PyDoc_STRVAR(encode_texts_doc,
             "encode_texts(channel, encode_frame, messages)\n--\n\n"
             "Return the websocket frame of each message.\n\n"
             "`encode_frame` encodes those that are unusual, or not on that channel, which is\n"
             "iopub. See kbridge.wire.v1.encode_texts.");

static PyObject *
encode_texts(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "encode_texts takes a channel, a callable and a list");
        return NULL;
    }
    PyObject *frames = PyList_New(0);
    for (Py_ssize_t at = 0; frames != NULL && at < PyList_Size(args[2]); at++) {
        PyObject *message = Py_NewRef(PyList_GetItem(args[2], at));
        PyObject *frame = encode_text(message, args[0]);
        if (frame == Py_None) {
            Py_DECREF(frame);
            frame = PyObject_CallFunctionObjArgs(args[1], message, NULL);
        }
        Py_DECREF(message);
        if (frame == NULL || PyList_Append(frames, frame)) {
            Py_CLEAR(frames);
        }
        Py_XDECREF(frame);
    }
    return frames;
}

/* Frames of ZMTP ------------------------------------------------------------------------------- */

/* Read the message at `at`, without copying it: note its parts. Return the number of parts, 0 if it
 * is not a whole message, or an unusual one. */
static Py_ssize_t
find_parts(Span data, Py_ssize_t *at, Py_ssize_t part_limit, Span parts[MAX_PARTS])
{
    Py_ssize_t place = *at;
    for (Py_ssize_t number = 0; number < MAX_PARTS;) {
        const unsigned char *head = (const unsigned char *)data.data + place;
        Py_ssize_t left = data.size - place;
        uint64_t size;
        if (left < 2 || head[0] > 3) { /* cut, or a command, or a fault */
            return 0;
        }
        if (head[0] & 2) {
            if (left < 9) {
                return 0;
            }
            size = 0;
            for (int i = 1; i < 9; i++) {
                size = size << 8 | head[i];
            }
            place += 9;
            left -= 9;
        } else {
            size = head[1];
            place += 2;
            left -= 2;
        }
        if (size > (uint64_t)left || size > (uint64_t)part_limit) {
            return 0;
        }
        parts[number++] = (Span){data.data + place, (Py_ssize_t)size};
        place += (Py_ssize_t)size;
        if (!(head[0] & 1)) {
            *at = place;
            return number;
        }
    }
    return 0;
}

static PyObject *
list_of(const Span *parts, Py_ssize_t number)
{
    PyObject *list = PyList_New(number);
    for (Py_ssize_t i = 0; list != NULL && i < number; i++) {
        PyObject *part = PyBytes_FromStringAndSize(parts[i].data, parts[i].size);
        if (part == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, part);
        }
    }
    return list;
}

PyDoc_STRVAR(split_doc,
             "split(data, start, part_limit, parts_limit, most, messages)\n--\n\n"
             "Append the whole messages from `start` on, at most `most`; return the place after them.\n\n"
             "A command, a fault, a message above a limit and one that is not whole are left. See\n"
             "kbridge.wire.zmtp.decoder.");

static PyObject *
split(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 6 || !PyBytes_Check(args[0]) || !PyList_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, "split takes bytes, four ints and a list");
        return NULL;
    }
    Py_ssize_t numbers[4]; /* start, part_limit, parts_limit, most */
    for (int i = 0; i < 4; i++) {
        numbers[i] = PyNumber_AsSsize_t(args[1 + i], NULL); /* clipped: limits may be huge */
        if (numbers[i] == -1 && PyErr_Occurred()) {
            return NULL;
        }
        if (numbers[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "split: a negative number");
            return NULL;
        }
    }
    Span data = span_of(args[0]), parts[MAX_PARTS];
    Py_ssize_t at = numbers[0], next = at;
    if (at > data.size) {
        PyErr_SetString(PyExc_ValueError, "split: a start behind the end");
        return NULL;
    }
    for (Py_ssize_t left = numbers[3]; left > 0; left--) {
        Py_ssize_t number = find_parts(data, &next, numbers[1], parts);
        if (number == 0 || number > numbers[2]) {
            break;
        }
        PyObject *message = list_of(parts, number);
        if (message == NULL || PyList_Append(args[5], message)) {
            Py_XDECREF(message);
            return NULL;
        }
        Py_DECREF(message);
        at = next;
    }
    return PyLong_FromSsize_t(at);
}

/* The module ----------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"encode_texts", (PyCFunction)(void (*)(void))encode_texts, METH_FASTCALL, encode_texts_doc},
    {"read_texts", (PyCFunction)(void (*)(void))read_texts, METH_FASTCALL, read_texts_doc},
    {"split", (PyCFunction)(void (*)(void))split, METH_FASTCALL, split_doc},
    {NULL, NULL, 0, NULL},
};

static int
execute(PyObject *module)
{
    State *state = PyModule_GetState(module);
    make_crc_table(state);
    state->copy = PyUnicode_InternFromString("copy");
    state->update = PyUnicode_InternFromString("update");
    state->digest = PyUnicode_InternFromString("digest");
    state->hexdigest = PyUnicode_InternFromString("hexdigest");
    if (!state->copy || !state->update || !state->digest || !state->hexdigest) {
        return -1;
    }
    PyObject *hmac = PyImport_ImportModule("hmac");
    if (hmac == NULL) {
        return -1;
    }
    state->compare_digest = PyObject_GetAttrString(hmac, "compare_digest");
    Py_DECREF(hmac);
    if (state->compare_digest == NULL) {
        return -1;
    }
    return PyModule_AddIntConstant(module, "API", API);
}

static int
traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->compare_digest);
    return 0;
}

static int
clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->copy);
    Py_CLEAR(state->update);
    Py_CLEAR(state->digest);
    Py_CLEAR(state->hexdigest);
    Py_CLEAR(state->compare_digest);
    return 0;
}

static void
release(void *module)
{
    clear(module);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kbridge_speedups",
    .m_doc = "The hot path of kbridge, in C.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC
PyInit_kbridge_speedups(void)
{
    return PyModuleDef_Init(&definition);
}
