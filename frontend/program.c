// Files, imports, definitions; `dsmc check`.
//
// All files of a program share one space of names: what `import` makes visible, and the reason why
// a name defined twice is an error. A file imported along two ways is read once.
#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/clusters.h"
#include "frontend/keys.h"
#include "frontend/sema_impl.h"

typedef struct opening {
  const char *path;  // as messages show it
  const char *real;  // what makes two paths one file
  struct opening *outer;
} opening;

static const char *real_path(arena *a, const char *path) {
  char buf[PATH_MAX];  // not from malloc: the arena may run out and jump
  return arena_strdup(a, realpath(path, buf) ? buf : path);
}

// ---------------------------------------------------------------------------------------------
// Definitions
// ---------------------------------------------------------------------------------------------

static void define(sema_program *p, map *seen, const ident *name, const char *what) {
  ident *old = map_get(seen, name->text);
  if (!old) {
    ident *kept = arena_new(p->arena, ident, 1);
    *kept = *name;
    map_set(seen, name->text, kept);
    return;
  }
  diag *e = diag_error(p->diags, name->at, DIAG_DUPLICATE_NAME, "%s `%s` is defined twice", what,
                       name->text);
  diag_place_at(e, old->at, "`%s` is first defined here", name->text);
}

static void collect(sema_program *p) {
  map callable = {.arena = p->arena}, sections = {.arena = p->arena};
  for (int i = 0; i < p->files.n; i++) {
    const file *f = p->files.at[i];
    for (int k = 0; k < f->items.n; k++) {
      item *it = f->items.at[k];
      switch (it->kind) {
        case ITEM_IMPORT: break;
        case ITEM_MODEL:
          define(p, &callable, &it->model->name, "the model");
          if (!map_get(&p->models, it->model->name.text))
            map_set(&p->models, it->model->name.text, it->model);
          break;
        case ITEM_BLOCK:
          define(p, &callable, &it->block->name, "the block");
          if (!map_get(&p->blocks, it->block->name.text))
            map_set(&p->blocks, it->block->name.text, it->block);
          break;
        case ITEM_FN:
          define(p, &callable, &it->fn->name, "the fn");
          if (!map_get(&p->fns, it->fn->name.text)) map_set(&p->fns, it->fn->name.text, it->fn);
          break;
        case ITEM_SECTION: {
          section *s = it->section;
          bool of_model = str_eq(s->kind.text, "train") || str_eq(s->kind.text, "names");
          const ident *own = s->as.text ? &s->as : &s->label;
          vec_push(p->arena, &p->sections, s);
          if (i == 0) p->main_sections++;
          if (!own->text) break;
          ident key = *own;
          // `names gpt2 as hf` and `names bert as hf` are two maps.
          key.text = arena_printf(p->arena, "%s %s%s%s", s->kind.text,
                                  of_model ? s->label.text : "", of_model ? " " : "", own->text);
          define(p, &sections, &key, "the section");
          break;
        }
      }
    }
  }
}

const section *sema_section(const sema_program *p, const char *kind, const char *name) {
  for (int i = 0; i < p->sections.n; i++) {
    const section *s = p->sections.at[i];
    if (str_eq(s->kind.text, kind) &&
        (!name || str_eq(s->as.text ? s->as.text : s->label.text, name)))
      return s;
  }
  return NULL;
}

// ---------------------------------------------------------------------------------------------
// Imports
// ---------------------------------------------------------------------------------------------

static void load(sema_program *p, map *done, const source *src, opening *self);

static void load_import(sema_program *p, map *done, const ident *what, opening *self) {
  const char *slash = strrchr(self->path, '/');
  const char *path = what->text;
  if (slash && *path != '/')
    path = arena_printf(p->arena, "%.*s%s", (int)(slash - self->path) + 1, self->path, path);
  opening now = {path, real_path(p->arena, path), self};
  for (const opening *o = self; o; o = o->outer)
    if (str_eq(o->real, now.real)) {
      diag *e = diag_error(p->diags, what->at, DIAG_IMPORT_CYCLE, "`%s` imports itself", path);
      for (const opening *q = self; q != o; q = q->outer) diag_note(e, "by way of %s", q->path);
      return;
    }
  if (map_get(done, now.real)) return;
  const char *why;
  source *src = source_read(p->arena, path, &why);
  if (!src) {
    diag_error(p->diags, what->at, DIAG_CANNOT_READ, "cannot read %s: %s", path, why);
    return;
  }
  load(p, done, src, &now);
}

static void load(sema_program *p, map *done, const source *src, opening *self) {
  map_set(done, self->real, self);
  file *f = parse_file(p->arena, p->diags, src);
  keys_check_file(p->arena, p->diags, f);
  vec_push(p->arena, &p->files, f);
  int depth = 0;
  for (const opening *o = self; o; o = o->outer) depth++;
  for (int i = 0; i < f->items.n; i++) {
    const item *it = f->items.at[i];
    if (it->kind != ITEM_IMPORT) continue;
    if (depth > 100)
      diag_error(p->diags, it->import.at, DIAG_TOO_DEEP, "imports nest more than 100 deep");
    else
      load_import(p, done, &it->import, self);
  }
}

static sema_program *open_source(arena *a, diags *d, const source *src, const char *asked) {
  sema_program *p = arena_new(a, sema_program, 1);
  p->arena = a;
  p->diags = d;
  p->path = src->path;
  p->asked = asked;
  p->models.arena = p->blocks.arena = p->fns.arena = a;
  map done = {.arena = a};
  opening self = {src->path, real_path(a, src->path), NULL};
  load(p, &done, src, &self);
  collect(p);
  return p;
}

sema_program *sema_open(arena *a, diags *d, const char *file_and_name) {
  const char *why, *asked = NULL, *path = file_and_name;
  source *src = source_read(a, path, &why);
  const char *colon = strrchr(path, ':');
  if (!src && colon && colon[1] && !strchr(colon, '/')) {
    path = arena_strndup(a, path, (size_t)(colon - path));
    asked = colon + 1;
    src = source_read(a, path, &why);
  }
  if (src) return open_source(a, d, src, asked);
  diag_error(d, span_none(), DIAG_CANNOT_READ, "cannot read %s: %s", path, why);
  return NULL;
}

sema_program *sema_open_text(arena *a, diags *d, const char *path, const char *text,
                             size_t length) {
  return open_source(a, d, source_from_text(a, path, text, length), NULL);
}

// ---------------------------------------------------------------------------------------------
// check
// ---------------------------------------------------------------------------------------------

static bool has_loss(const model *m) {
  for (int i = 0; i < m->body.n; i++) {
    const stmt *s = m->body.at[i];
    for (int k = 0; s->kind == STMT_OUTPUT && k < s->names.n; k++)
      if (str_eq(s->names.at[k].text, "loss")) return true;
  }
  return false;
}

static const char *grouped(arena *a, int64_t n) {
  char digits[32];
  int len = snprintf(digits, sizeof digits, "%" PRId64, n);
  sb s = {.arena = a};
  for (int i = 0; i < len; i++) {
    if (i && (len - i) % 3 == 0) sb_put(&s, ',');
    sb_put(&s, digits[i]);
  }
  return sb_str(&s);
}

static void check_one(sema_program *p, const char *name, setting_list sets, FILE *out) {
  int errors = diags_errors(p->diags);
  job *j = sema_job_for_check(p, name, sets);
  if (!j) return;
  unsigned loss = has_loss(j->body) || j->section ? SEMA_TRAIN | SEMA_EVAL : 0;
  ir_module *m = sema_lower(p, j, loss | SEMA_TRY_DECODE);
  if (!m || diags_errors(p->diags) != errors || !out) return;
  fprintf(out, "%-16s %s parameters%s%s%s\n", name, grouped(p->arena, sema_parameters(m)),
          ir_func_find(m, "decode") ? ", generates" : "", p->no_decode ? "; cannot generate: " : "",
          p->no_decode ? p->no_decode : "");
}

void sema_check(sema_program *p, setting_list sets, FILE *out) {
  clusters_check(p);
  if (p->asked) {
    check_one(p, p->asked, sets, out);
    return;
  }
  const file *f = p->files.at[0];
  for (int i = 0; i < f->items.n; i++)
    if (f->items.at[i]->kind == ITEM_MODEL)
      check_one(p, f->items.at[i]->model->name.text, sets, out);
  // Jobs by another name than their model's.
  for (int i = 0; i < p->main_sections; i++) {
    const section *s = p->sections.at[i];
    if (str_eq(s->kind.text, "train") && s->label.text &&
        (s->as.text || !map_get(&p->models, s->label.text)))
      check_one(p, s->as.text ? s->as.text : s->label.text, sets, out);
    else if (str_eq(s->kind.text, "names") && s->label.text && !map_get(&p->models, s->label.text))
      sema_no_model(p, &s->label);
  }
}
