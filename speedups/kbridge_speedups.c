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
 * - the stable ABI of Python 3.11: one wheel serves 3.11 to 3.13. Later versions keep the hash of a
 *   tuple in it, which `PyType_GenericAlloc` does not set.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* Raised with each change of a signature or of a result; kbridge uses only the number it knows. */
#define API 3

#define MAX_PARTS 64        /* of a message that `split` reads, or `encode` writes */
#define LARGE (64 << 10)    /* bytes of a content that is not copied to be verified */
#define MAX_HEADER 1024     /* bytes; real headers have 150 to 300 */
#define MAX_PARSED (64 << 10) /* bytes of JSON that are checked, as in kbridge.wire.fields */
#define MAX_DEPTH 32        /* nested objects and arrays of a request; Python handles deeper ones */
#define MAX_NUMBER 300      /* bytes of a number in a request; Python refuses very long ones */
#define MAX_ENCODED (1 << 20) /* bytes of a request that `encode` writes */
#define FIELDS 6            /* of a kbridge.wire.message.Message */
#define OFFSETS 6           /* of a frame without buffers */
#define TABLE 56            /* bytes of their count and of the offsets */
#define HEAD 60             /* bytes of the websocket header and the offsets, see kbridge.wire.v1 */
#define FRAME_HEADER 4      /* bytes of the websocket header of 126 to 65,535 bytes */

static const char DELIMITER[] = "<IDS|MSG>";

/* The usual types of messages from kernels. */
static const char *const TYPES[] = {
    "stream",       "status",     "execute_input", "execute_reply", "execute_result",
    "display_data", "error",      "comm_msg",      "comm_open",     "comm_close",
    "clear_output", "update_display_data",
};
#define TYPE_COUNT (sizeof(TYPES) / sizeof(TYPES[0]))

typedef struct {
    PyObject *copy, *update, *digest, *hexdigest; /* names of methods */
    PyObject *inner, *outer;                      /* names of attributes of a Signer */
    PyObject *compare_digest;                     /* hmac.compare_digest */
    PyObject *types[TYPE_COUNT];                  /* interned; the first one is "stream" */
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

/* Return `msg_type` as a str. */
static PyObject *
type_name(State *state, Span msg_type)
{
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        if (equals(msg_type, TYPES[i], (Py_ssize_t)strlen(TYPES[i]))) {
            return Py_NewRef(state->types[i]);
        }
    }
    return PyUnicode_DecodeUTF8(msg_type.data, msg_type.size, NULL);
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

/* Return the place of a byte in `text` from `at` on; the end of `text` if there is none. */
static Py_ssize_t
find_byte(Span text, Py_ssize_t at, char byte)
{
    const char *found =
        at < text.size ? memchr(text.data + at, byte, (size_t)(text.size - at)) : NULL;
    return found == NULL ? text.size : found - text.data;
}

/* Find the value of a member in an object without escapes and without nested objects, as
 * kbridge.wire.message.scan_in_python does by searching. Return 0 where it parses. */
static int
find_value(Span raw, Span name, Span *value)
{
    Py_ssize_t spaced = 0, compact = 0, last = 0; /* the starts of values, the last key */
    if (find_byte(raw, 0, '\\') < raw.size || find_byte(raw, 1, '{') < raw.size) {
        return 0;
    }
    for (Py_ssize_t at = find_byte(raw, 0, '"'); raw.size - at >= name.size + 2;
         at = find_byte(raw, at + 1, '"')) {
        Py_ssize_t end = at + name.size + 2;
        if (raw.data[end - 1] != '"' ||
            memcmp(raw.data + at + 1, name.data, (size_t)name.size) != 0) {
            continue;
        }
        last = at;
        if (!spaced && raw.size - end >= 3 && memcmp(raw.data + end, ": \"", 3) == 0) {
            spaced = end + 3;
        } else if (!compact && raw.size - end >= 2 && memcmp(raw.data + end, ":\"", 2) == 0) {
            compact = end + 2;
        }
    }
    Py_ssize_t start = spaced ? spaced : compact;
    if (!start) {
        return 0;
    }
    Py_ssize_t end = find_byte(raw, start, '"');
    *value = (Span){raw.data + start, end - start};
    return end < raw.size && last < end;
}

PyDoc_STRVAR(scan_doc,
             "scan(fallback, raw, name)\n--\n\n"
             "Return a string field of a JSON object; `fallback` handles an unusual one.\n\n"
             "See kbridge.wire.message.scan.");

static PyObject *
scan(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "scan takes a callable, bytes and a str");
        return NULL;
    }
    Span name, value;
    if (PyBytes_CheckExact(args[1]) && PyUnicode_Check(args[2])) {
        name.data = PyUnicode_AsUTF8AndSize(args[2], &name.size);
        if (name.data == NULL) {
            return NULL;
        }
        if (find_value(span_of(args[1]), name, &value)) {
            PyObject *text = PyUnicode_DecodeUTF8(value.data, value.size, NULL);
            if (text != NULL) {
                return text;
            }
            PyErr_Clear();
        }
    }
    return PyObject_CallFunctionObjArgs(args[0], args[1], args[2], NULL);
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

/* Messages of kernels -------------------------------------------------------------------------- */

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

/* The arguments of a call that reads messages. */
typedef struct {
    PyTypeObject *type;
    PyObject *channel, *inner, *outer; /* inner and outer are None: without a key */
} Reader;

/* Begin to read: get the hashes of a Signer. Return 0, or -1 after an exception. */
static int
begin_reader(State *state, Reader *reader, PyObject *type, PyObject *channel, PyObject *signer)
{
    *reader = (Reader){(PyTypeObject *)type, channel, NULL, NULL};
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "the type of messages is not a type of tuple");
        return -1;
    }
    reader->inner = PyObject_GetAttr(signer, state->inner);
    if (reader->inner == NULL) {
        return -1;
    }
    reader->outer = PyObject_GetAttr(signer, state->outer);
    if (reader->outer == NULL) {
        Py_CLEAR(reader->inner);
        return -1;
    }
    return 0;
}

static void
end_reader(Reader *reader)
{
    Py_CLEAR(reader->inner);
    Py_CLEAR(reader->outer);
}

/* A message with its type and its key; empty at first. */
typedef struct {
    PyObject *message, *name, *key;
} Found;

static void
drop(Found *found)
{
    Py_CLEAR(found->message);
    Py_CLEAR(found->name);
    Py_CLEAR(found->key);
}

/* Read one message. Return 1 with new references, 0 if it is unusual or not valid, -1 after an
 * exception. */
static int
read_one(State *state, Reader *reader, PyObject *frames, Found *found)
{
    PyObject *parts[5];
    Span msg_type, msg_id;
    if (!take_parts(frames, parts)) {
        return 0;
    }
    int valid = PyBytes_Size(parts[4]) <= LARGE && find_fields(span_of(parts[1]), &msg_type, &msg_id);
    if (valid && reader->inner != Py_None) {
        valid = verify(state, reader->inner, reader->outer, parts[0], parts + 1);
    }
    if (valid == 1) {
        found->message = new_message(reader->type, reader->channel, parts + 1);
        found->name = type_name(state, msg_type);
        found->key = PyLong_FromUnsignedLong(crc32_of(state, msg_id));
        if (!found->message || !found->name || !found->key) {
            drop(found);
            valid = -1;
        }
    }
    for (int i = 0; i < 5; i++) {
        Py_DECREF(parts[i]);
    }
    return valid;
}

PyDoc_STRVAR(read_message_doc,
             "read_message(message_type, fallback, channel, frames, signer)\n--\n\n"
             "Return a message, its type and its key.\n\n"
             "`fallback(channel, frames, signer)` reads any that is unusual or not valid. See\n"
             "kbridge.wire.texts.read_message.");

static PyObject *
read_message(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    Reader reader;
    Found found = {NULL, NULL, NULL};
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "read_message takes five arguments");
        return NULL;
    }
    if (begin_reader(state, &reader, args[0], args[2], args[4])) {
        return NULL;
    }
    int valid = read_one(state, &reader, args[3], &found);
    end_reader(&reader);
    if (valid == 0) {
        return PyObject_CallFunctionObjArgs(args[1], args[2], args[3], args[4], NULL);
    }
    if (valid < 0) {
        return NULL;
    }
    PyObject *result = PyTuple_Pack(3, found.message, found.name, found.key);
    drop(&found);
    return result;
}

PyDoc_STRVAR(read_texts_doc,
             "read_texts(message_type, fallback, channel, batch, start, signer)\n--\n\n"
             "Return the valid stream messages from `start` on, their keys, and the message after.\n\n"
             "A message that is not valid, or unusual, ends the run. Then there is no message after\n"
             "it, and `fallback(batch, start, signer)` reads if it is the first one. See\n"
             "kbridge.wire.texts.read_texts.");

static PyObject *
read_texts(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (count != 6 || !PyList_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "read_texts takes a type of tuple, a callable, a channel, "
                                         "a list, an int, and a Signer");
        return NULL;
    }
    PyObject *batch = args[3];
    Py_ssize_t at = PyLong_AsSsize_t(args[4]);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (at < 0) {
        PyErr_SetString(PyExc_ValueError, "read_texts: a negative start");
        return NULL;
    }
    Reader reader;
    if (begin_reader(state, &reader, args[0], args[2], args[5])) {
        return NULL;
    }
    PyObject *texts = PyList_New(0), *keys = PyList_New(0), *result = NULL;
    PyObject *parent = NULL; /* the parent header of the run; NULL at its begin */
    Found found = {NULL, NULL, NULL};
    int failed = texts == NULL || keys == NULL, unusual = 0;
    for (; !failed && at < PyList_Size(batch); at++) {
        PyObject *frames = Py_NewRef(PyList_GetItem(batch, at));
        int valid = read_one(state, &reader, frames, &found);
        Py_DECREF(frames);
        failed = valid < 0;
        if (valid <= 0) {
            unusual = parent == NULL;
            break;
        }
        PyObject *its = PyTuple_GetItem(found.message, 2);
        if (found.name != state->types[0] || (parent != NULL && !same_bytes(its, parent))) {
            break; /* it is the message after the run */
        }
        if (parent == NULL) {
            parent = Py_NewRef(its);
        }
        failed = PyList_Append(texts, found.message) || PyList_Append(keys, found.key);
        drop(&found);
    }
    if (!failed && unusual) {
        result = PyObject_CallFunctionObjArgs(args[1], batch, args[4], args[5], NULL);
    } else if (!failed && found.message == NULL) {
        result = PyTuple_Pack(3, texts, keys, Py_None);
    } else if (!failed) {
        PyObject *after = PyTuple_Pack(3, found.message, found.name, found.key);
        if (after != NULL) {
            result = PyTuple_Pack(3, texts, keys, after);
            Py_DECREF(after);
        }
    }
    drop(&found);
    end_reader(&reader);
    Py_XDECREF(parent);
    Py_XDECREF(texts);
    Py_XDECREF(keys);
    return result;
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

/* Return the websocket frame of a message; None if it is not a usual one. `names` has the channels. */
static PyObject *
encode_one(PyObject *names, PyObject *message)
{
    Span spans[5];
    if (!PyTuple_Check(message) || PyTuple_Size(message) != FIELDS) {
        Py_RETURN_NONE;
    }
    PyObject *name = PyDict_GetItemWithError(names, PyTuple_GetItem(message, 0));
    if (name == NULL || !PyBytes_CheckExact(name)) {
        if (PyErr_Occurred()) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    PyObject *buffers = PyTuple_GetItem(message, FIELDS - 1);
    if (!PyTuple_CheckExact(buffers) || PyTuple_Size(buffers) != 0) {
        Py_RETURN_NONE;
    }
    Py_ssize_t size = TABLE;
    for (int i = 0; i < 5; i++) {
        PyObject *part = i ? PyTuple_GetItem(message, i) : name;
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
    to = put_u64(to, OFFSETS);
    uint64_t offset = TABLE;
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

/* Return the websocket frame of a message, perhaps from the function in Python. */
static PyObject *
encode_any(PyObject *names, PyObject *fallback, PyObject *message)
{
    PyObject *frame = encode_one(names, message);
    if (frame == Py_None) {
        Py_DECREF(frame);
        frame = PyObject_CallFunctionObjArgs(fallback, message, NULL);
    }
    return frame;
}

PyDoc_STRVAR(encode_frame_doc,
             "encode_frame(names, fallback, message)\n--\n\n"
             "Return the websocket frame of a message; `fallback` encodes an unusual one.\n\n"
             "`names` is a dict of the channels' names in bytes. See kbridge.wire.v1.encode_frame.");

static PyObject *
encode_frame(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyDict_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "encode_frame takes a dict, a callable and a message");
        return NULL;
    }
    return encode_any(args[0], args[1], args[2]);
}

PyDoc_STRVAR(encode_texts_doc,
             "encode_texts(names, fallback, messages)\n--\n\n"
             "Return `encode_frame` of each message. See kbridge.wire.v1.encode_texts.");

static PyObject *
encode_texts(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyDict_Check(args[0]) || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "encode_texts takes a dict, a callable and a list");
        return NULL;
    }
    PyObject *frames = PyList_New(0);
    for (Py_ssize_t at = 0; frames != NULL && at < PyList_Size(args[2]); at++) {
        PyObject *message = Py_NewRef(PyList_GetItem(args[2], at));
        PyObject *frame = encode_any(args[0], args[1], message);
        Py_DECREF(message);
        if (frame == NULL || PyList_Append(frames, frame)) {
            Py_CLEAR(frames);
        }
        Py_XDECREF(frame);
    }
    return frames;
}

/* Requests of clients -------------------------------------------------------------------------- */

static Py_ssize_t
skip_white(Span text, Py_ssize_t at)
{
    while (at < text.size && (text.data[at] == ' ' || text.data[at] == '\n' ||
                              text.data[at] == '\t' || text.data[at] == '\r')) {
        at++;
    }
    return at;
}

static int
is_digit(Span text, Py_ssize_t at)
{
    return at < text.size && text.data[at] >= '0' && text.data[at] <= '9';
}

static int
is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* As `string_end`, but with escapes. */
static Py_ssize_t
escaped_end(Span text, Py_ssize_t at, int *wide)
{
    if (at >= text.size || text.data[at] != '"') {
        return 0;
    }
    for (at++; at < text.size; at++) {
        unsigned char c = (unsigned char)text.data[at];
        if (c == '"') {
            return at + 1;
        }
        if (c < 0x20) {
            return 0;
        }
        *wide |= c > 0x7f;
        if (c != '\\') {
            continue;
        }
        at++;
        if (at >= text.size || text.data[at] == '\0') {
            return 0;
        }
        if (text.data[at] == 'u') {
            if (text.size - at < 5) {
                return 0;
            }
            for (int i = 0; i < 4; i++) {
                if (!is_hex(text.data[++at])) {
                    return 0;
                }
            }
        } else if (strchr("\"\\/bfnrt", text.data[at]) == NULL) {
            return 0;
        }
    }
    return 0;
}

/* Return the place after the number at `at`; 0 if there is none, or a very long one. */
static Py_ssize_t
number_end(Span text, Py_ssize_t at)
{
    Py_ssize_t start = at;
    at += at < text.size && text.data[at] == '-';
    if (!is_digit(text, at)) {
        return 0;
    }
    if (text.data[at] == '0') {
        at++;
    } else {
        while (is_digit(text, at)) {
            at++;
        }
    }
    if (at < text.size && text.data[at] == '.') {
        at++;
        if (!is_digit(text, at)) {
            return 0;
        }
        while (is_digit(text, at)) {
            at++;
        }
    }
    if (at < text.size && (text.data[at] == 'e' || text.data[at] == 'E')) {
        at++;
        at += at < text.size && (text.data[at] == '+' || text.data[at] == '-');
        if (!is_digit(text, at)) {
            return 0;
        }
        while (is_digit(text, at)) {
            at++;
        }
    }
    return at - start <= MAX_NUMBER ? at : 0;
}

static Py_ssize_t
word_end(Span text, Py_ssize_t at)
{
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        Py_ssize_t size = (Py_ssize_t)strlen(words[i]);
        if (text.size - at >= size && memcmp(text.data + at, words[i], (size_t)size) == 0) {
            return at + size;
        }
    }
    return 0;
}

/* Return the place after the JSON value at `at` (RFC 8259); 0 if it is not JSON, or unusual. */
static Py_ssize_t
value_end(Span text, Py_ssize_t at, int depth, int *wide)
{
    if (at >= text.size) {
        return 0;
    }
    char open = text.data[at];
    if (open == '"') {
        return escaped_end(text, at, wide);
    }
    if (open != '{' && open != '[') {
        return open == '-' || is_digit(text, at) ? number_end(text, at) : word_end(text, at);
    }
    char close = open == '{' ? '}' : ']';
    if (depth >= MAX_DEPTH) {
        return 0;
    }
    at = skip_white(text, at + 1);
    if (at < text.size && text.data[at] == close) {
        return at + 1;
    }
    for (;;) {
        if (open == '{') {
            at = escaped_end(text, at, wide);
            at = at ? skip_white(text, at) : 0;
            if (!at || at >= text.size || text.data[at] != ':') {
                return 0;
            }
            at = skip_white(text, at + 1);
        }
        at = value_end(text, at, depth + 1, wide);
        at = at ? skip_white(text, at) : 0;
        if (!at || at >= text.size) {
            return 0;
        }
        if (text.data[at] == close) {
            return at + 1;
        }
        if (text.data[at] != ',') {
            return 0;
        }
        at = skip_white(text, at + 1);
    }
}

/* Return 1 if a part is a JSON object in UTF-8; 0 if it is something else, or unusual. */
static int
is_object(Span part)
{
    int wide = 0;
    return part.size >= 2 && part.size <= MAX_PARSED && part.data[0] == '{' &&
           value_end(part, 0, 0, &wide) == part.size && (!wide || is_utf8(part));
}

static uint64_t
get_u64(const char *from)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) {
        value = value << 8 | (unsigned char)from[i];
    }
    return value;
}

/* Find the five parts of a frame without buffers; return 0 if it is another one, or its offsets are
 * not valid. */
static int
find_offsets(Span data, Span spans[5])
{
    if (data.size < TABLE || get_u64(data.data) != OFFSETS) {
        return 0;
    }
    uint64_t at = get_u64(data.data + 8);
    if (at < TABLE) {
        return 0;
    }
    for (int i = 0; i < 5; i++) {
        uint64_t end = get_u64(data.data + 16 + 8 * i);
        if (end < at || end > (uint64_t)data.size) {
            return 0;
        }
        spans[i] = (Span){data.data + at, (Py_ssize_t)(end - at)};
        at = end;
    }
    return 1;
}

/* Return the message of a frame of a client; None if it is unusual or not valid. */
static PyObject *
decode_one(PyTypeObject *type, PyObject *channels, PyObject *data)
{
    Span spans[5], msg_type, msg_id;
    if (!PyBytes_CheckExact(data) || !find_offsets(span_of(data), spans) ||
        !find_fields(spans[1], &msg_type, &msg_id) || msg_type.size == 0 ||
        !is_object(spans[2]) || !is_object(spans[3]) || !is_object(spans[4])) {
        Py_RETURN_NONE;
    }
    PyObject *parts[5] = {NULL}, *message = NULL;
    for (int i = 0; i < 5; i++) {
        parts[i] = PyBytes_FromStringAndSize(spans[i].data, spans[i].size);
        if (parts[i] == NULL) {
            goto done;
        }
    }
    PyObject *channel = PyDict_GetItemWithError(channels, parts[0]);
    if (channel != NULL) {
        Py_INCREF(channel);
        message = new_message(type, channel, parts + 1);
        Py_DECREF(channel);
    } else if (!PyErr_Occurred()) {
        message = Py_NewRef(Py_None);
    }
done:
    for (int i = 0; i < 5; i++) {
        Py_XDECREF(parts[i]);
    }
    return message;
}

PyDoc_STRVAR(decode_doc,
             "decode(message_type, channels, fallback, data)\n--\n\n"
             "Return the message of a client's frame; `fallback` decodes an unusual one.\n\n"
             "`channels` is a dict of channels by their names in bytes. See kbridge.wire.v1.decode.");

static PyObject *
decode(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 4 || !PyType_Check(args[0]) ||
        !PyType_IsSubtype((PyTypeObject *)args[0], &PyTuple_Type) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError,
                        "decode takes a type of tuple, a dict, a callable and a frame");
        return NULL;
    }
    PyObject *message = decode_one((PyTypeObject *)args[0], args[1], args[3]);
    if (message == Py_None) {
        Py_DECREF(message);
        message = PyObject_CallFunctionObjArgs(args[2], args[3], NULL);
    }
    return message;
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

/* Write the parts of a message as frames. Return None if they are unusual. */
static PyObject *
encode_parts(PyObject *parts)
{
    if (!PyList_CheckExact(parts)) {
        Py_RETURN_NONE;
    }
    Span spans[MAX_PARTS];
    Py_ssize_t number = PyList_Size(parts), size = 0;
    if (number < 1 || number > MAX_PARTS) {
        Py_RETURN_NONE;
    }
    for (Py_ssize_t i = 0; i < number; i++) {
        PyObject *part = PyList_GetItem(parts, i);
        if (!PyBytes_CheckExact(part)) {
            Py_RETURN_NONE;
        }
        spans[i] = span_of(part);
        if (spans[i].size > MAX_ENCODED) {
            Py_RETURN_NONE;
        }
        size += spans[i].size + (spans[i].size < 256 ? 2 : 9);
    }
    if (size > MAX_ENCODED) {
        Py_RETURN_NONE;
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL) {
        return NULL;
    }
    char *to = PyBytes_AsString(data);
    for (Py_ssize_t i = 0; i < number; i++) {
        Py_ssize_t left = spans[i].size;
        char more = i + 1 < number;
        if (left < 256) {
            *to++ = more;
            *to++ = (char)left;
        } else {
            *to++ = (char)(more | 2);
            for (int shift = 56; shift >= 0; shift -= 8) {
                *to++ = (char)((uint64_t)left >> shift);
            }
        }
        memcpy(to, spans[i].data, (size_t)left);
        to += left;
    }
    return data;
}

PyDoc_STRVAR(encode_doc,
             "encode(fallback, parts)\n--\n\n"
             "Return the frames of a message; `fallback` encodes an unusual one.\n\n"
             "See kbridge.wire.zmtp.encoder.encode.");

static PyObject *
encode(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "encode takes a callable and a list");
        return NULL;
    }
    PyObject *data = encode_parts(args[1]);
    if (data == Py_None) {
        Py_DECREF(data);
        data = PyObject_CallFunctionObjArgs(args[0], args[1], NULL);
    }
    return data;
}

/* The module ----------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, decode_doc},
    {"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL, encode_doc},
    {"encode_frame", (PyCFunction)(void (*)(void))encode_frame, METH_FASTCALL, encode_frame_doc},
    {"encode_texts", (PyCFunction)(void (*)(void))encode_texts, METH_FASTCALL, encode_texts_doc},
    {"read_message", (PyCFunction)(void (*)(void))read_message, METH_FASTCALL, read_message_doc},
    {"read_texts", (PyCFunction)(void (*)(void))read_texts, METH_FASTCALL, read_texts_doc},
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
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
    state->inner = PyUnicode_InternFromString("inner");
    state->outer = PyUnicode_InternFromString("outer");
    if (!state->copy || !state->update || !state->digest || !state->hexdigest ||
        !state->inner || !state->outer) {
        return -1;
    }
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        state->types[i] = PyUnicode_InternFromString(TYPES[i]);
        if (state->types[i] == NULL) {
            return -1;
        }
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
    Py_CLEAR(state->inner);
    Py_CLEAR(state->outer);
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        Py_CLEAR(state->types[i]);
    }
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
