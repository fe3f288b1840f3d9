// The manifest of a save and the names of its files.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/checkpoint_impl.h"

// Readers that know no parts refuse the second by its name.
#define SCHEMA "dsm-checkpoint-1"
#define PARTS_SCHEMA "dsm-checkpoint-2"
#define SEAL_KEY "\"manifest_xxh3\": \""

static const char *const class_name[CK_CLASSES] = {"weights", "optimizer"};

const char *ck_file_name(arena *a, int cls, int rank) {
  if (rank < 0) return arena_printf(a, "%s.safetensors", class_name[cls]);
  return arena_printf(a, "%s-%05d.safetensors", class_name[cls], rank);
}

int ck_file_class(const char *name) {
  for (int k = 0; k < CK_CLASSES; k++) {
    if (!str_starts(name, class_name[k])) continue;
    const char *rest = name + strlen(class_name[k]);
    if (*rest == '-') rest += 1 + strspn(rest + 1, "0123456789");
    if (str_eq(rest, ".safetensors")) return k;
  }
  return -1;
}

json_t *ck_hex(uint64_t v) {
  char text[20];
  snprintf(text, sizeof text, "%016" PRIx64, v);
  return json_string(text);
}

bool ck_hex_digits(const char *text, uint64_t *out) {
  char *end;
  if (strspn(text, "0123456789abcdef") != 16) return false;
  *out = strtoull(text, &end, 16);
  return *end == 0 || *end == ' ';
}

bool ck_hex_value(const json_t *j, uint64_t *out) {
  const char *text = json_string_value(j);
  return text && strlen(text) == 16 && ck_hex_digits(text, out);
}

static uint64_t text_digest(const char *text, size_t n) { return XXH3_64bits(text, n); }

// ---- writing ------------------------------------------------------------------------------------

static status *write_text(const checkpoint *c, const char *path, const char *text, size_t n) {
  file_out f;
  STATUS_DO(file_create(c->io, path, &f));
  status *s = file_write(&f, text, n);
  if (!s) s = file_sync(&f);
  return status_join(s, file_close(&f));
}

// The manifest carries its own checksum, computed with zeros in its place.
static status *write_sealed(arena *a, const checkpoint *c, const char *dir, json_t *root) {
  json_object_set_new(root, "manifest_xxh3", json_string("0000000000000000"));
  char *text = json_dumps(root, JSON_INDENT(1));
  if (!text) return status_error("cannot write the manifest: its names are not UTF-8");
  size_t n = strlen(text);
  char *seal = strstr(text, SEAL_KEY "0000000000000000\"");
  char digits[20];
  snprintf(digits, sizeof digits, "%016" PRIx64, text_digest(text, n));
  if (seal) memcpy(seal + strlen(SEAL_KEY), digits, 16);
  status *s = write_text(c, arena_printf(a, "%s/manifest.json", dir), text, n);
  free(text);
  return s;
}

status *ck_write_manifest(arena *a, const checkpoint *c, const char *dir, const ck_state *st,
                          const char *const *settings, int nsettings, bool parts, json_t *files) {
  json_t *root = json_object(), *set = json_object();
  const prog_header *h = c->prog->header;
  json_object_set_new(root, "schema", json_string(parts ? PARTS_SCHEMA : SCHEMA));
  json_object_set_new(root, "model", json_string(prog_text(c->prog, h->model)));
  json_object_set_new(root, "compiler", json_string(prog_text(c->prog, h->compiler)));
  json_object_set_new(root, "source_digest", ck_hex(h->source_digest));
  json_object_set_new(root, "step", json_integer(st->step));
  json_object_set_new(root, "samples", json_integer(st->samples));
  json_object_set_new(root, "seed", ck_hex(st->seed));
  if (parts) json_object_set_new(root, "ranks", json_integer(comm_ranks(c->comm)));
  for (int i = 0; i < nsettings; i++)
    json_object_set_new(set, settings[2 * i], json_string(settings[2 * i + 1]));
  json_object_set_new(root, "settings", set);
  json_object_set_new(root, "files", files);
  status *s = write_sealed(a, c, dir, root);
  json_decref(root);
  return s;
}

// ---- reading ------------------------------------------------------------------------------------

static status *verify_seal(const char *path, const file_map *m, const json_t *root) {
  const char *given = json_string_value(json_object_get(root, "manifest_xxh3"));
  char *text = malloc(m->n + 1);
  if (!text) return status_error("out of memory");
  memcpy(text, m->bytes, m->n);
  text[m->n] = 0;
  char *seal = strstr(text, SEAL_KEY);
  status *s = NULL;
  if (!given || !seal || strlen(given) != 16 || strlen(seal) < strlen(SEAL_KEY) + 16) {
    s = status_error("%s has no checksum of its own", path);
  } else {
    memset(seal + strlen(SEAL_KEY), '0', 16);
    char digits[20];
    snprintf(digits, sizeof digits, "%016" PRIx64, text_digest(text, m->n));
    if (!str_eq(digits, given))
      s = status_error("%s is damaged: its checksum is %s, it says %s", path, digits, given);
  }
  free(text);
  return s;
}

static status *read_counters(const char *path, const json_t *root, ck_state *out) {
  json_t *step = json_object_get(root, "step"), *samples = json_object_get(root, "samples");
  if (!json_is_integer(step) || !json_is_integer(samples) || json_integer_value(step) < 0 ||
      json_integer_value(samples) < 0 || !ck_hex_value(json_object_get(root, "seed"), &out->seed))
    return status_error("%s has no step, samples or seed", path);
  out->step = json_integer_value(step);
  out->samples = json_integer_value(samples);
  return NULL;
}

status *ck_read_manifest(arena *a, const char *dir, json_t **out, ck_state *st) {
  *out = NULL;
  const char *path = arena_printf(a, "%s/manifest.json", dir);
  file_map m;
  STATUS_DO(file_map_open(path, &m));
  json_error_t e;
  status *s = NULL;
  json_t *root = json_loadb((const char *)m.bytes, m.n, JSON_REJECT_DUPLICATES, &e);
  const char *schema = json_string_value(json_object_get(root, "schema"));
  if (!root)
    s = status_error("%s is damaged: %s at byte %d", path, e.text, e.position);
  else if (!str_eq(schema, SCHEMA) && !str_eq(schema, PARTS_SCHEMA))
    s = status_error("%s is not a manifest this runtime reads (schema %s or %s)", path, SCHEMA,
                     PARTS_SCHEMA);
  else
    s = verify_seal(path, &m, root);
  if (!s) s = read_counters(path, root, st);
  file_map_close(&m);
  if (s) {
    json_decref(root);
    return s;
  }
  *out = root;
  return NULL;
}
