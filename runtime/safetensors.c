#include "runtime/safetensors.h"

#include <endian.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/str.h"
#include "runtime/dtype.h"

static const struct {
  const char *name;
  int bytes;
} foreign[] = {{"U8", 1}, {"U32", 4}, {"U64", 8}, {"F8_E8M0", 1}};

// Bytes of an element, or 0.
static int type_of(const char *name, uint32_t *dtype) {
  int t = dtype_find_st(name);
  *dtype = t < 0 ? ST_FOREIGN : (uint32_t)t;
  if (t >= 0) return dtype_of(*dtype)->bytes;
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
    if (str_eq(foreign[i].name, name)) return foreign[i].bytes;
  return 0;
}

const char *st_dims(const int64_t *dims, uint32_t rank, char buf[200]) {
  int n = snprintf(buf, 200, "[");
  for (uint32_t i = 0; i < rank && n < 190; i++)
    n += snprintf(buf + n, (size_t)(200 - n), "%s%lld", i ? ", " : "", (long long)dims[i]);
  snprintf(buf + n, (size_t)(200 - n), "]");
  return buf;
}

const char *st_shape(const st_tensor *t, char buf[200]) { return st_dims(t->dims, t->rank, buf); }

// ---- reading ----------------------------------------------------------------------------------

static status *read_tensor(arena *a, const char *path, const char *key, json_t *value,
                           uint64_t data_bytes, st_tensor *t) {
  t->name = arena_strdup(a, key);
  json_t *type = json_object_get(value, "dtype"), *shape = json_object_get(value, "shape"),
         *offsets = json_object_get(value, "data_offsets");
  if (!json_is_string(type) || !json_is_array(shape) || !json_is_array(offsets) ||
      json_object_size(value) != 3)
    return status_error("%s: tensor %s must have exactly dtype, shape and data_offsets", path, key);
  t->type = arena_strdup(a, json_string_value(type));
  int unit = type_of(t->type, &t->dtype);
  if (unit == 0) return status_error("%s: tensor %s has unknown type %s", path, key, t->type);
  if (json_array_size(shape) > PROG_MAX_RANK)
    return status_error("%s: tensor %s has %zu dimensions, at most %d are supported", path, key,
                        json_array_size(shape), PROG_MAX_RANK);
  t->rank = (uint32_t)json_array_size(shape);
  uint64_t want = (uint64_t)unit;
  for (uint32_t i = 0; i < t->rank; i++) {
    json_t *d = json_array_get(shape, i);
    if (!json_is_integer(d) || json_integer_value(d) < 0)
      return status_error("%s: tensor %s has a bad dimension %u", path, key, i);
    t->dims[i] = json_integer_value(d);
    if (__builtin_mul_overflow(want, (uint64_t)t->dims[i], &want))
      return status_error("%s: tensor %s is larger than memory can be", path, key);
  }
  json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to) ||
      json_integer_value(from) < 0 || json_integer_value(to) < json_integer_value(from))
    return status_error("%s: tensor %s has bad data_offsets", path, key);
  uint64_t lo = (uint64_t)json_integer_value(from), hi = (uint64_t)json_integer_value(to);
  if (hi > data_bytes)
    return status_error("%s: tensor %s ends at byte %llu of %llu: the file is cut off", path, key,
                        (unsigned long long)hi, (unsigned long long)data_bytes);
  char dims[200];
  if (hi - lo != want)
    return status_error("%s: tensor %s has %llu bytes, its shape %s of %s needs %llu", path, key,
                        (unsigned long long)(hi - lo), st_shape(t, dims), t->type,
                        (unsigned long long)want);
  t->bytes = want;
  t->data = (const void *)(uintptr_t)lo;  // an offset until the base is added
  return NULL;
}

static int by_offset(const void *a, const void *b) {
  const st_tensor *x = *(st_tensor *const *)a, *y = *(st_tensor *const *)b;
  uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
  if (p != q) return p < q ? -1 : 1;
  return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

// Tensors must cover the data exactly.
static status *check_cover(arena *a, const st_file *f, uint64_t data_bytes) {
  st_tensor **order = arena_new(a, st_tensor *, f->n);
  for (int i = 0; i < f->n; i++) order[i] = &f->tensors[i];
  if (f->n) qsort(order, (size_t)f->n, sizeof *order, by_offset);
  uint64_t at = 0;
  for (int i = 0; i < f->n; i++) {
    uint64_t lo = (uintptr_t)order[i]->data;
    if (lo < at)
      return status_error("%s: tensors %s and %s overlap", f->path, order[i - 1]->name,
                          order[i]->name);
    if (lo > at)
      return status_error("%s: %llu bytes before tensor %s belong to nothing", f->path,
                          (unsigned long long)(lo - at), order[i]->name);
    at = lo + order[i]->bytes;
  }
  if (at != data_bytes)
    return status_error("%s: the last %llu bytes belong to no tensor", f->path,
                        (unsigned long long)(data_bytes - at));
  return NULL;
}

static status *read_metadata(arena *a, json_t *object, st_file *f) {
  const char *key;
  json_t *value;
  if (!json_is_object(object))
    return status_error("%s: __metadata__ must be an object of texts", f->path);
  json_object_foreach(object, key, value) {
    if (!json_is_string(value))
      return status_error("%s: __metadata__ %s is not a text", f->path, key);
    map_set(&f->metadata, arena_strdup(a, key), arena_strdup(a, json_string_value(value)));
  }
  return NULL;
}

static status *read_header(arena *a, json_t *root, const unsigned char *data, uint64_t data_bytes,
                           st_file *f) {
  if (!json_is_object(root)) return status_error("%s: its header is no JSON object", f->path);
  const char *key;
  json_t *value;
  f->tensors = arena_new(a, st_tensor, json_object_size(root));
  json_object_foreach(root, key, value) {
    if (str_eq(key, "__metadata__")) {
      STATUS_DO(read_metadata(a, value, f));
      continue;
    }
    if (!json_is_object(value))
      return status_error("%s: tensor %s is no JSON object", f->path, key);
    STATUS_DO(read_tensor(a, f->path, key, value, data_bytes, &f->tensors[f->n]));
    f->n++;
  }
  STATUS_DO(check_cover(a, f, data_bytes));
  for (int i = 0; i < f->n; i++) {
    f->tensors[i].data = data + (uintptr_t)f->tensors[i].data;
    map_set(&f->by_name, f->tensors[i].name, &f->tensors[i]);
  }
  return NULL;
}

status *st_parse(arena *a, const char *path, const void *bytes, size_t n, st_file *f) {
  memset(f, 0, sizeof *f);
  f->path = path;
  f->by_name.arena = a;
  f->metadata.arena = a;
  const unsigned char *p = bytes;
  uint64_t len;
  if (n < sizeof len)
    return status_error("%s: %zu bytes are too few for a safetensors file", path, n);
  memcpy(&len, p, sizeof len);
  len = le64toh(len);
  if (len > ST_MAX_HEADER)
    return status_error("%s: a header of %llu bytes is not safetensors (at most %llu)", path,
                        (unsigned long long)len, (unsigned long long)ST_MAX_HEADER);
  if (len > n - sizeof len)
    return status_error("%s: its header of %llu bytes does not fit in its %zu bytes", path,
                        (unsigned long long)len, n);
  json_error_t e;
  json_t *root = json_loadb((const char *)p + sizeof len, len, JSON_REJECT_DUPLICATES, &e);
  if (!root)
    return status_error("%s: its header is not JSON: %s at byte %d", path, e.text, e.position);
  status *s = read_header(a, root, p + sizeof len + len, n - sizeof len - len, f);
  json_decref(root);
  return s;
}

status *st_open(arena *a, const char *path, st_file *f) {
  file_map m;
  memset(f, 0, sizeof *f);
  STATUS_DO(file_map_open(path, &m));
  status *s = st_parse(a, arena_strdup(a, path), m.bytes, m.n, f);
  f->map = m;
  if (s) st_close(f);
  return s;
}

void st_close(st_file *f) {
  file_map_close(&f->map);
  f->n = 0;
}

const st_tensor *st_find(const st_file *f, const char *name) { return map_get(&f->by_name, name); }

// ---- writing ----------------------------------------------------------------------------------

static void put_json(sb *s, const char *text) {
  sb_put(s, '"');
  for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
    if (*p == '"' || *p == '\\')
      sb_printf(s, "\\%c", *p);
    else if (*p < 0x20)
      sb_printf(s, "\\u%04x", *p);
    else
      sb_put(s, (char)*p);
  }
  sb_put(s, '"');
}

uint64_t st_header_xxh3(const void *bytes, size_t n) {
  uint64_t len = 0;
  if (n >= sizeof len) memcpy(&len, bytes, sizeof len);
  len = le64toh(len);
  if (len > n - sizeof len) len = 0;
  return XXH3_64bits((const char *)bytes + sizeof len, len);
}

static status *write_parts(file_out *f, const char *header, uint64_t header_bytes,
                           const st_tensor *tensors, int n) {
  uint64_t len = htole64(header_bytes);
  STATUS_DO(file_write(f, &len, sizeof len));
  STATUS_DO(file_write(f, header, header_bytes));
  for (int i = 0; i < n; i++)
    STATUS_TRY(file_write(f, tensors[i].data, tensors[i].bytes), "tensor %s", tensors[i].name);
  return file_sync(f);
}

status *st_write(arena *a, const file_io *io, const char *path, const st_tensor *tensors, int n,
                 const char *const *pairs, int npairs, uint64_t *file_bytes,
                 uint64_t *header_xxh3) {
  sb h = {.arena = a};
  uint64_t at = 0;
  sb_put(&h, '{');
  if (npairs) {
    sb_puts(&h, "\"__metadata__\":{");
    for (int i = 0; i < npairs; i++) {
      if (i) sb_put(&h, ',');
      put_json(&h, pairs[2 * i]);
      sb_put(&h, ':');
      put_json(&h, pairs[2 * i + 1]);
    }
    sb_put(&h, '}');
  }
  for (int i = 0; i < n; i++) {
    const st_tensor *t = &tensors[i];
    if (i || npairs) sb_put(&h, ',');
    put_json(&h, t->name);
    sb_printf(&h, ":{\"dtype\":\"%s\",\"shape\":[", dtype_of(t->dtype)->st);
    for (uint32_t d = 0; d < t->rank; d++)
      sb_printf(&h, "%s%lld", d ? "," : "", (long long)t->dims[d]);
    sb_printf(&h, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
              (unsigned long long)(at + t->bytes));
    at += t->bytes;
  }
  sb_put(&h, '}');
  while (h.n % 8) sb_put(&h, ' ');  // the data starts aligned
  file_out f;
  STATUS_DO(file_create(io, path, &f));
  status *s = write_parts(&f, sb_str(&h), (uint64_t)h.n, tensors, n);
  s = status_join(s, file_close(&f));
  *file_bytes = 8 + (uint64_t)h.n + at;
  *header_xxh3 = XXH3_64bits(sb_str(&h), (size_t)h.n);
  return s;
}
